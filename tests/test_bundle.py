"""The policy bundle: acts like the model in the checkpoint, knows its limits, and refuses what does not fit."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.bench.latency import Case, make_policy
from statevla.encoders.text import TextEncoder
from statevla.observation import Observation, ObsSpec
from statevla.policies import instructions
from statevla.policies.noise import Draw
from statevla.policies.policy import Policy
from statevla.runs.layout import checkpoints
from statevla.systems.find import find_policy
from statevla.systems.table import find_system
from statevla.trainers.trainer import train
from stores.errors import ObsSpecMismatch, StoreCorrupt, StoreMissing, UsageError
from stores.reader import Store
from stores.spec import LIBERO
from tests.trainers.micro import config_of_all, micro_config, micro_store


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with both phases; the store is beside it."""
    root = tmp_path_factory.mktemp("bundle")
    store = micro_store(root / "store")
    config = micro_config("training.max_steps=2")
    encoder = checkpoint(root / "run", "temporal_jepa")
    train("temporal_jepa", config, store, root / "run")
    train("flow_matching", config, store, root / "run", encoder_checkpoint=encoder)
    return root / "run"


def checkpoint(run: Path, system: str = "flow_matching") -> Path:
    return checkpoints(run, find_system(system).folder) / "checkpoint_latest"


def observations(policy: Policy, count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    texts = sorted(policy.language)
    return [
        Observation(
            images=tuple(rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)),
            robot_state=rng.normal(size=9).astype(np.float32),
            instruction=texts[i % len(texts)],
        )
        for i in range(count)
    ]


def with_images(observation: Observation, images: object) -> Observation:
    """Past the type checks that only run in tests."""
    other = replace(observation)
    object.__setattr__(other, "images", images)
    return other


def test_a_loaded_policy_is_self_contained(run: Path) -> None:
    policy = Policy.load(checkpoint(run))
    store = Store.open(run.parent / "store")
    assert policy.obs_spec == ObsSpec.from_dict(store.obs_spec)
    assert policy.content_hash == store.content_hash
    assert policy.made_by == {"by hand": len(store.manifest.sources)}
    assert policy.language.keys() == set(store.manifest.instructions)
    for text, vector in policy.language.items():
        np.testing.assert_array_equal(vector, store.language.vector(text))
    shift, scale = store.stats().affine("action", store.spec)
    np.testing.assert_array_equal(policy.model.standardize_action.shift.numpy(), shift.astype(np.float32))
    np.testing.assert_array_equal(policy.model.standardize_action.scale.numpy(), scale.astype(np.float32))


def test_acting_is_a_pure_function_of_observations_and_seed(run: Path) -> None:
    policy = Policy.load(checkpoint(run))
    seen = observations(policy, 3)
    draws = [Draw(4, row) for row in range(3)]
    chunk = policy.act(seen, draws).chunk
    assert chunk.dtype == torch.float32
    assert chunk.shape == (3, policy.config.model.action_seq_len, 7)
    assert set(chunk[..., 6].unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(chunk, policy.act(seen, draws).chunk)
    assert torch.equal(chunk, Policy.load(checkpoint(run)).act(seen, draws).chunk)
    assert not torch.equal(chunk, policy.act(seen, [Draw(5, row) for row in range(3)]).chunk)


def test_a_row_does_not_depend_on_the_rows_beside_it(run: Path) -> None:
    policy = Policy.load(checkpoint(run))
    seen = observations(policy, 4)
    draws = [Draw(1, row, 7 - row) for row in range(4)]
    together = policy.act(seen, draws)
    for order in ([3, 1, 0, 2], [2], [0, 3]):
        part = policy.act([seen[row] for row in order], [draws[row] for row in order])
        torch.testing.assert_close(part.chunk, together.chunk[order], rtol=0, atol=1e-6)
        batch = policy.act_batch(policy.observe([seen[row] for row in order]), [draws[row] for row in order])
        torch.testing.assert_close(batch.chunk, together.chunk[order], rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="each of 4 observations, got 1"):
        policy.act(seen, draws[:1])


def test_identity_tells_weights_precision_and_sampling_apart(run: Path, tmp_path: Path) -> None:
    policy = Policy.load(checkpoint(run))
    assert Policy.load(checkpoint(run)).identity == policy.identity
    copied = shutil.copytree(checkpoint(run), tmp_path / "elsewhere")
    assert Policy.load(copied).identity == policy.identity  # a path is no part of it
    others = [Policy.load(checkpoint(run), dtype="bfloat16"), Policy.load(checkpoint(run), euler_steps=2)]
    store = Store.open(run.parent / "store")
    others += [Policy.untrained(policy.config, store, seed=seed) for seed in (0, 1)]
    train("flow_matching", micro_config("training.max_steps=3"), run.parent / "store", run, resume=True)
    others.append(Policy.load(checkpoint(run)))
    assert len({policy.identity, *(other.identity for other in others)}) == 6
    assert Policy.untrained(policy.config, store).identity == others[2].identity


def test_identity_tells_how_a_policy_acts_apart(run: Path, tmp_path: Path) -> None:
    """One training, to the same weights: acting with the latent's mean and with a sample of it are two policies."""
    loaded = []
    for sample in ("false", "true"):
        config = config_of_all("training.max_steps=1", f"act.sample={sample}")
        loaded.append(Policy.load(train("act", config, run.parent / "store", tmp_path / sample).checkpoint))
    mean, sampled = (policy.model.state_dict() for policy in loaded)
    assert all(torch.equal(mean[name], sampled[name]) for name in mean)
    assert loaded[0].identity != loaded[1].identity


def test_a_policy_introduces_itself_shortly(run: Path) -> None:
    policy = Policy.load(checkpoint(run))
    assert len(repr(policy)) < 300
    assert policy.identity[:12] in repr(policy)


def test_the_number_of_sampling_steps_can_be_chosen(run: Path) -> None:
    trained, one, again = (Policy.load(checkpoint(run), euler_steps=steps) for steps in (None, 1, 4))
    seen = observations(trained, 2)
    chunks = [policy.act(seen).chunk for policy in (trained, one, again)]
    assert torch.equal(chunks[0], chunks[2])
    assert torch.equal(chunks[0][..., 6], chunks[1][..., 6])
    assert not torch.allclose(chunks[0][..., :6], chunks[1][..., :6])
    with pytest.raises(UsageError, match="euler_steps"):
        Policy.load(checkpoint(run), euler_steps=0)


def test_other_observations_are_refused(run: Path) -> None:
    policy = Policy.load(checkpoint(run))
    good = observations(policy, 1)[0]
    with pytest.raises(ObsSpecMismatch, match="cameras"):
        policy.act([replace(good, images=tuple(np.zeros((2, 16, 16, 3), np.uint8)))])
    with pytest.raises(ObsSpecMismatch, match="cameras"):
        policy.act([with_images(good, tuple(image.astype(np.float32) for image in good.images))])
    with pytest.raises(ObsSpecMismatch, match="cameras"):
        policy.act([replace(good, images=good.images[:1])])
    with pytest.raises(ObsSpecMismatch, match="robot_state"):
        policy.act([replace(good, robot_state=np.zeros(8, np.float32))])
    with pytest.raises(ObsSpecMismatch, match="finite"):
        policy.act([replace(good, robot_state=np.full(9, np.nan, np.float32))])
    with pytest.raises(UsageError, match="checkpoint_latest takes none"):
        policy.act([good], goals=[good])
    with pytest.raises(UsageError, match="at least one"):
        policy.act([])


def test_a_new_instruction_is_embedded_as_the_trained_ones_were_and_said(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.load(checkpoint(run))
    good = observations(policy, 1)[0]
    known = dict(policy.language)
    nearest = sorted(known)[1]
    said = {**known, "go on, " + nearest: known[nearest] * 2}
    encoder = TextEncoder("toy", "1", LIBERO.language_width, lambda texts: np.stack([said[text] for text in texts]))
    monkeypatch.setattr(instructions, "encoder_of", lambda recorded: encoder)
    for _ in range(2):  # embedded, and warned of, once
        new = policy.act([replace(good, instruction="go on, " + nearest)])
    np.testing.assert_allclose(new.chunk, policy.act([replace(good, instruction=nearest)]).chunk, atol=1e-5)
    (record,) = caplog.records
    assert repr(nearest) in record.getMessage()
    assert "cosine 1.00" in record.getMessage()
    said |= {nearest: -known[nearest], "please": known[nearest]}  # other weights than those trained with
    with pytest.raises(StoreMissing, match="no longer gives"):
        policy.act([replace(good, instruction="please")])


def test_a_closed_policy_and_one_whose_encoder_is_not_here_refuse_what_they_were_not_trained_on(run: Path) -> None:
    for policy in (Policy.load(checkpoint(run), closed=True), Policy.load(checkpoint(run))):
        good = observations(policy, 1)[0]
        with pytest.raises(StoreMissing, match=r"'fly' .*put the"):
            policy.act([replace(good, instruction="fly")])


def test_what_is_no_policy_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a trained policy \(phase2_flow_matching, .*\), got the encoder"):
        Policy.load(checkpoint(run, "temporal_jepa"))
    with pytest.raises(StoreMissing, match="no checkpoint here"):
        Policy.load(tmp_path)


def test_a_damaged_policy_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint(run), tmp_path / "c")
    weights = tmp_path / "c/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(StoreCorrupt, match=r"model\.safetensors"):
        Policy.load(tmp_path / "c")


def test_the_untrained_control_has_the_same_interface(run: Path) -> None:
    store = Store.open(run.parent / "store")
    trained = Policy.load(checkpoint(run))
    control = Policy.untrained(trained.config, store, seed=1)
    assert control.obs_spec == trained.obs_spec
    assert control.language.keys() == trained.language.keys()
    seen = observations(trained, 2)
    state = torch.get_rng_state()
    one = Policy.untrained(trained.config, store, seed=1).act(seen).chunk
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, control.act(seen).chunk)
    assert one.shape == trained.act(seen).chunk.shape
    assert not torch.equal(one, Policy.untrained(trained.config, store, seed=2).act(seen).chunk)


def test_the_latency_benchmark_takes_a_run(run: Path) -> None:
    assert make_policy(Case(checkpoint=run), "cpu").identity == Policy.load(find_policy(run)).identity
