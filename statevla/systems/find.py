"""Which run and checkpoint a command means: what it was told, in any of the ways to say it, or the only one that fits.

A checkpoint is named by its folder, by the documents' name of it (``….pt``), by the folder of a system's
checkpoints, or by the run folder. Runs are looked for right below ``runs/``, then one folder deeper (the demo's);
controls trained with shuffled instructions are never meant unless named.
"""

from collections.abc import Iterable
from pathlib import Path

from statevla.runs.layout import BEST, LATEST, RUNS, checkpoints, is_checkpoint, systems_in, without_suffix
from statevla.runs.state import CheckpointState, read_state
from statevla.runs.stores import find_store, is_there
from statevla.systems.system import System
from statevla.systems.table import SYSTEMS, find_system, require_kind
from stores.errors import StoreMissing, UsageError


def resolve(path: Path, rows: Iterable[System], names: tuple[str, ...] = (LATEST, BEST)) -> Path:
    """The checkpoint that `path` means: itself, or in a run folder the first of `names` of the only fitting system.

    Raises StoreMissing when there is no checkpoint, UsageError when several fit.
    """
    path, rows = without_suffix(path), list(rows)
    if is_checkpoint(path):
        return path
    folders = [path, *(checkpoints(path, row.folder) for row in rows)]
    found = [next(folder / name for name in names if is_checkpoint(folder / name)) for folder in folders
             if any(is_checkpoint(folder / name) for name in names)]  # fmt: skip
    if not found:
        raise StoreMissing(_none_of(path, rows))
    if len(found) > 1:
        raise UsageError(f"{path}: several checkpoints fit: {listing(found)}; name one")
    return found[0]


def _none_of(path: Path, rows: list[System]) -> str:
    """What there is at `path` instead of a checkpoint of one of `rows`."""
    kinds = " or ".join(sorted({row.name for row in rows}))
    there = [row.name for row in SYSTEMS if row.folder in systems_in(path) and row not in rows]
    if there:
        return f"{path}: expected a run with a checkpoint of {kinds}, got one with {' and '.join(there)}; name another"
    return f"{path}: no checkpoint here, and no run that has one of {kinds}; run `statevla train`"


def find_policy(checkpoint: Path | None = None, root: Path = RUNS) -> Path:
    """The checkpoint that is meant by `checkpoint`, else the latest, or the best where that is all, of the only one.

    Not the best by validation loss: that succeeded less often (docs/adr/0028-the-latest-policy.md).

    Raises UsageError when there is none or several fit, or when it is not a policy's.
    """
    rows = [row for row in SYSTEMS if row.kind == "policy"]
    if checkpoint is not None:
        path = _resolve_policy(checkpoint, rows)
        require_kind(read_state(path), "policy", path)
        return path
    found = [path for path in _find(rows, root, (LATEST, BEST)) if not _is_control(read_state(path))]
    if not found:
        raise UsageError(f"no policy's checkpoint below {root}/; run `statevla train --phase 2` first")
    if len(found) > 1:
        raise UsageError(f"several policies below {root}/: {listing(found)}; name one with --checkpoint")
    return found[0]


def store_of(checkpoint: Path, store: Path | str | None = None) -> Path | str:
    """`store`; where it is not said the one that `checkpoint` was trained on, if that is there, else the only one.

    Raises StoreMissing when there is none, UsageError when there are several.
    """
    told: str | None = read_state(checkpoint).config["data"]["store"] if store is None else None
    return told if told is not None and is_there(told) else find_store(store)


def store_to_train_on(checkpoint: Path) -> Path | str | None:
    """The store that a run goes on with, or a policy on this encoder begins with: the checkpoint's, if it names one.

    Raises StoreMissing when it is not there.
    """
    told: str | None = read_state(checkpoint).config["data"]["store"]
    if told is None or is_there(told):
        return told
    relative = "" if Path(told).is_absolute() else ", relative to the folder in which its run was started"
    raise StoreMissing(f"{told}: no store here; that is what {checkpoint} names{relative}; name the store with --store")


def find_encoder(checkpoint: Path | None, store_hash: str, root: Path = RUNS) -> Path:
    """The checkpoint that is meant by `checkpoint`, else the latest of the only state encoder of that store.

    Raises UsageError when there is none or several fit, StoreMissing when there is none at `checkpoint`.
    """
    rows = [row for row in SYSTEMS if row.kind == "encoder"]
    if checkpoint is not None:
        return resolve(checkpoint, rows, (LATEST,))
    found = _find(rows, root, (LATEST,), store_hash)
    if not found:
        raise UsageError(f"no state encoder of this store below {root}/; run `statevla train --phase 1` first")
    if len(found) > 1:
        raise UsageError(f"several state encoders below {root}/: {listing(found)}; choose with --checkpoint")
    return found[0]


def find_parent(parents: Iterable[str], store_hash: str, run: Path | None = None, root: Path = RUNS) -> Path:
    """checkpoint_latest of one of the systems `parents` in `run`, else of the only run that was trained on that store.

    Raises UsageError when there is none or several runs fit.
    """
    rows = [find_system(name) for name in parents]
    found = _in_run(run, rows, (LATEST,)) if run is not None else _find(rows, root, (LATEST,), store_hash)
    fitting = [path for path in found if read_state(path).content_hash == store_hash]
    where = f"in {run}" if run is not None else f"below {root}/"
    what = " or ".join(row.name for row in rows)
    if not fitting:
        raise UsageError(
            f"no checkpoint of {what} of this store {where}; run `statevla train --system {rows[0].name}` first"
        )
    if len(fitting) > 1:
        raise UsageError(f"several checkpoints of {what} of this store {where}: {listing(fitting)}; "
                         "name one with --encoder")  # fmt: skip
    return fitting[0]


def to_resume(path: Path, system: System | None = None) -> tuple[System, Path]:
    """The system and its checkpoint_latest that ``--resume PATH`` means.

    In a run of several systems the only one that is not finished, else the last of them. Raises StoreMissing when there
    is nothing to resume, UsageError when several are unfinished.
    """
    path = without_suffix(path)
    if is_checkpoint(path):
        own = find_system(read_state(path).system)
        _require(path, own, system)
        return own, path
    if is_checkpoint(path / LATEST):
        return to_resume(path / LATEST, system)
    there = [row for row in SYSTEMS if row.folder in systems_in(path) and (system is None or row == system)]
    found = [(row, checkpoints(path, row.folder) / LATEST) for row in there]
    found = [(row, latest) for row, latest in found if is_checkpoint(latest)]
    if not found:
        what = "" if system is None else f" of {system.name}"
        raise StoreMissing(f"{path}: nothing to resume, no {LATEST}{what} there; train without --resume first")
    unfinished = [(row, latest) for row, latest in found if not read_state(latest).finished]
    if len(unfinished) > 1:
        names = " or ".join(f"--system {row.name}" for row, _ in unfinished)
        raise UsageError(f"{path}: several systems are unfinished there; say {names}")
    return (unfinished or found)[-1]


def _require(path: Path, own: System, wanted: System | None) -> None:
    if wanted is not None and own != wanted:
        raise UsageError(f"{path}: a checkpoint of {own.name}, not of {wanted.name}")


def _resolve_policy(path: Path, rows: Iterable[System]) -> Path:
    try:
        return resolve(path, rows)
    except StoreMissing as error:
        others = [row.name for row in SYSTEMS if row.folder in systems_in(path)]
        if not others:
            raise
        raise UsageError(
            f"{path}: a run of {' and '.join(others)}, expected one of a policy; train one with "
            "`statevla train --phase 2`, or name another run"
        ) from error


def _find(rows: Iterable[System], root: Path, names: tuple[str, ...], store_hash: str | None = None) -> list[Path]:
    rows = list(rows)
    for depth in ("*", "*/*"):
        found = [path for run in sorted(root.glob(depth)) for path in _in_run(run, rows, names)]
        if store_hash is not None:
            found = [path for path in found if read_state(path).content_hash == store_hash]
        if found:
            return found
    return []


def _in_run(run: Path, rows: Iterable[System], names: tuple[str, ...]) -> list[Path]:
    candidates = ([checkpoints(run, row.folder) / name for name in names] for row in rows)
    return [next(filter(is_checkpoint, paths)) for paths in candidates if any(map(is_checkpoint, paths))]


def _is_control(state: CheckpointState) -> bool:
    return bool(state.config["data"]["shuffle_instructions"])


def listing(paths: Iterable[Path]) -> str:
    """Paths for an error message."""
    return ", ".join(str(path) for path in paths)
