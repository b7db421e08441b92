"""What an ingest will do, as data: source files, work units, the train/validation split. Pure but for one listing.

A *unit* is up to `UNIT_DEMOS` demonstrations of one source file; it becomes one shard. Its name comes from the file
alone, so that another file coming or going changes no other unit's name or bytes.
"""

import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stores.errors import SourceError, UsageError

UNIT_DEMOS: Final = 16
"""Demonstrations of a unit: a few hundred MB of raw frames, some tens of MB of JPEG."""

SUFFIX: Final = ".hdf5"
NAME_LIMIT: Final = 155
"""Bytes of a source's stem as `safe_name` writes it: the folder of a tar's names; files are named after it too."""
DEMO_LIMIT: Final = 70
"""Bytes of a demonstration's name as `safe_name` writes it: of the 100 of a tar's name, members need the rest."""

HOW_TO_GET: Final = (
    "Download the suite with LIBERO's own benchmark_scripts/download_libero_datasets.py, or make tabletop data with "
    "`statevla collect tabletop`; then pass the folder with --source."
)


@dataclass(frozen=True)
class Unit:
    """One task of an ingest: `demos` of the source file called `file` (its name, not its path)."""

    name: str
    file: str
    demos: tuple[str, ...]


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts ``demo_10`` after ``demo_9``; a total order (``a01`` and ``a1`` differ)."""
    parts = re.split(r"(\d+)", text)
    key = tuple((1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts if part)
    return (*key, (2, 0, text))


def safe_name(text: str) -> str:
    """Letters, digits, ``_`` and ``-`` stay, any other byte becomes ``=xx``: injective, fit for file and tar names.

    A dot in particular would end the key of a WebDataset sample.
    """
    return re.sub(rb"[^A-Za-z0-9_-]", lambda found: b"=%02x" % found[0][0], text.encode()).decode()


def list_sources(source: Path, suite: str, formats: Sequence[Collection[str]]) -> tuple[Path, ...]:
    """The files of folder `source` that the first of `formats` (suffixes of their names) has any of, naturally sorted;
    or `source` itself, when it is a file.

    A link that leads nowhere is listed, and found out when it is read. What else lies there:
    `pipelines.ingest.entries.other_entries`. Raises UsageError when there is nothing to read, saying where it looked.
    """
    if source.is_file():
        return (source,)
    if not source.is_dir():
        raise UsageError(f"suite {suite!r}: no folder {source} (looked in {source.absolute()}). {HOW_TO_GET}")
    there = [path for path in source.iterdir() if path.is_file() or (path.is_symlink() and not path.exists())]
    by_format = ([path for path in there if is_source(path, suffixes)] for suffixes in formats)
    files = sorted(next(filter(None, by_format), []), key=lambda path: natural_key(path.name))
    if not files:
        names = sorted(path.name for path in source.iterdir())
        got = f"{len(names)} other entries ({', '.join(names[:5])})" if names else "an empty folder"
        wanted = " or ".join(dict.fromkeys(f"*{suffix}" for suffixes in formats for suffix in suffixes))
        raise UsageError(f"suite {suite!r}: expected {wanted} files in {source.absolute()}, got {got}. {HOW_TO_GET}")
    return tuple(files)


def is_source(path: Path, suffixes: Collection[str]) -> bool:
    """Whether a file of that name is to be read, in any case of `suffixes`."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def stem_of(file: str) -> str:
    """What names the file's units and episodes: without ``.hdf5``, but with any other suffix."""
    return file.removesuffix(SUFFIX)


def require_fitting(name: str, limit: int) -> None:
    """Raise SourceError when `name` cannot name things in a store: not UTF-8, not printable (it would steer terminals),
    or more than `limit` bytes as written.
    """
    try:
        written = len(safe_name(name))
    except UnicodeEncodeError as error:
        raise SourceError(f"{os.fsencode(name)!r}: expected a name in UTF-8; rename it") from error
    if not name.isprintable():
        raise SourceError(f"{name!r}: expected a name of printable characters; rename it")
    if written > limit:
        raise SourceError(f"the name needs {written} bytes in a shard, expected at most {limit}; rename it")


def plan_units(demos: Mapping[str, Sequence[str]]) -> tuple[Unit, ...]:
    """Demonstration names by file name -> units, in natural order of files and demonstrations."""
    units = []
    for file in sorted(demos, key=natural_key):
        stem = safe_name(stem_of(file))
        names = sorted(demos[file], key=natural_key)
        for number, start in enumerate(range(0, len(names), UNIT_DEMOS)):
            units.append(Unit(f"{stem}-{number:03d}", file, tuple(names[start : start + UNIT_DEMOS])))
    return tuple(units)


def task_of(file: str) -> str:
    """The task that a source file holds: its stem without LIBERO's ``_demo``."""
    return Path(file).stem.removesuffix("_demo")


def split_episodes(
    ids_by_task: Mapping[str, Sequence[str]],
    seed: int,
    train_split: float,
    given: Mapping[str, str] | None = None,
    copies: Sequence[Sequence[str]] = (),
) -> dict[str, str]:
    """Episode id -> ``train`` or ``val``, the same whatever the order of the input, stratified by task.

    given: parts that are settled, by id. copies: groups of episodes that are the same; each stands on one side, that of
    its first, or the held-out one where any of it is given that.

    Each task gives `train_split` of its episodes to training, at least one; the rounding of one task is carried to
    the next (largest remainder), so that the whole split comes out right even where a task has two episodes.
    Episodes of a task are ranked by sha256(seed, id): an episode that is added moves at most its neighbours in rank.

    Raises UsageError when `train_split` is outside (0, 1].
    """
    if not 0.0 < train_split <= 1.0:
        raise UsageError(f"train_split: expected a number above 0 and at most 1, got {train_split}")
    split: dict[str, str] = dict(given or {})
    first = {name: group[0] for group in copies for name in group[1:]}
    for group in copies:
        parts = {split[name] for name in group if name in split}
        if parts:
            split.update(dict.fromkeys(group, "val" if "val" in parts else "train"))
    owed = 0.0
    for task in sorted(ids_by_task, key=natural_key):
        free = [name for name in ids_by_task[task] if name not in split and name not in first]
        ranked = sorted(free, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
        owed += (1.0 - train_split) * len(ranked)
        held_out = min(int(owed + 0.5 + 1e-9), len(ranked) - 1) if ranked else 0
        owed -= held_out
        for rank, name in enumerate(ranked):
            split[name] = "val" if rank < held_out else "train"
    return split | {name: split[kept] for name, kept in first.items()}
