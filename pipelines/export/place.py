"""Which folder an export may replace: one that holds, byte for byte, what an earlier export wrote, and nothing else.

An export lists its files with their hashes in ``meta/statevla.json``, which is sealed and written last.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pipelines.sources.lerobot.layout import OWN_FORMAT
from pipelines.sources.lerobot.metadata import OWN
from stores.disk import durable
from stores.errors import StoreCorrupt, UsageError
from stores.manifest import StoreObject, hash_object, hash_objects, parse_objects, read_sealed, seal
from stores.nesting import require_outside

_IGNORED: Final = frozenset({".DS_Store"})
HASH: Final = "content_hash"


def write_own(root: Path, obs_spec: dict[str, Any], content_hash: str) -> None:
    """Write ``meta/statevla.json``: the ObsSpec and the identity of the store, and every file that is in `root` now."""
    objects = hash_objects(root, sorted(_entries(root)))
    told = {"format": OWN_FORMAT, "obs_spec": obs_spec, HASH: content_hash, "objects": [vars(item) for item in objects]}
    durable.write_json(root / OWN, seal(told))


def require_place(out: Path, content_hash: str, replace: bool) -> None:
    """Raise UsageError where `out` lies in a store, and unless it is absent, empty, or an export of the same store (of
    any, with `replace`) to which nothing was added and in which nothing was changed.
    """
    require_outside(out)
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise UsageError(f"{out}: expected a folder, or none yet, got a file")
    if not any(out.iterdir()):
        return
    told, objects = _told(out)
    strange = sorted(_strangers(out, objects))
    if strange:
        raise UsageError(
            f"{out}: {strange[:5]} ({len(strange)} such entries): not as an export has written them, so they are not "
            "removed; move them away, or name another folder. Nothing was changed"
        )
    if told != content_hash and not replace:
        raise UsageError(f"{out}: holds an export of another store; replace it with --replace, or name another folder")


def _told(out: Path) -> tuple[str, tuple[StoreObject, ...]]:
    """The identity of the store of which `out` is an export, and its files, but for the one that tells."""
    try:
        fields = read_sealed((out / OWN).read_bytes(), OWN)
        return str(fields[HASH]), parse_objects(fields["objects"], OWN)
    except (OSError, StoreCorrupt, KeyError):
        older = " (exports of before 2026-11-28 do not list their files)" if (out / OWN).is_file() else ""
        raise UsageError(
            f"{out}: expected an empty folder or none; it holds something that no export wrote{older}. Nothing was "
            "changed; remove it yourself, or name another folder"
        ) from None


def _strangers(out: Path, objects: tuple[StoreObject, ...]) -> Iterator[str]:
    """What the export has not written, or not so."""
    known = {item.path: item for item in objects}
    folders = {parent.as_posix() for path in (*known, OWN) for parent in Path(path).parents}
    for name in _entries(out):
        path = out / name
        if path.is_dir() and not path.is_symlink():
            strange = name not in folders
        elif name in known:
            strange = path.is_symlink() or not path.is_file() or hash_object(out, name) != known[name]
        else:
            strange = name != OWN and path.name not in _IGNORED
        if strange:
            yield name


def _raise(error: OSError) -> None:
    raise error


def _entries(root: Path) -> Iterator[str]:
    """Every file, link and empty folder below `root`; links are not followed."""
    for folder, names, files in os.walk(root, onerror=_raise):
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *links):
            yield Path(folder, name).relative_to(root).as_posix()
        if not (names or files or Path(folder) == root):
            yield Path(folder).relative_to(root).as_posix()
