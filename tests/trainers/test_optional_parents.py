"""A policy that takes a frozen encoder where its options want one: found, refused, kept in its own checkpoints."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from statevla.config.load import load_config
from statevla.config.world import FORETOLD
from statevla.data.loaders import iterate_once
from statevla.evaluators.state import evaluate_states
from statevla.policies.policy import Policy
from statevla.runs import layout
from statevla.runs.files import MODEL, read_tensors
from statevla.runs.migrations import MIGRATIONS
from statevla.runs.state import read_state
from statevla.systems.acting import Scene
from statevla.systems.system import Given
from statevla.systems.table import config_of, find_system, sections
from statevla.trainers.command import TrainFlags, plan, run_training
from statevla.trainers.parents import load_parent
from statevla.trainers.trainer import train
from stores.errors import StaleKey, UsageError
from stores.reader import Store
from tests.systems.build import SMALL
from tests.trainers.micro import SETTINGS, at_step, micro_store

SIZES = (*SETTINGS, *(text for text in SMALL if text.startswith("stamo.")), "stamo.tokens=3", "model.d_state=2")
MICRO = (
    *(text for text in SETTINGS if not text.startswith(("model.", "training.phase"))), "training.max_steps=3",
)  # fmt: skip
OF_A_STEM = ("stamo.stages", "stamo.stem_width")
COMPRESSED = (
    *(text for text in SMALL if text.startswith("stamo.") and not text.startswith(OF_A_STEM)), "stamo.features=parent",
)  # fmt: skip
WORLD = ("film.world_target=motion", "film.world_horizon=2")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and a run of each encoder."""
    root = tmp_path_factory.mktemp("parents")
    store = micro_store(root / "store")
    config = load_config("tiny", None, (*SIZES, "training.max_steps=1"), sections())
    for name in ("temporal_jepa", "stamo"):
        train(name, config, store, root / name)
    return root


def flags(
    root: Path, system: str, *settings: str, encoder: str | None = "stamo", run: Path | None = None
) -> TrainFlags:
    small = () if find_system(system).kind == "encoder" else (f"{system}.image_size=32",)
    return TrainFlags(
        system=system, store=str(root / "store"), preset="tiny", overrides=(*MICRO, *small, *settings), run=run,
        encoder=None if encoder is None else root / encoder,
    )  # fmt: skip


def latest(run: Path, system: str) -> Path:
    return layout.checkpoints(run, find_system(system).folder) / layout.LATEST


@pytest.mark.resume
@pytest.mark.parametrize("encoder", ["stamo", "temporal_jepa"])
@pytest.mark.parametrize(
    ("system", "options"), [("film", WORLD), ("goal", ("goal.fusion=state",))], ids=["film", "goal"]
)
def test_a_run_with_an_encoder_acts_resumes_and_stands_alone(
    root: Path, tmp_path: Path, system: str, options: tuple[str, ...], encoder: str
) -> None:
    wanted = flags(root, system, *options, encoder=encoder, run=tmp_path / "whole")
    job = plan(wanted)
    assert job.config.section(system).encoder == encoder, "as the checkpoint is"
    assert job.config.section("stamo").tokens == (3 if encoder == "stamo" else 2), "as the checkpoint has it"
    assert job.config.model.d_state == 2
    whole = run_training(wanted, [].append)
    state = read_state(whole.checkpoint)
    assert state.parent is not None
    assert state.parent["system"] == encoder
    assert set(state.config) == {"data", "model", "training", system} | ({"stamo"} if encoder == "stamo" else set())
    mine = read_tensors(whole.checkpoint, state, MODEL)
    theirs = read_tensors(latest(root / encoder, encoder), read_state(latest(root / encoder, encoder)), MODEL)
    prefix = "encoder.model."
    frozen = {name.removeprefix(prefix): value for name, value in mine.items() if name.startswith(prefix)}
    assert frozen
    assert all(torch.equal(value, theirs[name]) for name, value in frozen.items())
    assert not any(name.startswith(("decoder.", "target.", "predictor.")) for name in frozen)
    _acts_as_saved(root, whole.checkpoint, goal=system == "goal")
    interrupt = at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run_training(flags(root, system, *options, encoder=encoder, run=tmp_path / "part"), [].append, interrupt)
    again = run_training(TrainFlags(resume=tmp_path / "part"), [].append)
    assert read_state(again.checkpoint).files[MODEL] == state.files[MODEL]


def _acts_as_saved(root: Path, checkpoint: str, goal: bool) -> None:
    """The policy of a checkpoint gives the chunk that the model with those weights gives, to the bit."""
    state = read_state(checkpoint)
    policy = Policy.load(checkpoint)
    store = Store.open(root / "store")
    row, config = find_system(state.system), config_of(state, checkpoint)
    model = row.build(config, Given(store.spec, store.stats())).eval()
    model.load_state_dict(read_tensors(checkpoint, state, MODEL))
    batch = next(iter(iterate_once(store, "val", 4, 10)))
    scene = policy.actor.condition(batch.obs.language)
    there = torch.stack(tuple(frames.flip(0) for frames in batch.obs.images), 1) if goal else None
    seen = Scene(batch.obs.images, batch.obs.robot_state, scene, None, there)
    with torch.inference_mode():
        wanted = model.decide(seen).chunk
    assert torch.equal(policy.actor.act(seen).chunk, wanted)


def test_states_compressed_from_the_tokens_of_a_frozen_encoder(root: Path, tmp_path: Path) -> None:
    """They hold that encoder, resume to the bit, are evaluated, and serve a policy's world head in turn."""
    wanted = flags(root, "stamo", *COMPRESSED, encoder="temporal_jepa", run=tmp_path / "whole")
    whole = run_training(wanted, [].append)
    state = read_state(whole.checkpoint)
    assert state.parent is not None
    assert state.parent["system"] == "temporal_jepa"
    mine = read_tensors(whole.checkpoint, state, MODEL)
    jepa = latest(root / "temporal_jepa", "temporal_jepa")
    theirs = read_tensors(jepa, read_state(jepa), MODEL)
    frozen = {name: value for name, value in mine.items() if name.startswith("stem.encoder.")}
    assert frozen
    assert all(torch.equal(value, theirs[name.removeprefix("stem.")]) for name, value in frozen.items())
    assert not any(name.startswith("stem.") for name in mine.keys() - frozen.keys())
    interrupt = at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run_training(
        flags(root, "stamo", *COMPRESSED, encoder="temporal_jepa", run=tmp_path / "part"), [].append, interrupt
    )
    again = run_training(TrainFlags(resume=tmp_path / "part"), [].append)
    assert read_state(again.checkpoint).files[MODEL] == state.files[MODEL]

    evaluate_states(Path(whole.checkpoint), Store.open(root / "store"), "cpu")
    on_it = _with(flags(root, "film", *WORLD, run=tmp_path / "film"), encoder=Path(whole.checkpoint))
    film = run_training(on_it, [].append)
    assert set(read_state(film.checkpoint).config) == {"data", "model", "training", "film", "stamo"}
    _acts_as_saved(root, film.checkpoint, goal=False)


def test_the_worlds_targets_are_of_unit_size_and_the_metrics_tell_of_them(root: Path, tmp_path: Path) -> None:
    summary = run_training(flags(root, "film", *WORLD, run=tmp_path / "run"), [].append)
    lines = [json.loads(line) for line in layout.metrics(tmp_path / "run", "film").read_text().splitlines()]
    validated = next(line for line in lines if line["kind"] == "val")
    assert {"world_mse", "world_l1", "world_copy_mse", "world_copy_ratio", "world_rows"} <= set(validated)
    assert 0 < validated["world_rows"] < 1, "the last two steps of a segment have no observation two steps on"
    tensors = read_tensors(summary.checkpoint, read_state(summary.checkpoint), MODEL)
    assert not torch.equal(tensors["world.mean"], torch.zeros_like(tensors["world.mean"]))


def refused(wanted: TrainFlags) -> str:
    with pytest.raises(UsageError) as caught:
        run_training(wanted, [].append)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_encoder_that_nothing_wants(root: Path, tmp_path: Path) -> None:
    said = refused(flags(root, "film", run=tmp_path))
    targets = f"world_target={' or '.join(FORETOLD)}"
    assert said.startswith(f"film takes a state encoder with film.{targets} alone, and is configured")
    said = refused(flags(root, "goal", run=tmp_path))
    assert said.startswith(f"goal takes a state encoder with goal.fusion=state or goal.{targets} alone")
    said = refused(flags(root, "stamo", encoder="temporal_jepa", run=tmp_path))
    assert said.startswith("stamo takes a state encoder with stamo.features=parent alone, and is configured otherwise")
    said = refused(flags(root, "temporal_jepa", run=tmp_path))
    assert said == "--encoder is for systems that take one; temporal_jepa trains one"
    config = load_config("tiny", None, MICRO, sections())
    with pytest.raises(UsageError, match=f"film takes a state encoder with film.{targets} alone"):
        train("film", config, root / "store", tmp_path, encoder_checkpoint=latest(root / "stamo", "stamo"))


def test_a_world_head_without_its_encoder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(flags(root, "film", *WORLD, encoder=None))
    assert said == (
        "no checkpoint of temporal_jepa or stamo of this store below runs/; "
        "run `statevla train --system temporal_jepa` first"
    )
    said = refused(flags(root, "film", *WORLD, "film.encoder=stamo", encoder=None))
    assert said == "no checkpoint of stamo of this store below runs/; run `statevla train --system stamo` first"
    config = load_config("tiny", None, (*MICRO, *WORLD), sections())
    complaint = (
        r"film needs the state encoder of a checkpoint of temporal_jepa, which film\.world_target=state or motion"
    )
    with pytest.raises(UsageError, match=complaint):
        train("film", config, root / "store", tmp_path / "run")


def test_the_only_encoder_below_runs_is_meant_and_several_are_listed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/one").symlink_to(root / "stamo")
    job = plan(flags(root, "film", *WORLD, encoder=None))
    assert (job.parent, job.config.section("film").encoder) == (latest(Path("runs/one"), "stamo"), "stamo")
    assert job.run == Path("runs/one")
    (tmp_path / "runs/two").symlink_to(root / "temporal_jepa")
    assert "several checkpoints of temporal_jepa or stamo of this store" in refused(
        flags(root, "film", *WORLD, encoder=None)
    )
    job = plan(flags(root, "film", *WORLD, "film.encoder=temporal_jepa", encoder=None))
    assert job.parent == latest(Path("runs/two"), "temporal_jepa")


def test_an_encoder_of_the_wrong_kind_or_store(root: Path, tmp_path: Path) -> None:
    said = refused(
        flags(root, "film", *WORLD, "film.encoder=temporal_jepa", encoder=f"stamo/checkpoints/stamo/{layout.LATEST}")
    )
    assert "film needs a state encoder of temporal_jepa, got a checkpoint of stamo; " in said
    assert said.endswith("or name another checkpoint, or set film.encoder=stamo")
    config = load_config("tiny", None, MICRO, sections())
    film = train("film", config, root / "store", tmp_path / "film")
    wanted = flags(root, "film", *WORLD, encoder=None, run=tmp_path / "other")
    said = refused(_with(wanted, encoder=Path(film.checkpoint)))
    assert "film needs a state encoder of temporal_jepa, got a checkpoint of film" in said
    other = micro_store(tmp_path / "store", seed=1)
    job = plan(flags(root, "film", *WORLD))
    with pytest.raises(StaleKey, match=r"was trained on the store with content .*; train stamo again"):
        load_parent(job.system, job.config, latest(root / "stamo", "stamo"), Store.open(other))


def _with(given: TrainFlags, **changes: Any) -> TrainFlags:
    return TrainFlags(**{**given.__dict__, **changes})


def test_another_encoder_than_the_checkpoints_is_refused_by_key(root: Path) -> None:
    said = refused(flags(root, "film", *WORLD, "stamo.tokens=2", "stamo.learning_rate=3"))
    assert "both share one encoder, but stamo.tokens: 2 here, 3 there; leave these keys out" in said


def test_a_horizon_that_no_segment_holds(root: Path, tmp_path: Path) -> None:
    said = refused(flags(root, "film", *WORLD, "film.world_horizon=10", run=tmp_path))
    assert said.startswith("world_horizon: no segment of the train split holds an observation 10 steps after another")
    assert said.endswith("set a smaller one, or ingest with a larger --window")


def test_policies_of_format_11_took_none() -> None:
    config = {"data": {}, "film": {"hidden": 8}}
    tree = MIGRATIONS[11]({"config": config})
    assert tree["config"]["film"] == {
        "hidden": 8, "encoder": "temporal_jepa", "world_target": "none", "world_weight": 0.1, "world_horizon": None,
        "world_shuffled": False,
    }  # fmt: skip
    assert tree["config"]["data"] == {"labelled_share": 1.0, "unlabelled": "leave_out"}
    assert "act" not in tree["config"]
    assert config["film"] == {"hidden": 8}
