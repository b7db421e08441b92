"""The loop on a tiny store: it learns, resumes to the bit, stops on a signal, and refuses what does not fit."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from statevla.runs.files import PHASE_FOLDERS, read_state
from statevla.trainers import trainer as loop
from statevla.trainers.trainer import NonFiniteLoss, TrainSummary, train
from stores.errors import StaleKey, StoreMissing, UsageError
from tests.trainers.micro import at_step, micro_config, micro_store

Trained = tuple[Path, TrainSummary, TrainSummary]

STEPS = 18  # a little over two epochs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_store(tmp_path_factory.mktemp("micro") / "store")


def folder(run: Path, phase: int = 1) -> Path:
    return run / "checkpoints" / PHASE_FOLDERS[phase]


def records(run: Path, phase: int = 1) -> list[dict[str, Any]]:
    """Metrics without what depends on the clock."""
    lines = (run / f"metrics_phase{phase}.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "samples_per_s"} for line in lines]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainSummary, TrainSummary]:
    """Both phases, uninterrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    config = micro_config(f"training.max_steps={STEPS}", "training.save_interval=1")
    first = train(1, config, store, run)
    return run, first, train(2, config, store, run, encoder_checkpoint=folder(run) / "checkpoint_latest")


def test_a_run_leaves_checkpoints_metrics_and_a_picture(trained: Trained) -> None:
    run, first, second = trained
    for phase, summary in ((1, first), (2, second)):
        assert summary.to_dict().keys() == {"run", "phase", "steps", "best", "checkpoint"}
        assert (summary.steps, summary.stopped) == (STEPS, False)
        names = {path.name for path in folder(run, phase).iterdir()}
        assert {"checkpoint_latest", "checkpoint_best", "checkpoint_epoch_1", "checkpoint_epoch_2"} <= names
        assert (run / f"losses_phase{phase}.png").read_bytes()[:4] == b"\x89PNG"
        lines = records(run, phase)
        assert [r["step"] for r in lines if r["kind"] == "train"] == list(range(1, STEPS + 1))
        losses = {r["step"]: r["loss"] for r in lines if r["kind"] == "val"}
        assert summary.best == {"step": min(losses, key=lambda s: losses[s]), "val_loss": min(losses.values())}
        assert read_state(folder(run, phase) / "checkpoint_best").step == summary.best["step"]
        assert read_state(summary.checkpoint).best == summary.best
    assert {"mse", "variance", "covariance", "z_std", "z_rank"} <= set(records(run)[-1])


@pytest.mark.parametrize("phase", [1, 2])
@pytest.mark.parametrize(("stop_at", "threads"), [(3, 3), (11, 1)])
def test_stop_and_resume_is_the_uninterrupted_run(
    trained: Trained,
    store: Path,
    tmp_path: Path,
    phase: int,
    stop_at: int,
    threads: int,
) -> None:
    whole, _, _ = trained
    encoder = folder(whole) / "checkpoint_latest" if phase == 2 else None
    config = micro_config(f"training.max_steps={STEPS}", f"data.loader_threads={threads}")
    stopped = train(phase, config, store, tmp_path, encoder_checkpoint=encoder, progress=at_step(stop_at, interrupt))
    assert (stopped.steps, stopped.stopped) == (stop_at, True)
    config = micro_config(f"training.max_steps={STEPS}", f"data.loader_threads={4 - threads}", "data.cache_gib=0")
    resumed = train(phase, config, store, tmp_path, resume=True)
    assert resumed.steps == STEPS
    assert records(tmp_path, phase) == records(whole, phase)
    mine, theirs = (read_state(folder(run, phase) / "checkpoint_latest") for run in (tmp_path, whole))
    assert mine.files == theirs.files  # sha256 of all weights and moments
    assert mine.rng == theirs.rng


def test_losses_fall(store: Path, tmp_path: Path) -> None:
    train(1, micro_config("training.max_steps=2"), store, tmp_path)
    config = micro_config(
        "training.max_steps=240", "training.phase2.learning_rate=5e-3", "training.validate_every_steps=120"
    )
    train(2, config, store, tmp_path, encoder_checkpoint=folder(tmp_path) / "checkpoint_latest")
    losses = [r["loss"] for r in records(tmp_path, 2) if r["kind"] == "train"]
    assert sum(losses[-20:]) < 0.85 * sum(losses[:20])


def test_phase_2_keeps_the_encoder_as_phase_1_left_it(trained: Trained) -> None:
    from safetensors.torch import load_file

    run, _, _ = trained
    one = load_file(folder(run, 1) / "checkpoint_latest/model.safetensors")
    two = load_file(folder(run, 2) / "checkpoint_latest/model.safetensors")
    names = [name for name in two if name.startswith("encoder.")]
    assert names
    assert all(torch.equal(one[name], two[name]) for name in names)
    state = read_state(folder(run, 2) / "checkpoint_latest")
    assert state.encoder == {
        "checkpoint": "checkpoint_latest",
        "step": STEPS,
        "sha256": read_state(folder(run, 1) / "checkpoint_latest").files["model.safetensors"]["sha256"],
    }


def test_what_a_resumed_run_may_not_change(trained: Trained, store: Path, tmp_path: Path) -> None:
    run, _, _ = trained
    with pytest.raises(UsageError, match=r"training.batch_size: 4 here, 8 in"):
        train(1, micro_config("training.batch_size=4"), store, run, resume=True)
    with pytest.raises(UsageError, match="nothing to resume"):
        train(1, micro_config(), store, tmp_path, resume=True)
    with pytest.raises(UsageError, match="exists already; use --resume"):
        train(1, micro_config(), store, run)


def test_checkpoints_of_another_store_are_stale(trained: Trained, tmp_path: Path) -> None:
    run, _, _ = trained
    other = micro_store(tmp_path / "other", seed=5)
    with pytest.raises(StaleKey, match="was trained on the store with manifest"):
        train(1, micro_config(f"training.max_steps={STEPS + 2}"), other, run, resume=True)
    with pytest.raises(StaleKey, match="was trained on the store with manifest"):
        train(2, micro_config(), other, tmp_path / "run", encoder_checkpoint=folder(run) / "checkpoint_latest")


def test_statistics_are_needed_and_must_be_of_this_store(tmp_path: Path) -> None:
    from stores.statistics import save_stats
    from tests.stores.make_store import make_episodes, train_statistics

    path = micro_store(tmp_path / "store", stats=False)
    with pytest.raises(StoreMissing, match="statevla stats"):
        train(1, micro_config(), path, tmp_path / "run")
    save_stats(path, "0" * 64, train_statistics(make_episodes(8, 12, 32, 0)))
    with pytest.raises(StaleKey, match="statevla stats"):
        train(1, micro_config(), path, tmp_path / "run")


def test_phase_2_needs_a_phase_1_encoder_that_fits(trained: Trained, store: Path, tmp_path: Path) -> None:
    run, _, _ = trained
    with pytest.raises(UsageError, match="statevla train --phase 1"):
        train(2, micro_config(), store, tmp_path)
    with pytest.raises(UsageError, match="expected a phase-1 state encoder"):
        train(2, micro_config(), store, tmp_path, encoder_checkpoint=folder(run, 2) / "checkpoint_latest")
    with pytest.raises(UsageError, match=r"model.embed_dim: 64 here, 32 in"):
        train(
            2, micro_config("model.embed_dim=64"), store, tmp_path, encoder_checkpoint=folder(run) / "checkpoint_latest"
        )


def test_a_loss_that_is_not_finite_stops_the_run_and_spoils_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = micro_config("training.max_steps=9", "training.save_interval=1")
    train(1, micro_config("training.max_steps=6"), store, tmp_path)
    latest = folder(tmp_path) / "checkpoint_latest"
    before = {path.name: path.read_bytes() for path in latest.iterdir()}
    phase = loop.PHASES[1]
    calls = []

    def spoiled(model: Any, batch: Any, generator: torch.Generator) -> Any:
        parts = phase.loss(model, batch, generator)
        calls.append(parts)
        return parts if len(calls) < 2 else type(parts)(parts.total * torch.nan, parts.parts, parts.weight)

    monkeypatch.setitem(loop.PHASES, 1, loop.Phase(1, phase.build, spoiled, phase.after_step, phase.options))
    with pytest.raises(NonFiniteLoss, match="at step 8 of phase 1"):
        train(1, config, store, tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in latest.iterdir()} == before


def test_devices(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'gpu0' is no torch device"):
        train(1, micro_config("training.device=gpu0"), store, tmp_path)
