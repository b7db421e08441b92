"""`statevla train` as a user meets it: resume needs nothing else, says what differs, and refuses what misleads."""

import os
import signal
from pathlib import Path

import pytest

from statevla.runs import layout
from statevla.runs.state import read_state
from statevla.systems.table import find_system
from statevla.trainers.command import TrainFlags, run_training
from statevla.trainers.outcome import TrainSummary
from stores.errors import UsageError
from stores.progress import Progress
from tests.trainers.micro import SETTINGS, at_step, micro_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_store(tmp_path_factory.mktemp("command") / "store")


def command(told: list[str] | None = None, progress: Progress | None = None, **flags: object) -> TrainSummary:
    return run_training(
        TrainFlags(**flags),  # type: ignore[arg-type]
        [].append if told is None else told.append,
        progress,
    )


def start(store: Path, run: Path, *settings: str, progress: Progress | None = None, **flags: object) -> TrainSummary:
    given = {"phase": 1, "preset": "tiny", "overrides": (*SETTINGS, *settings), **flags}
    return command(None, progress, store=str(store), run=run, **given)


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    start(store, run, "training.max_steps=3")
    return run


def test_a_finished_run_says_so_and_trains_nothing(finished: Path) -> None:
    told: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    summary = command(told, resume=finished)
    assert (summary.steps, summary.stopped, summary.system) == (3, False, "temporal_jepa")
    assert told[-1].startswith("finished already, at step 3; nothing was trained")
    assert {p: p.stat().st_mtime_ns for p in before if p.name != ".lock"} == {
        p: time for p, time in before.items() if p.name != ".lock"
    }


def test_all_differences_are_listed_at_once(finished: Path) -> None:
    overrides = ("training.batch_size=4", "training.max_steps=9", "model.d_state=2", "training.phase2.gripper_weight=2")
    with pytest.raises(UsageError) as caught:
        command(resume=finished, overrides=overrides)
    message = str(caught.value)
    assert "model.d_state: 2 here, 4 there; training.batch_size: 4 here, 8 there" in message
    assert "max_steps" not in message
    assert "gripper_weight" not in message, "another system's option does not count"
    with pytest.raises(UsageError, match=r"model.embed_dim: 256 here, 32 there; model.encoder_depth: 12 here, 1 there"):
        command(resume=finished, preset="base")
    with pytest.raises(UsageError, match="leave --run out"):
        command(resume=finished, run=finished / "other")


def test_longer_only_by_saying_so_and_never_shorter(store: Path, tmp_path: Path) -> None:
    start(store, tmp_path, "training.max_steps=3")
    with pytest.raises(UsageError, match="already at step 3, the run is to end at 2"):
        command(resume=tmp_path, overrides=("training.max_steps=2",))
    assert command(resume=tmp_path, overrides=("training.max_steps=5",)).steps == 5
    assert command(resume=tmp_path).steps == 5, "the length is now what was said"


def test_a_policy_takes_its_encoders_model_and_refuses_an_unfinished_one(store: Path, tmp_path: Path) -> None:
    interrupt = at_step(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    first = start(store, tmp_path, "training.max_steps=4", "model.policy_layers=2", progress=interrupt)
    assert (first.steps, first.signal, first.to_dict()["stopped"]) == (2, signal.SIGINT, True)
    small = ("training.max_steps=1", "training.batch_size=8", "training.torch_threads=1")
    with pytest.raises(UsageError, match=r"stopped at step 2 of 4; .*--resume .*--unfinished-encoder"):
        command(phase=2, run=tmp_path, overrides=small)
    taken = command(phase=2, run=tmp_path, overrides=small, unfinished_encoder=True)
    config = read_state(taken.checkpoint).config
    assert (config["model"]["policy_layers"], config["model"]["embed_dim"]) == (2, 32)
    assert config["data"]["store"] == str(store), "the store of the encoder"


def test_a_jepa_needs_two_rows_a_batch(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"training.batch_size: temporal_jepa .*needs 2 rows or more, got 1"):
        start(store, tmp_path, "training.batch_size=1", "training.max_steps=1")


def test_a_last_validation_batch_of_one_row_counts_as_one_row(store: Path, tmp_path: Path) -> None:
    rows = 24
    one = start(store, tmp_path / "a", f"training.batch_size={rows - 1}", "training.max_steps=1")
    assert one.best is not None
    assert 0 < one.best["val_loss"] < 100


def test_wrong_widths_and_recipes_are_named(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model.robot_state_dim: 14, but .* has 9; this key only says it again"):
        start(store, tmp_path, "model.robot_state_dim=14")
    with pytest.raises(UsageError, match="expected one of documents, libero, systems, tabletop"):
        start(store, tmp_path, preset=None, recipe="kitchen")
    with pytest.raises(UsageError, match="says the preset too; leave out --preset tiny"):
        start(store, tmp_path, recipe="tabletop")
    unknown = tmp_path / "mine.yaml"
    unknown.write_text("systems: {temporal_jpea: {}}\n")
    with pytest.raises(UsageError, match=r"systems: expected some of temporal_jepa.*, got temporal_jpea"):
        start(store, tmp_path, preset=None, recipe=str(unknown))


@pytest.mark.resume
def test_a_recipe_trains_and_a_named_checkpoint_is_gone_on_from(store: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "about: a test\npreset: tiny\ntraining: {save_interval: 1}\n"
        "systems: {temporal_jepa: {training: {max_steps: 20}}, flow_matching: {training: {max_steps: 1}}}\n"
    )
    whole = start(store, tmp_path / "run", preset=None, recipe=str(recipe))
    assert whole.steps == 20
    folder = layout.checkpoints(tmp_path / "run", find_system("1").folder)
    last = read_state(whole.checkpoint).files["model.safetensors"]
    early = folder / layout.epoch_name(1)
    again = command(resume=early)
    assert again.began == read_state(early).step < 20
    assert read_state(again.checkpoint).files["model.safetensors"] == last
