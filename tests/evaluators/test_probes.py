"""Probes read what is there, on episodes that they did not see, and tell it from what is not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from statevla.config.load import load_config
from statevla.data.loaders import iterate_once
from statevla.evaluators.probes import (
    Frames,
    explained,
    main_components,
    minus_episode_means,
    probe,
    probe_checkpoint,
    read_frames,
    ridge,
    rollouts,
    tell_instruction,
)
from statevla.evaluators.state import load_encoder, state_of
from statevla.systems.table import sections
from statevla.systems.temporal_jepa import JepaModel
from statevla.trainers.trainer import train
from stores.errors import UsageError
from stores.reader import Store
from tests.models.build import micro
from tests.systems.test_stamo import MICRO
from tests.trainers.micro import SETTINGS, config_of_all, micro_store
from tests.trainers.together import checkpoint


def frames(seed: int, episodes: int = 6, steps: int = 30, width: int = 8) -> Frames:
    """z holds: a number that moves, a number of each episode, and the task; ``noise`` is nowhere in it."""
    rng = np.random.default_rng(seed)
    episode = np.repeat(np.arange(episodes), steps)
    moving = rng.normal(size=(episodes * steps, 1))
    still = rng.normal(size=(episodes, 1))[episode]
    task = (episode % 3).astype(np.int64)
    z = np.concatenate([moving, still, np.eye(3)[task], 0.3 * rng.normal(size=(len(episode), width - 5))], axis=1)
    values = {"moving": 3 * moving + 1, "still": still - 2, "noise": rng.normal(size=moving.shape),
              "constant": np.ones_like(moving)}  # fmt: skip
    frame = np.tile(np.arange(steps), episodes)
    return Frames(
        z, z, values, episode, frame, task, np.zeros((len(z), 10, 7), np.float32), np.zeros((len(z), 10), bool)
    )


def test_ridge_is_least_squares_of_the_augmented_system() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 5)), rng.normal(size=(20, 2))
    augmented = np.concatenate([x, np.sqrt(0.7) * np.eye(5)]), np.concatenate([y, np.zeros((5, 2))])
    np.testing.assert_allclose(ridge(x, y, 0.7), np.linalg.lstsq(*augmented, rcond=None)[0], atol=1e-12)


def test_what_is_in_the_state_is_read_and_what_is_not_is_not() -> None:
    train_, test = frames(0), frames(1)
    assert probe(train_, test, "moving").r2 > 0.95
    assert probe(train_, test, "moving").within > 0.95
    assert probe(train_, test, "still").r2 > 0.9
    assert abs(probe(train_, test, "still").within) < 1e-6  # it never moves in an episode: there is nothing to explain
    assert probe(train_, test, "noise").r2 < 0.1
    assert probe(train_, test, "constant") == probe(train_, test, "constant").__class__(0.0, 0.0, 0)
    assert tell_instruction(train_, test) == (1.0, 1 / 3)


def test_explained_variance_by_hand() -> None:
    wanted = np.array([[0.0], [2.0]])
    assert explained(wanted, wanted) == 1
    assert explained(wanted, np.ones((2, 1))) == 0
    assert explained(wanted, wanted + 1) == 0
    assert minus_episode_means(np.array([[1.0], [3.0], [10.0]]), np.array([4, 4, 9])).ravel().tolist() == [-1, 1, 0]


def test_main_components() -> None:
    z = np.array([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]])
    places, shares = main_components(z)
    assert shares == pytest.approx((0.9, 0.1))
    assert np.abs(places[:, 0]).tolist() == pytest.approx([3, 3, 0, 0])


def test_a_rollout_by_hand() -> None:
    """A predictor that adds the first action: right with the actions taken, wrong with others; never over an end."""
    model = JepaModel(micro())
    width = 4

    class Adds(torch.nn.Module):
        def forward(self, z: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
            return z + action[:, :1]

    model.predictor = Adds()  # type: ignore[assignment]
    rng = np.random.default_rng(0)
    step = rng.normal(size=(12,)).astype(np.float32)
    z = np.concatenate([np.cumsum(np.r_[0, step[:5]]), np.cumsum(np.r_[0, step[6:11]])])[:, None].repeat(width, axis=1)
    actions = np.zeros((12, 2, 7), np.float32)
    for k in range(2):
        actions[: 12 - k, k, 0] = step[k:]
    some = Frames(z.astype(np.float64), z.astype(np.float64), {}, np.repeat([0, 1], 6), np.tile(np.arange(6), 2),
                  np.zeros(12, np.int64), actions, np.zeros((12, 2), bool))  # fmt: skip
    one, two = rollouts(model, some, torch.device("cpu"))
    assert (one.steps, one.frames, two.steps, two.frames) == (1, 10, 2, 8)
    assert one.predicted < 1e-10
    assert two.predicted < 1e-10
    assert one.copied == pytest.approx(float(np.mean([s**2 for s in (*step[:5], *step[6:11])])), rel=1e-5)
    assert one.shuffled > 0.1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("probes")
    store = micro_store(root / "store")
    config = config_of_all("training.max_steps=2", f"data.store={store}")
    train("temporal_jepa", config, store, root / "run")
    train("film", config, store, root / "run")
    return root / "run"


def test_probes_of_a_run_from_the_command_line(run: Path) -> None:
    from cli import app

    result = CliRunner().invoke(app, ["eval", "probes", "--checkpoint", str(run), "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["step"] == 2
    assert set(found["probes"]) == {"robot_state", "action", "progress"}
    assert [each["steps"] for each in found["rollouts"]] == [1, 2, 4, 8]
    saved = json.loads((run / "eval/probes-phase1_temporal_jepa-checkpoint_latest/probes.json").read_text())
    assert saved["probes"] == found["probes"]
    assert "dots" not in found
    assert {len(dot) for dot in saved["dots"]} == {4}


def test_states_of_a_stamo_are_probed_all_tokens_of_them(tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    config = load_config("tiny", None, (*SETTINGS, *MICRO, "training.max_steps=1"), sections())
    train("stamo", config, store, tmp_path / "run")
    opened = Store.open(store)
    found = probe_checkpoint(checkpoint(tmp_path / "run", "stamo"), opened)
    assert (found.system, found.rollouts) == ("stamo", ())
    assert set(found.probes) == {"robot_state", "action", "progress"}
    model = load_encoder(tmp_path / "run", opened, torch.device("cpu")).model
    batch = next(iter(iterate_once(opened, "val", 4, 1)))
    with torch.no_grad():
        z = state_of(model, batch.obs)
    assert z.shape == (4, 2 * 2 * 8)
    most = 10**6
    read = read_frames(model, model, opened, "val", config, most, torch.device("cpu"))
    row = np.flatnonzero((read.episode == int(batch.episode[1])) & (read.frame == int(batch.frame[1])))
    np.testing.assert_allclose(read.z[row[0]], z[1].numpy(), rtol=1e-4, atol=1e-5)


def test_an_untrained_encoder_is_another_and_a_system_without_a_state_is_refused(run: Path) -> None:
    folder = checkpoint(run, "temporal_jepa")
    store = Store.open(json.loads((folder / "state.json").read_text())["config"]["data"]["store"])
    trained, random = (probe_checkpoint(folder, store, random=untrained) for untrained in (False, True))
    assert random.step == 0
    assert trained.z_std != random.z_std
    with pytest.raises(UsageError, match="film has no state encoder to probe"):
        probe_checkpoint(checkpoint(run, "film"), store)
