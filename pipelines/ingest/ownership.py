"""Whose folder is it? What an ingest may write into, replace and remove.

A folder is ours by a sealed manifest, by the *claim* of an unfinished ingest (``.ingest.json``), or by a sealed record
in ``units/``; any other folder with something in it is refused. Nothing is removed that none of these names.

The claim is written before the first change and removed after the commit. It names every unit whose shard or record may
lie there or be staged there, whoever made it, and the sources of the last committed store: what the manifest knew while
it was there. Beside a manifest it means that an ingest began to make units for the next commit; the store is whole.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipelines.ingest.record import read_record
from stores.disk import durable
from stores.disk.lock import LOCK_NAME
from stores.errors import StoreError, UsageError
from stores.layout import CLAIM, MANIFEST, OWN_FOLDERS, PUBLISHED, SHARDS, STAGED, UNITS, record_path, shard_path
from stores.manifest import read_sealed, seal
from stores.nesting import require_outside
from stores.numbers import is_frame_object

UNIT_FOLDERS: Final = (SHARDS, UNITS)
_IGNORED: Final = frozenset({LOCK_NAME, PUBLISHED, CLAIM, ".DS_Store"})


@dataclass(frozen=True)
class Holdings:
    """What of ours a folder holds, or may. units: names. sources: episodes by source file, of the last commit; where
    its manifest cannot be read, by what the units of the file are called.
    """

    units: frozenset[str] = frozenset()
    sources: dict[str, int] = field(default_factory=dict)


def write_claim(root: Path, suite: str, held: Holdings) -> None:
    """Say durably that an ingest is under way here, and what may be found."""
    fields = {"ingest": suite, "units": sorted(held.units), "sources": held.sources}
    durable.write_json(root / CLAIM, seal(fields))


def withdraw(root: Path, suite: str, held: Holdings) -> None:
    """From here on there is no store, and the claim says what may be found instead."""
    write_claim(root, suite, held)
    durable.remove(root / MANIFEST)


def holdings(root: Path) -> Holdings | None:
    """What of ours is in folder `root`; None when nothing says that it is ours. Reads only.

    A manifest that is there and cannot be read does not mean that there was no store: records say what it had.
    """
    claim, manifest = _sealed(root / CLAIM), _sealed(root / MANIFEST)
    units: set[str] = set()
    sources: dict[str, int] = {}
    if claim is not None and _is_claim(claim):
        units |= set(claim["units"])
        sources = claim["sources"]
    else:
        claim = None
    if manifest is not None and _is_manifest(manifest):
        units |= set(map(_unit_of, (item["path"] for item in manifest["objects"]))) - {""}
        sources = {row["file"]: row["episodes"] for row in manifest["sources"] if "episodes" in row}
    elif claim is None:
        records = dict(_recorded(root))
        if not records:
            return None
        units |= records.keys()
        if os.path.lexists(root / MANIFEST):
            for unit, record in records.items():
                stem = unit.rpartition("-")[0]
                sources[stem] = sources.get(stem, 0) + len(record.get("episodes", ()))
    return Holdings(frozenset(units), sources)


def _is_claim(fields: dict[str, Any]) -> bool:
    """Whether a sealed file is an ingest's claim, and not another program's."""
    units, sources = fields.get("units"), fields.get("sources")
    return (
        "ingest" in fields
        and isinstance(units, list)
        and all(isinstance(unit, str) for unit in units)
        and isinstance(sources, dict)
        and all(isinstance(episodes, int) for episodes in sources.values())
    )


def _is_manifest(fields: dict[str, Any]) -> bool:
    """Whether a sealed file is a store's manifest, of any version: a derived folder's seal has no sources."""
    objects, sources = fields.get("objects"), fields.get("sources")
    return (
        isinstance(objects, list)
        and all(isinstance(item, dict) and isinstance(item.get("path"), str) for item in objects)
        and isinstance(sources, list)
        and all(isinstance(row, dict) and isinstance(row.get("file"), str) for row in sources)
        and all(isinstance(row.get("episodes", 0), int) for row in sources)
    )


def require_own_folder(root: Path) -> None:
    """Refuse a folder that is not ours, lies in a store, or holds what nothing of ours names. Raises UsageError; writes
    nothing.
    """
    require_outside(root)
    if not os.path.lexists(root):
        return
    if not root.is_dir():
        raise UsageError(f"{root}: expected a folder for the store, got something else under that name")
    odd = [name for name in (MANIFEST, CLAIM) if os.path.lexists(root / name) and not (root / name).is_file()]
    if odd:
        raise UsageError(f"{root}: {odd} should be files, and are not; move them away. Nothing was changed")
    found = sorted(path.name for path in root.iterdir() if not _is_writers(path.name))
    held = holdings(root)
    if held is None and found:
        raise UsageError(
            f"{root}: expected an empty folder, or a store of ours (a sealed {MANIFEST}, or the claim of an unfinished "
            f"ingest), got {found[:5]}; choose another --out, or move what is there away. Nothing was changed"
        )
    links = [name for name in OWN_FOLDERS if (root / name).is_symlink()]
    if links:
        raise UsageError(f"{root}: {links} are links; a store's own folders are folders. Move them, or choose another")
    strangers = sorted(name for name in _files(root) if not _is_ours(name, (held or Holdings()).units))
    if strangers:
        raise UsageError(
            f"{root}: {strangers[:5]} ({len(strangers)} such entries): neither the manifest nor a record of this store "
            "names them, so they are not removed; move them away, then run the same command again"
        )


def remove_leftovers(root: Path, units: Iterable[str], named: frozenset[str] | set[str]) -> None:
    """Remove shards and records of `units` that the coming manifest does not name (`named`: its paths)."""
    paths = {path for unit in units for path in (shard_path(unit), record_path(unit))} - named
    for name in sorted(_files(root, UNIT_FOLDERS)):
        if name in paths or durable.is_leftover(name.rpartition("/")[2]):  # of a process that died making a unit
            durable.remove(root / name)


def _sealed(path: Path) -> dict[str, Any] | None:
    """The fields of a sealed file; None where there is none, or something else. Raises OSError where the system does
    not let it be read: that says nothing of what is in it.
    """
    try:
        return read_sealed(path.read_bytes(), path.name) if path.is_file() else None
    except (StoreError, FileNotFoundError):
        return None


def _unit_of(path: str) -> str:
    """The unit whose shard or record `path` is, "" where it is neither."""
    folder, _, name = path.partition("/")
    unit = name.rpartition(".")[0]
    return unit if folder in UNIT_FOLDERS and path in (shard_path(unit), record_path(unit)) else ""


def _recorded(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Units with a sound record, and that."""
    for name in _files(root, (UNITS,)):
        unit = _unit_of(name)
        record = read_record(root, unit) if unit else None
        if record is not None:
            yield unit, record


def _is_writers(name: str) -> bool:
    return name in _IGNORED or durable.is_leftover(name)


def _is_ours(name: str, units: frozenset[str]) -> bool:
    parts = name.split("/")
    if any(durable.is_leftover(part) for part in parts):
        return True
    return _unit_of(name.removeprefix(f"{STAGED}/")) in units or is_frame_object(name)


def _files(root: Path, folders: Iterable[str] = OWN_FOLDERS) -> Iterator[str]:
    """Paths below `root` of every file and link in `folders`, which are not followed when they are links."""
    for top in folders:
        for folder, names, files in os.walk(root / top):
            links = [name for name in names if os.path.islink(os.path.join(folder, name))]
            for name in (*files, *links):
                yield Path(folder, name).relative_to(root).as_posix()
