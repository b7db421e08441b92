"""Rehash a whole store and name every object that is missing, short, altered, empty or extra.

Checked against the manifest, which seals itself. Derived folders come and go after the commit, so the manifest does not
name them: each has a seal, which names the objects below that folder (`stores.derived`).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stores.cloud.storage import Storage, is_publication, open_storage
from stores.derived import BEGUN, find_seal, parse_seal
from stores.errors import StoreCorrupt, StoreError, StoreMissing
from stores.layout import MANIFEST, is_derived, is_leftover, is_seal, is_writers, remedy
from stores.manifest import Manifest, StoreObject, hash_stream
from stores.numbers import check_frames
from stores.progress import Progress, ProgressEvent
from stores.reader import Store

THREADS: Final = 2


@dataclass(frozen=True)
class Problem:
    """`object` is a path below the store, `problem` says what is wrong with it."""

    object: str
    problem: str


def verify_store(root: Path | str | Storage, progress: Progress | None = None, threads: int = THREADS) -> list[Problem]:
    """Every problem of the store at a path or URL, sorted by object; empty when it is sound.

    Where objects cannot be listed (http), those that the manifest names are checked: derived folders and what is extra
    cannot be known.
    Raises StoreMissing when there is no manifest, StoreError when its schema version is another.
    """
    storage = open_storage(root)
    try:
        named = list(Manifest.load(storage).objects)
    except StoreCorrupt as error:
        return [Problem(MANIFEST, str(error))]
    there = storage.sizes() if storage.lists else {}
    problems: list[Problem] = []
    known = {MANIFEST}
    for name in sorted(name for name in there if is_seal(name)):
        known.add(name)
        try:
            folder, data = find_seal(storage, name)
            known.add(f"{folder}/{MANIFEST}")
            objects = parse_seal(data, name)[1]
            named += [StoreObject(f"{folder}/{item.path}", item.bytes, item.sha256) for item in objects]
            known.add(f"{folder}/{BEGUN}")  # of a writer that died when all was done
        except StoreError as error:
            problems.append(Problem(name, str(error)))
    known |= {item.path for item in named}
    begun = tuple(
        folder for folder in (name.removesuffix(BEGUN) for name in there if name.endswith(f"/{BEGUN}"))
        if f"{folder}{MANIFEST}" not in there
    )  # fmt: skip
    problems += [Problem(name, _extra(name, begun)) for name in there if name not in known and not is_writers(name)]
    problems += _rehash(storage, named, there if storage.lists else None, progress, threads)
    if not problems:
        problems += _open(storage)
    return sorted(problems, key=lambda problem: (problem.object, problem.problem))


def count_objects(root: Path | str | Storage) -> int:
    """How many objects the manifest names, itself included."""
    return len(Manifest.load(root).objects) + 1


def _extra(name: str, begun: tuple[str, ...]) -> str:
    if is_leftover(name):
        return "left behind by an interrupted writer; the next ingest into this store removes it"
    if is_derived(name) and any(map(is_publication, name.split("/"))):
        return "left behind by an interrupted publisher; the next `statevla publish` removes it"
    if begun and name.startswith(begun):
        return "not finished: the writer of this derived folder was interrupted; run the same command again"
    return "extra: no manifest names it"


def _rehash(
    storage: Storage, named: list[StoreObject], there: dict[str, int] | None, progress: Progress | None, threads: int
) -> Iterator[Problem]:
    total, done = sum(item.bytes for item in named), 0
    with ThreadPoolExecutor(threads) as pool:
        for item, problem in zip(named, pool.map(lambda i: check_object(storage, i, there), named), strict=True):
            done += item.bytes
            if progress is not None:
                progress(ProgressEvent("verify", done, total, "B", item.path))
            if problem is not None:
                told = f"; {remedy(storage.root, item.path)}" if is_derived(item.path) else ""
                yield Problem(item.path, problem + told)


def check_object(storage: Storage, item: StoreObject, there: dict[str, int] | None) -> str | None:
    """What is wrong with one object, None when nothing is. there: sizes of what the storage holds; None: not known."""
    if there is not None:
        if item.path not in there:
            return "missing"
        if there[item.path] != item.bytes:
            return _wrong_size(item.bytes, there[item.path])
    try:
        size, digest = hash_stream(storage.pieces(item.path))
    except StoreMissing:
        return "missing"
    except StoreError as error:
        return f"unreadable: {error}"
    if size != item.bytes:
        return _wrong_size(item.bytes, size)
    return None if digest == item.sha256 else f"altered: expected sha256 {item.sha256}, got {digest}"


def _wrong_size(expected: int, size: int) -> str:
    kind = "empty" if size == 0 else "short" if size < expected else "long"
    return f"{kind}: expected {expected} bytes, got {size}"


def _open(storage: Storage) -> Iterator[Problem]:
    """All bytes are as written: do they also make sense together?"""
    try:
        store = Store.open(storage)
        episodes = store.episode_columns
        check_frames(store.numbers, episodes["frames"], episodes["steps"], store.root)
        _ = store.language
    except StoreError as error:
        yield Problem(MANIFEST, f"the objects contradict each other: {error}")
