"""Where a run keeps what: every path and name of a run folder, once.

    <run>/config_<system folder>.json      the whole configuration, as it was started
    <run>/starts_<system folder>.jsonl     a line a start: when, command line, revision, packages, machine
    <run>/metrics_<system folder>.jsonl    one JSON object a line
    <run>/losses_<system folder>.png       drawn from the metrics
    <run>/checkpoints/<system folder>/     checkpoint_latest, checkpoint_best, checkpoint_epoch_N; of a future that the
                                           run went back from, checkpoint_…_before_STEP
    <run>/eval/<name>/                     results of evaluations
    <run>/latents/<key>/, decoded/<key>/   what is kept of the frames, where the store cannot be written

A checkpoint is a folder too; its files are in `statevla/runs/files.py`.
"""

from pathlib import Path
from typing import Final

RUNS: Final = Path("runs")
CHECKPOINTS: Final = "checkpoints"
LATEST: Final = "checkpoint_latest"
BEST: Final = "checkpoint_best"
STATE: Final = "state.json"
"""The file that makes a folder a checkpoint."""
DOCUMENTS_SUFFIX: Final = ".pt"
"""The documents' commands write checkpoints as ``checkpoint_best.pt``; ours is the folder of that name without it."""


def epoch_name(epoch: int) -> str:
    """Folder of the checkpoint kept after `epoch` epochs."""
    return f"checkpoint_epoch_{epoch}"


def set_aside_name(name: str, step: int) -> str:
    """Folder of a checkpoint of a future that the run left when it went back to `step`."""
    return f"{name}_before_{step}"


def checkpoints(run: Path, folder: str) -> Path:
    """Where a run keeps the checkpoints of the system with `folder`."""
    return run / CHECKPOINTS / folder


def run_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint; without one around it, the checkpoint's own parent."""
    parents = checkpoint.parents
    return parents[2] if len(parents) > 2 and parents[1].name == CHECKPOINTS else checkpoint.parent


def configuration(run: Path, folder: str) -> Path:
    """The configuration that a run was started with."""
    return run / f"config_{folder}.json"


def starts(run: Path, folder: str) -> Path:
    """What started the run and made it go on, a JSON object a line."""
    return run / f"starts_{folder}.jsonl"


def metrics(run: Path, folder: str) -> Path:
    """One JSON object a line."""
    return run / f"metrics_{folder}.jsonl"


def losses(run: Path, folder: str) -> Path:
    """The metrics as a picture."""
    return run / f"losses_{folder}.png"


def evaluation(checkpoint: Path, name: str) -> Path:
    """Where the results of an evaluation go when nobody says."""
    return run_of(checkpoint) / "eval" / name


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint."""
    return (path / STATE).is_file()


def without_suffix(path: Path) -> Path:
    """`path`, or our folder where the documents' name of a checkpoint file is given."""
    named = path.with_suffix("") if path.suffix == DOCUMENTS_SUFFIX else path
    return path if path.exists() else named


def systems_in(run: Path) -> list[str]:
    """Names of the system folders in a run that hold a checkpoint."""
    return sorted({path.parents[1].name for path in run.glob(f"{CHECKPOINTS}/*/*/{STATE}")})
