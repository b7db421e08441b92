"""What an evaluated policy cost: parameters, minutes of training, milliseconds a call; None where nothing tells."""

from dataclasses import dataclass
from pathlib import Path

from statevla.runs.files import CheckpointState, read_state
from statevla.runs.layout import CHECKPOINTS, is_checkpoint, metrics, run_of
from statevla.runs.metrics import read_metrics
from statevla.systems.describe import describe_system
from statevla.systems.system import System
from statevla.systems.table import config_of, find_system, system_of


@dataclass(frozen=True)
class Costs:
    """system: its row. parameters: trained and frozen, without a vision tower. minutes: of training steps, validation
    left out, with its encoder's where that was trained in the same run. milliseconds: median of a policy call.
    """

    system: str | None
    parameters: int | None
    minutes: float | None
    milliseconds: float | None


def costs_of(evaluation: Path, policy: str, milliseconds: float | None) -> Costs:
    """policy: as the evaluation's results name it, a checkpoint's path or a control. Raises StoreCorrupt."""
    checkpoint = _checkpoint(evaluation, policy)
    if checkpoint is None:
        return Costs(None, None, None, milliseconds)
    state = read_state(checkpoint)
    row = system_of(state, checkpoint)
    found = describe_system(row, config_of(state, checkpoint))
    return Costs(
        row.name, found["trainable"] + found["frozen"], training_minutes(run_of(checkpoint), row, state), milliseconds
    )


def training_minutes(run: Path, row: System, state: CheckpointState) -> float | None:
    """From the run's metrics up to the checkpoint's step."""
    own = _minutes(metrics(run, row.folder), state.step, int(state.config["training"]["batch_size"]))
    if own is None:
        return None
    parents = [] if state.parent is None else [find_system(state.parent["system"])]
    encoders = (_minutes(metrics(run, parent.folder), None, _batch_size(state)) for parent in parents)
    return own + sum(minutes for minutes in encoders if minutes is not None)


def _batch_size(state: CheckpointState) -> int:
    return int(state.config["training"]["batch_size"])


def _minutes(file: Path, until: int | None, batch_size: int) -> float | None:
    """Each line tells the rate since the one before it."""
    seconds, before = 0.0, 0
    lines = [record for record in read_metrics(file) if record["kind"] == "train"]
    for record in lines:
        if until is not None and record["step"] > until:
            break
        seconds += (record["step"] - before) * batch_size / max(record["samples_per_s"], 1e-9)
        before = record["step"]
    return seconds / 60 if lines else None


def _checkpoint(evaluation: Path, policy: str) -> Path | None:
    """The evaluated checkpoint, also where its run was moved since."""
    named = Path(policy.split(", ")[0])  # "PATH, 8 Euler steps"
    if is_checkpoint(named):
        return named
    if CHECKPOINTS in named.parts and evaluation.parent.name == "eval":
        inside = named.parts[named.parts.index(CHECKPOINTS) :]
        moved = evaluation.parents[1].joinpath(*inside)
        return moved if is_checkpoint(moved) else None
    return None
