"""Which store, run and checkpoint a command means when it is not told: the only one that fits, or an error with all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from statevla.config import Config, replace
from statevla.runs.files import PHASE_FOLDERS, STATE, read_state
from stores.errors import StoreMissing, UsageError
from stores.layout import MANIFEST
from stores.manifest import content_hash

STORES: Final = Path("data/stores")
RUNS: Final = Path("runs")
LATEST: Final = "checkpoint_latest"
BEST: Final = "checkpoint_best"


@dataclass(frozen=True)
class TrainingJob:
    """Everything that `trainers.loop.train` is called with. text: for people, what was chosen."""

    phase: int
    config: Config
    store: Path | str
    run: Path
    encoder: Path | None
    text: str


def find_store(store: Path | str | None = None, root: Path = STORES) -> Path | str:
    """`store` itself, checked when it is a folder, else the only store below `root`.

    Raises StoreMissing when there is none, UsageError when there are several.
    """
    if store is not None:
        if "://" not in str(store) and not (Path(store) / MANIFEST).is_file():
            raise StoreMissing(f"{store}: no store here ({MANIFEST} is missing); run `statevla ingest` first")
        return store
    found = sorted(path.parent for path in root.glob(f"*/{MANIFEST}"))
    if not found:
        raise StoreMissing(f"no store below {root}/; run `statevla ingest SUITE` first, or name one with --store")
    if len(found) > 1:
        raise UsageError(f"several stores below {root}/: {_list(found)}; name one with --store")
    return found[0]


def find_encoder(store_hash: str, run: Path | None = None, root: Path = RUNS) -> Path:
    """checkpoint_latest of phase 1 in `run`, else of the only run below `root` that was trained on that store.

    Raises UsageError when there is none or several runs fit.
    """
    found = [run] if run is not None else find_runs(1, root)
    fitting = []
    for folder in found:
        checkpoint = phase_folder(folder, 1) / LATEST
        if (checkpoint / STATE).is_file() and read_state(checkpoint).manifest_hash == store_hash:
            fitting.append(checkpoint)
    where = f"in {run}" if run is not None else f"below {root}/"
    if not fitting:
        raise UsageError(f"no phase-1 checkpoint of this store {where}; run `statevla train --phase 1` first")
    if len(fitting) > 1:
        raise UsageError(
            f"several phase-1 checkpoints of this store {where}: {_list(fitting)}; name one with --encoder"
        )
    return fitting[0]


def find_policy(checkpoint: Path | None = None, root: Path = RUNS) -> Path:
    """`checkpoint`, else checkpoint_best (without validation episodes checkpoint_latest) of the only phase-2 run.

    Raises UsageError when there is none, or several runs have one.
    """
    if checkpoint is not None:
        read_state(checkpoint)
        return checkpoint
    found = []
    for run in find_runs(2, root):
        names = [name for name in (BEST, LATEST) if (phase_folder(run, 2) / name / STATE).is_file()]
        found += [phase_folder(run, 2) / names[0]] if names else []
    if not found:
        raise UsageError(f"no phase-2 checkpoint below {root}/; run `statevla train --phase 2` first")
    if len(found) > 1:
        raise UsageError(f"several policies below {root}/: {_list(found)}; name one with --checkpoint")
    return found[0]


def find_runs(phase: int, root: Path = RUNS) -> list[Path]:
    """Run folders below `root`, or one folder deeper, that have checkpoints of `phase`."""
    pattern = f"checkpoints/{PHASE_FOLDERS[phase]}"
    return sorted(path.parents[1] for depth in ("*", "*/*") for path in root.glob(f"{depth}/{pattern}"))


def phase_folder(run: Path, phase: int) -> Path:
    """Where a run keeps the checkpoints of a phase."""
    return run / "checkpoints" / PHASE_FOLDERS[phase]


def plan_training(
    phase: int,
    config: Config,
    *,
    store: Path | str | None = None,
    run: Path | None = None,
    encoder: Path | None = None,
    stores: Path = STORES,
    runs: Path = RUNS,
) -> TrainingJob:
    """Fill in what was left out: store (flag, ``data.store``, the only one), run, and in phase 2 the encoder.

    The default run is ``runs/<store name>``; in phase 2 it is the run that the encoder comes from.
    """
    chosen = find_store(store if store is not None else config.data.store, stores)
    config = replace(config, {"data.store": str(chosen)})
    if phase == 1:
        if encoder is not None:
            raise UsageError("--encoder is for phase 2; phase 1 trains one")
        folder = run if run is not None else runs / Path(chosen).name
        return TrainingJob(1, config, chosen, folder, None, f"store {chosen}, run {folder}")
    if encoder is None:
        identity = content_hash(chosen)
        given = run if run is not None and (phase_folder(run, 1) / LATEST).is_dir() else None
        encoder = find_encoder(identity, given, runs)
    folder = run if run is not None else encoder.parents[2]
    return TrainingJob(2, config, chosen, folder, encoder, f"store {chosen}, run {folder}, state encoder {encoder}")


def _list(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths)
