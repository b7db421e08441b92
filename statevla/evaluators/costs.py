"""What an evaluated policy cost: parameters, minutes of training, milliseconds a call; None where nothing tells.

A checkpoint's folder is not the policy: it may have been trained on since. So the step that was evaluated is what the
results say, or that of the checkpoint which has the evaluated policy's identity.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from statevla.config import replace
from statevla.evaluators.goals import goals_identity
from statevla.observation import ObsSpec
from statevla.policies.checkpoint_controls import MEAN_ACTION
from statevla.policies.policy import UNTRAINED, identify
from statevla.runs.files import LANGUAGE, MODEL
from statevla.runs.layout import CHECKPOINTS, checkpoints, is_checkpoint, metrics, run_of
from statevla.runs.metrics import read_metrics
from statevla.runs.state import CheckpointState, read_state
from statevla.systems.describe import describe_system
from statevla.systems.system import System
from statevla.systems.table import config_of, find_system, system_of


@dataclass(frozen=True)
class Costs:
    """system: its row. parameters: trained and frozen, without a vision tower. minutes: of training steps, validation
    left out, with its encoder's where that was trained in the same run. milliseconds: median of a policy call. note:
    why something is not known that could be.
    """

    system: str | None
    parameters: int | None
    minutes: float | None
    milliseconds: float | None
    note: str = ""


def costs_of(
    evaluation: Path, policy: str, milliseconds: float | None, identity: str, step: int | None,
    control: str | None = None,
) -> Costs:  # fmt: skip
    """policy: as the evaluation's results name it, a checkpoint's path or a control. identity: of what was evaluated.
    step: that it had, where the results say so. control: which one stood in the checkpoint's place. Raises
    StoreCorrupt.
    """
    checkpoint = _checkpoint(evaluation, policy)
    if checkpoint is None or control == MEAN_ACTION:
        return Costs(None, None, None, milliseconds)
    if step is None and control != UNTRAINED:
        found = next((each for each in _beside(checkpoint) if identity in identities(each, policy)), None)
        if found is None:
            unknown = "is not the policy that was evaluated, or of an earlier format: what it cost is not known"
            return Costs(None, None, None, milliseconds, f"{checkpoint} {unknown}")
        checkpoint = found
    state = read_state(checkpoint)
    row = system_of(state, checkpoint)
    about = describe_system(row, config_of(state, checkpoint))
    minutes: float | None = 0.0
    if control != UNTRAINED:
        minutes = training_minutes(run_of(checkpoint), row, state, state.step if step is None else step)
    return Costs(row.name, about["trainable"] + about["frozen"], minutes, milliseconds)


def identities(checkpoint: Path, policy: str) -> set[str]:
    """Of the policies that a checkpoint can be, with the sampling steps in `policy`, its name: in either precision,
    told what to reach in either way."""
    state = read_state(checkpoint)
    config = config_of(state, checkpoint)
    steps = re.search(r", (\d+) Euler steps", policy)
    if steps is not None:
        config = replace(config, {"model.euler_steps": int(steps[1])})
    spec = ObsSpec.from_dict(state.obs_spec, f"{checkpoint}: obs_spec")
    weights = {name: state.files[name]["sha256"] for name in (MODEL, LANGUAGE)} | {"instructions": state.instructions}
    plain = {identify(config, spec, dtype, weights, state) for dtype in ("float32", "bfloat16")}
    return plain | {goals_identity(each) for each in plain}


def training_minutes(run: Path, row: System, state: CheckpointState, step: int) -> float | None:
    """From the run's metrics up to `step`; of the encoder up to where its weights were taken."""
    own = _minutes(metrics(run, row.folder), step, int(state.config["training"]["batch_size"]))
    if own is None or state.parent is None:
        return own
    encoder = checkpoints(run, find_system(state.parent["system"]).folder) / str(state.parent["checkpoint"])
    if not is_checkpoint(encoder):
        return own
    batch_size = int(read_state(encoder).config["training"]["batch_size"])
    return own + (_minutes(metrics(run, encoder.parent.name), int(state.parent["step"]), batch_size) or 0.0)


def _minutes(file: Path, until: int, batch_size: int) -> float | None:
    """Each line tells the rate since the one before it."""
    seconds, before = 0.0, 0
    lines = [record for record in read_metrics(file) if record["kind"] == "train"]
    for record in lines:
        if record["step"] > until:
            break
        seconds += (record["step"] - before) * batch_size / max(record["samples_per_s"], 1e-9)
        before = record["step"]
    return seconds / 60 if lines else None


def run_of_evaluation(folder: Path) -> Path:
    """The run that an evaluation lies in, as ``RUN/eval/NAME`` or ``RUN/eval``; else its own folder."""
    return next((path.parent for path in (folder.parent, folder) if path.name == "eval"), folder)


def _beside(checkpoint: Path) -> list[Path]:
    """The checkpoint, then the others of its run."""
    others = sorted(path for path in checkpoint.parent.iterdir() if is_checkpoint(path) and path != checkpoint)
    return [checkpoint, *others]


def _checkpoint(evaluation: Path, policy: str) -> Path | None:
    """The evaluated checkpoint's folder, also where its run was moved since."""
    named = Path(policy.split(", ")[0])  # "PATH, 8 Euler steps"
    if is_checkpoint(named):
        return named
    run = run_of_evaluation(evaluation)
    if CHECKPOINTS in named.parts and run != evaluation:
        moved = run.joinpath(*named.parts[named.parts.index(CHECKPOINTS) :])
        return moved if is_checkpoint(moved) else None
    return None
