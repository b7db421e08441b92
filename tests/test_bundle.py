"""The policy bundle: acts like the model in the checkpoint, knows its limits, and refuses what does not fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.observation import Observation, ObsSpec
from statevla.policies.policy import Policy
from statevla.runs.layout import checkpoints
from statevla.systems.table import find_system
from statevla.trainers.trainer import train
from stores.errors import ObsSpecMismatch, StoreCorrupt, StoreMissing, UsageError
from stores.reader import Store
from tests.trainers.micro import micro_config, micro_store


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
            images=rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8),
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
    assert policy.manifest_hash == store.manifest_hash
    assert policy.language.keys() == set(store.manifest.instructions)
    for text, vector in policy.language.items():
        np.testing.assert_array_equal(vector, store.language.vector(text))
    shift, scale = store.stats().affine("action")
    np.testing.assert_array_equal(policy.model.standardize_action.shift.numpy(), shift.astype(np.float32))
    np.testing.assert_array_equal(policy.model.standardize_action.scale.numpy(), scale.astype(np.float32))


def test_acting_is_a_pure_function_of_observations_and_seed(run: Path) -> None:
    policy = Policy.load(checkpoint(run))
    seen = observations(policy, 3)
    chunk = policy.act(seen, seed=4)
    assert chunk.dtype == np.float32
    assert chunk.shape == (3, policy.config.model.action_seq_len, 7)
    assert set(np.unique(chunk[..., 6])) <= {-1.0, 1.0}
    np.testing.assert_array_equal(chunk, policy.act(seen, seed=4))
    np.testing.assert_array_equal(chunk, Policy.load(checkpoint(run)).act(seen, seed=4))
    assert not np.array_equal(chunk, policy.act(seen, seed=5))
    direct = policy.model.act(policy.observe(seen), torch.Generator().manual_seed(4))
    np.testing.assert_allclose(chunk, direct.numpy(), rtol=1e-5, atol=1e-6)


def test_the_number_of_sampling_steps_can_be_chosen(run: Path) -> None:
    trained, one, again = (Policy.load(checkpoint(run), euler_steps=steps) for steps in (None, 1, 4))
    seen = observations(trained, 2)
    np.testing.assert_array_equal(trained.act(seen), again.act(seen))
    np.testing.assert_array_equal(trained.act(seen)[..., 6], one.act(seen)[..., 6])
    assert not np.allclose(trained.act(seen)[..., :6], one.act(seen)[..., :6])
    with pytest.raises(UsageError, match="euler_steps"):
        Policy.load(checkpoint(run), euler_steps=0)


def test_other_observations_are_refused(run: Path) -> None:
    policy = Policy.load(checkpoint(run))
    good = observations(policy, 1)[0]
    with pytest.raises(ObsSpecMismatch, match="image_size"):
        policy.act([replace(good, images=np.zeros((2, 16, 16, 3), np.uint8))])
    with pytest.raises(ObsSpecMismatch, match="images"):
        policy.act([with_images(good, good.images.astype(np.float32))])
    with pytest.raises(ObsSpecMismatch, match="images"):
        policy.act([replace(good, images=good.images[:1])])
    with pytest.raises(ObsSpecMismatch, match="robot_state"):
        policy.act([replace(good, robot_state=np.zeros(8, np.float32))])
    with pytest.raises(ObsSpecMismatch, match="finite"):
        policy.act([replace(good, robot_state=np.full(9, np.nan, np.float32))])
    with pytest.raises(StoreMissing, match=r"'fly' .*put the"):
        policy.act([replace(good, instruction="fly")])
    with pytest.raises(UsageError, match="at least one"):
        policy.act([])


def test_what_is_no_policy_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a trained policy \\(phase2_flow_matching\\), got the encoder"):
        Policy.load(checkpoint(run, "temporal_jepa"))
    with pytest.raises(StoreMissing, match="no checkpoint here"):
        Policy.load(tmp_path)


def test_a_damaged_policy_is_refused(run: Path, tmp_path: Path) -> None:
    import shutil

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
    one = Policy.untrained(trained.config, store, seed=1).act(seen)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(one, control.act(seen))
    assert one.shape == trained.act(seen).shape
    assert not np.array_equal(one, Policy.untrained(trained.config, store, seed=2).act(seen))
