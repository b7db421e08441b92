"""Derived folders of a store, as they are: what each was made from, its size, and whether it is still of the store.

What is of another content of the store, damaged or unfinished can never be opened again and only takes room. What is
finished and of this content is of use to whoever asks for its key; it is removed by name only. That its bytes are still
those that were sealed is for `stores.verify` to say. What is not finished and holds a file that no writer of ours would
have given that name is foreign, whatever else is in it, and is left to whoever put it there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores.cloud.storage import Storage, open_storage
from stores.derived import BEGUN, find_seal, is_foreign, parse_seal
from stores.disk import durable
from stores.disk.lock import lock
from stores.errors import StoreError, StoreMissing, UsageError
from stores.layout import DERIVED, is_derived, is_leftover, is_seal
from stores.manifest import content_hash

FINISHED, UNFINISHED, STALE, DAMAGED, FOREIGN = "finished", "unfinished", "stale", "damaged", "foreign"


@dataclass(frozen=True)
class Kept:
    """path: of the folder (of statistics: of the file) below the store. state: one of the five above."""

    path: str
    state: str
    bytes: int
    key: str | None
    made_from: dict[str, Any]
    about: dict[str, Any]


def list_kept(root: Path | str | Storage) -> list[Kept]:
    """Every derived folder of the store at `root`, by path. Raises StoreMissing when it is none."""
    storage = open_storage(root)
    own = content_hash(storage)
    folders: dict[str, dict[str, int]] = {}
    for name, size in storage.sizes().items():
        if is_derived(name) and not is_leftover(name):
            parts = name.split("/")
            folder = name if len(parts) == 2 else "/".join(parts[:2])
            folders.setdefault(folder, {})[name] = size
    return [_describe(storage, own, folder, objects) for folder, objects in sorted(folders.items())]


def _describe(storage: Storage, own: str, folder: str, objects: dict[str, int]) -> Kept:
    size = sum(objects.values())
    sealed = next((name for name in objects if is_seal(name)), None)
    unnamed = FOREIGN if is_foreign(folder, objects) else DAMAGED
    if sealed is None:
        state = UNFINISHED if unnamed == DAMAGED and f"{folder}/{BEGUN}" in objects else unnamed
        return Kept(folder, state, size, None, {}, {})
    try:
        at, data = find_seal(storage, sealed)
        fields, named = parse_seal(data, f"{storage.root}: {sealed}")
    except StoreError as error:
        state = UNFINISHED if unnamed == DAMAGED and isinstance(error, StoreMissing) else unnamed
        return Kept(folder, state, size, None, {}, {})
    whole = all(objects.get(f"{at}/{item.path}") == item.bytes for item in named)
    fresh = fields["made_from"].get("content_hash", own) == own
    state = DAMAGED if not whole else FINISHED if fresh else STALE
    if state != FINISHED and is_foreign(folder, objects.keys() - {f"{at}/{item.path}" for item in named} - {sealed}):
        state = FOREIGN
    about = {} if sealed == folder else fields["about"]  # of statistics: the numbers themselves
    return Kept(folder, state, size, fields["key"], fields["made_from"], about)


def useless(root: Path | str | Storage) -> list[Kept]:
    """Those that no reader will ever take: stale, damaged or unfinished."""
    return [item for item in list_kept(root) if item.state not in (FINISHED, FOREIGN)]


def named_kept(root: Path | str | Storage, names: Sequence[str]) -> list[Kept]:
    """Those that `names` (``features/<name>`` …) name, whatever their state.

    Raises UsageError for one that is none, and for one that holds a file of somebody else.
    """
    there = {item.path: item for item in list_kept(root)}
    wanted = [name.strip("/") for name in names]
    if unknown := [name for name in wanted if name not in there]:
        raise UsageError(
            f"{root}: {', '.join(unknown)}: no such derived folder; there are {', '.join(there) or 'none'}"
        )
    for folder in wanted:
        if _is_foreign(root, folder):
            raise UsageError(
                f"{root}/{folder}: holds files that are not of {folder.split('/')[0]}; move them away first"
            )
    return [there[name] for name in dict.fromkeys(wanted)]


def _is_foreign(root: Path | str | Storage, folder: str) -> bool:
    """Whether the derived folder holds a file of somebody else, beside what is finished there too."""
    inside = [name for name in open_storage(root).sizes() if name == folder or name.startswith(f"{folder}/")]
    return is_foreign(folder, [name for name in inside if not is_leftover(name)])


def remove_kept(root: Path, items: Sequence[Kept]) -> Iterator[Kept]:
    """Remove derived folders of the store at folder `root`, one after the other, under its lock; gives those removed.

    What is no longer as it was listed stays: somebody may have finished it, or made it again, in the meantime.
    Raises UsageError for a path that is no derived folder, StoreLocked while somebody writes.
    """
    for item in items:
        if item.path.split("/")[0] not in DERIVED or not is_derived(item.path):
            raise UsageError(f"{item.path}: no derived folder; nothing is removed")
    with lock(root, "statevla clean"):
        now = {item.path: (item.state, item.key) for item in list_kept(root)}
        for item in items:
            foreign = item.state == FINISHED and _is_foreign(root, item.path)  # of others, the state says it
            if now.get(item.path) == (item.state, item.key) and not foreign:
                durable.remove(root / item.path)
                yield item
