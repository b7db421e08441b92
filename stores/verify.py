"""Rehash a whole store and name every object that is missing, short, altered, empty or extra.

Checked against the manifest, which seals itself. Derived folders (``stats/``, ``features/``, ``latents/``) come and go
after the commit, so the manifest does not name them: every JSON file directly in ``stats/`` carries a seal, and so does
``manifest.json`` of each folder in ``features/`` and ``latents/``, which names the objects below that folder.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stores.cloud.publish import PUBLISHED
from stores.cloud.storage import Storage, open_storage
from stores.disk.durable import LOCK_NAME, OLD_PREFIX, TEMP_PREFIX
from stores.errors import StoreCorrupt, StoreError
from stores.manifest import MANIFEST, Manifest, StoreObject, hash_stream, is_inside, read_sealed
from stores.progress import Progress, ProgressEvent
from stores.reader import Store

DERIVED: Final = ("features", "latents")
STATS: Final = "stats"
THREADS: Final = 2


@dataclass(frozen=True)
class Problem:
    """`object` is a path below the store, `problem` says what is wrong with it."""

    object: str
    problem: str


def verify_store(root: Path | str | Storage, progress: Progress | None = None, threads: int = THREADS) -> list[Problem]:
    """Every problem of the store at a path or URL, sorted by object; empty when it is sound.

    Raises StoreMissing when there is no manifest, StoreError when its schema version is another.
    """
    storage = open_storage(root)
    try:
        named = list(Manifest.load(storage).objects)
    except StoreCorrupt as error:
        return [Problem(MANIFEST, str(error))]
    there = storage.sizes()
    problems: list[Problem] = []
    sealed = sorted(name for name in there if _is_sealed(name))
    for name in sealed:
        try:
            fields = read_sealed(storage.read(name), name)
            named += _derived_objects(name, fields)
        except StoreError as error:
            problems.append(Problem(name, str(error)))
    known = {item.path for item in named} | {MANIFEST, LOCK_NAME, PUBLISHED} | set(sealed)
    problems += [Problem(name, _extra(name)) for name in there if name not in known]
    problems += _rehash(storage, named, there, progress, threads)
    if not problems:
        problems += _open(storage)
    return sorted(problems, key=lambda problem: (problem.object, problem.problem))


def count_objects(root: Path | str | Storage) -> int:
    """How many objects the manifest names, itself included."""
    return len(Manifest.load(root).objects) + 1


def _is_sealed(name: str) -> bool:
    parts = name.split("/")
    if len(parts) == 2 and parts[0] == STATS:
        return parts[1].endswith(".json") and not parts[1].startswith(TEMP_PREFIX)
    return len(parts) == 3 and parts[0] in DERIVED and parts[2] == MANIFEST


def _derived_objects(name: str, fields: dict[str, object]) -> list[StoreObject]:
    """Objects that a derived folder's manifest names, as paths below the store."""
    if not name.endswith(f"/{MANIFEST}"):
        return []
    folder, items = name.removesuffix(MANIFEST), fields.get("objects")
    if not isinstance(items, list):
        raise StoreCorrupt(f"{name}: expected a list of objects")
    if not all(is_inside(item["path"]) for item in items):
        raise StoreCorrupt(f"{name}: expected paths below its folder")
    return [StoreObject(folder + item["path"], item["bytes"], item["sha256"]) for item in items]


def _extra(name: str) -> str:
    if any(part.startswith((TEMP_PREFIX, OLD_PREFIX)) for part in name.split("/")):
        return "left behind by an interrupted writer; the next ingest into this store removes it"
    return "extra: no manifest names it"


def _rehash(
    storage: Storage, named: list[StoreObject], there: dict[str, int], progress: Progress | None, threads: int
) -> Iterator[Problem]:
    total, done = sum(item.bytes for item in named), 0
    with ThreadPoolExecutor(threads) as pool:
        for item, problem in zip(named, pool.map(lambda i: check_object(storage, i, there), named), strict=True):
            done += item.bytes
            if progress is not None:
                progress(ProgressEvent("verify", done, total, "B", item.path))
            if problem is not None:
                yield Problem(item.path, problem)


def check_object(storage: Storage, item: StoreObject, there: dict[str, int]) -> str | None:
    """What is wrong with one object, None when nothing is. there: sizes of what the storage holds."""
    if item.path not in there:
        return "missing"
    size = there[item.path]
    if size != item.bytes:
        kind = "empty" if size == 0 else "short" if size < item.bytes else "long"
        return f"{kind}: expected {item.bytes} bytes, got {size}"
    try:
        found = hash_stream(storage.pieces(item.path))
    except StoreError as error:
        return f"unreadable: {error}"
    return None if found == (size, item.sha256) else f"altered: expected sha256 {item.sha256}, got {found[1]}"


def _open(storage: Storage) -> Iterator[Problem]:
    """All bytes are as written: do they also make sense together?"""
    try:
        store = Store.open(storage)
        _ = store.frames, store.language
    except StoreError as error:
        yield Problem(MANIFEST, f"the objects contradict each other: {error}")
