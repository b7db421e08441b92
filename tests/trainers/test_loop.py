"""The loop on a tiny store: it learns, resumes to the bit, stops on a signal, and refuses what does not fit."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from statevla.runs import layout
from statevla.runs.listing import list_runs
from statevla.runs.metrics import plot_losses, read_metrics
from statevla.runs.state import read_state
from statevla.systems.find import find_policy
from statevla.systems.table import find_system
from statevla.systems.temporal_jepa import JepaModel
from statevla.trainers.outcome import NonFiniteLoss, TrainSummary
from statevla.trainers.trainer import train
from stores.errors import StaleKey, StoreCorrupt, StoreMissing, UsageError
from tests.trainers.micro import at_step, micro_config, micro_store

Trained = tuple[Path, TrainSummary, TrainSummary]

JEPA, FLOW = "temporal_jepa", "flow_matching"

STEPS = 18  # a little over two epochs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_store(tmp_path_factory.mktemp("micro") / "store")


def folder(run: Path, system: str = JEPA) -> Path:
    return layout.checkpoints(run, find_system(system).folder)


def records(run: Path, system: str = JEPA) -> list[dict[str, Any]]:
    """Metrics without what depends on the clock."""
    lines = layout.metrics(run, find_system(system).folder).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("samples_per_s", "data_wait")} for line in lines]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainSummary, TrainSummary]:
    """Both phases, uninterrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    config = micro_config(f"training.max_steps={STEPS}", "training.save_interval=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("statevla.trainers.run.plot_losses", plot_losses)
        first = train(JEPA, config, store, run)
        return run, first, train(FLOW, config, store, run, encoder_checkpoint=folder(run) / "checkpoint_latest")


def test_a_run_leaves_checkpoints_metrics_and_a_picture(trained: Trained) -> None:
    run, first, second = trained
    for system, summary in ((JEPA, first), (FLOW, second)):
        assert summary.to_dict().keys() == {"run", "system", "steps", "best", "checkpoint", "stopped"}
        assert (summary.steps, summary.stopped) == (STEPS, False)
        names = {path.name for path in folder(run, system).iterdir()}
        assert {"checkpoint_latest", "checkpoint_best", "checkpoint_epoch_1", "checkpoint_epoch_2"} <= names
        assert layout.losses(run, find_system(system).folder).read_bytes()[:4] == b"\x89PNG"
        lines = records(run, system)
        assert [r["step"] for r in lines if r["kind"] == "train"] == list(range(1, STEPS + 1))
        losses = {r["step"]: r["loss"] for r in lines if r["kind"] == "val"}
        assert summary.best == {"step": min(losses, key=lambda s: losses[s]), "val_loss": min(losses.values())}
        assert read_state(folder(run, system) / "checkpoint_best").step == summary.best["step"]
        assert read_state(summary.checkpoint).best == summary.best
    assert {"jepa_mse", "jepa_variance", "jepa_covariance", "z_std", "z_rank"} <= set(records(run)[-1])
    assert {"action_loss", "pos_rot_loss", "gripper_loss"} <= set(records(run, FLOW)[-1])


def test_a_signal_that_comes_again_does_not_end_the_last_save(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        monkeypatch.setattr("statevla.trainers.run.plot_losses", lambda *_: interrupt())
        stopped = train(JEPA, micro_config(f"training.max_steps={STEPS}"), store, tmp_path,
                        progress=at_step(3, interrupt))  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (stopped.steps, stopped.stopped, came) == (3, True, [])


def test_going_back_sets_the_checkpoints_of_later_steps_aside(trained: Trained, store: Path, tmp_path: Path) -> None:
    whole, summary, _ = trained
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    back = folder(run) / "checkpoint_epoch_1"
    step, best = read_state(back).step, summary.best
    assert best is not None
    assert best["step"] > step
    told: list[str] = []
    config = micro_config(f"training.max_steps={STEPS}")
    for _ in range(2):
        train(JEPA, config, store, run, resume=back, progress=lambda event: told.append(event.message))
    names = {path.name: read_state(path).step for path in folder(run).glob("checkpoint_*")}
    assert names[f"checkpoint_best_before_{step}"] == names[f"checkpoint_best_before_{step}_2"] == best["step"]
    assert names[f"checkpoint_epoch_2_before_{step}"] == 2 * step
    assert names["checkpoint_best"] == best["step"], "found again"
    assert "checkpoint_epoch_2" not in names
    assert any(text.startswith(f"checkpoint_best_before_{step}: ") for text in told)
    assert [(row.system, row.state) for row in list_runs(run)] == [(JEPA, "finished"), (FLOW, "finished")]
    assert find_policy(run) == folder(run, FLOW) / "checkpoint_latest"


@pytest.mark.resume
@pytest.mark.parametrize("system", [JEPA, FLOW])
@pytest.mark.parametrize(("stop_at", "threads"), [(3, 3), (11, 1)])
def test_stop_and_resume_is_the_uninterrupted_run(
    trained: Trained,
    store: Path,
    tmp_path: Path,
    system: str,
    stop_at: int,
    threads: int,
) -> None:
    whole, _, _ = trained
    encoder = folder(whole) / "checkpoint_latest" if system == FLOW else None
    config = micro_config(f"training.max_steps={STEPS}", f"data.loader_threads={threads}")
    stopped = train(system, config, store, tmp_path, encoder_checkpoint=encoder, progress=at_step(stop_at, interrupt))
    assert (stopped.steps, stopped.stopped) == (stop_at, True)
    config = micro_config(f"training.max_steps={STEPS}", f"data.loader_threads={4 - threads}", "data.cache_gib=0")
    resumed = train(system, config, store, tmp_path, resume=True)
    assert resumed.steps == STEPS
    assert records(tmp_path, system) == records(whole, system)
    mine, theirs = (read_state(folder(run, system) / "checkpoint_latest") for run in (tmp_path, whole))
    assert mine.files == theirs.files  # sha256 of all weights and moments
    assert mine.rng == theirs.rng


@pytest.mark.resume
def test_a_run_whose_metrics_end_in_a_torn_line_goes_on(trained: Trained, store: Path, tmp_path: Path) -> None:
    whole, _, _ = trained
    config = micro_config(f"training.max_steps={STEPS}")
    train(JEPA, config, store, tmp_path, progress=at_step(3, interrupt))
    with layout.metrics(tmp_path, find_system(JEPA).folder).open("a") as file:
        file.write('{"kind": "train", "step": 4, "lo')
    assert train(JEPA, config, store, tmp_path, resume=True).steps == STEPS
    assert records(tmp_path) == records(whole)


def test_a_line_of_metrics_that_is_whole_and_no_record_is_named(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "kind": "val"}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(StoreCorrupt, match=r"metrics\.jsonl: line 2: not JSON"):
        read_metrics(metrics)
    metrics.write_text('{"step": 1, "kind": "val"}\n[2]\n')
    with pytest.raises(StoreCorrupt, match=r"metrics\.jsonl: line 2: expected an object, got list"):
        read_metrics(metrics)


def test_losses_fall(store: Path, tmp_path: Path) -> None:
    train(JEPA, micro_config("training.max_steps=2"), store, tmp_path)
    config = micro_config(
        "training.max_steps=240", "training.phase2.learning_rate=5e-3", "training.validate_every_steps=120"
    )
    train(FLOW, config, store, tmp_path, encoder_checkpoint=folder(tmp_path) / "checkpoint_latest")
    losses = [r["loss"] for r in records(tmp_path, FLOW) if r["kind"] == "train"]
    assert sum(losses[-20:]) < 0.85 * sum(losses[:20])


def test_phase_2_keeps_the_encoder_as_phase_1_left_it(trained: Trained) -> None:
    from safetensors.torch import load_file

    run, _, _ = trained
    one = load_file(folder(run) / "checkpoint_latest/model.safetensors")
    two = load_file(folder(run, FLOW) / "checkpoint_latest/model.safetensors")
    names = [name for name in two if name.startswith("encoder.")]
    assert names
    assert all(torch.equal(one[name], two[name]) for name in names)
    state = read_state(folder(run, FLOW) / "checkpoint_latest")
    assert state.parent == {
        "system": JEPA,
        "checkpoint": "checkpoint_latest",
        "step": STEPS,
        "sha256": read_state(folder(run) / "checkpoint_latest").files["model.safetensors"]["sha256"],
    }


def test_what_a_resumed_run_may_not_change(trained: Trained, store: Path, tmp_path: Path) -> None:
    run, _, _ = trained
    with pytest.raises(UsageError, match=r"training.seed: 3 here, 0 there; training.batch_size: 4 here, 8 there"):
        train(JEPA, micro_config("training.batch_size=4", "training.seed=3"), store, run, resume=True)
    with pytest.raises(UsageError, match="nothing to resume"):
        train(JEPA, micro_config(), store, tmp_path, resume=True)
    with pytest.raises(UsageError, match="exists already; go on from it with --resume"):
        train(JEPA, micro_config(), store, run)


def test_checkpoints_of_another_store_are_stale(trained: Trained, tmp_path: Path) -> None:
    run, _, _ = trained
    other = micro_store(tmp_path / "other", seed=5)
    with pytest.raises(StaleKey, match="was trained on the store with content"):
        train(JEPA, micro_config(f"training.max_steps={STEPS + 2}"), other, run, resume=True)
    with pytest.raises(StaleKey, match="was trained on the store with content"):
        train(FLOW, micro_config(), other, tmp_path / "run", encoder_checkpoint=folder(run) / "checkpoint_latest")


def test_statistics_are_needed_and_must_be_of_this_store(tmp_path: Path) -> None:
    from stores.statistics import save_stats
    from tests.stores.make_store import make_episodes, train_statistics

    path = micro_store(tmp_path / "store", stats=False)
    with pytest.raises(StoreMissing, match="statevla stats"):
        train(JEPA, micro_config(), path, tmp_path / "run")
    save_stats(path, "0" * 64, train_statistics(make_episodes(8, 12, 32, 0)))
    with pytest.raises(StaleKey, match="statevla stats"):
        train(JEPA, micro_config(), path, tmp_path / "run")


def test_phase_2_needs_a_phase_1_encoder_that_fits(trained: Trained, store: Path, tmp_path: Path) -> None:
    run, _, _ = trained
    with pytest.raises(UsageError, match="statevla train --system temporal_jepa"):
        train(FLOW, micro_config(), store, tmp_path)
    with pytest.raises(UsageError, match="needs a state encoder of temporal_jepa, got a checkpoint of flow_matching"):
        train(FLOW, micro_config(), store, tmp_path, encoder_checkpoint=folder(run, FLOW) / "checkpoint_latest")
    with pytest.raises(UsageError, match=r"model.embed_dim: 64 here, 32 there; model.d_state: 8 here, 4 there"):
        train(
            FLOW,
            micro_config("model.embed_dim=64", "model.d_state=8"),
            store,
            tmp_path,
            encoder_checkpoint=folder(run) / "checkpoint_latest",
        )


def test_a_loss_that_is_not_finite_stops_the_run_and_spoils_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = micro_config("training.max_steps=9", "training.save_interval=1")
    train(JEPA, micro_config("training.max_steps=6"), store, tmp_path)
    latest = folder(tmp_path) / "checkpoint_latest"
    before = {path.name: path.read_bytes() for path in latest.iterdir()}
    original = JepaModel.loss
    calls = []

    def spoiled(self: JepaModel, terms: Any) -> Any:
        parts = original(self, terms)
        calls.append(parts)
        return parts if len(calls) < 2 else type(parts)(parts.total * torch.nan, parts.parts, parts.weight)

    monkeypatch.setattr(JepaModel, "loss", spoiled)
    with pytest.raises(NonFiniteLoss, match="at step 8 of temporal_jepa"):
        train(JEPA, config, store, tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in latest.iterdir()} == before


def test_devices(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'gpu0' is no torch device"):
        train(JEPA, micro_config("training.device=gpu0"), store, tmp_path)


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    store, runs = micro_store(tmp_path / "store"), tmp_path / "runs"
    runs.mkdir()
    too_large = micro_config("training.batch_size=100000")
    with pytest.raises(UsageError, match="100000"):
        train("temporal_jepa", too_large, store, runs / "refused")
    assert list(runs.iterdir()) == []
    (runs / "mine").mkdir()  # what was there before stays
    with pytest.raises(UsageError, match="100000"):
        train("temporal_jepa", too_large, store, runs / "mine")
    assert list(runs.rglob("*")) == [runs / "mine"]
