"""A committed store into object storage: of two writers exactly one wins, and no reader sees half of two stores.

Object storage has no rename and no lock, but conditional puts (`conditional`). There ``manifest.json`` is a
register:

1. A *claim* takes its place, which names the manifest that is coming. From here on there is no store to read, and no
   other publisher gets in.
2. Every object that is not there already is put, each only where there is what was seen; leftovers are removed.
3. The manifest takes the claim's place: the commit.

An interrupted publication is continued by whoever publishes the same content. A store that is there is replaced only by
the folder that published it (``.published.json`` in the folder says so), or when told to (`replace`).
"""

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from stores.cloud.conditional import ConditionalStorage, Entry
from stores.cloud.storage import LocalStorage
from stores.disk import durable
from stores.errors import StoreChanged, StoreCorrupt, StoreLocked
from stores.layout import DERIVED, FILES, MANIFEST, PUBLISHED
from stores.layout import OWN_FOLDERS as _OWN
from stores.manifest import CLAIM, Manifest, hash_objects, is_claim, read_manifest
from stores.progress import Progress, ProgressEvent

THREADS: Final = 4
"""Objects on their way at once; each is in memory meanwhile (a shard is some tens of MB)."""
OWN_FOLDERS: Final = tuple(f"{folder}/" for folder in _OWN)
_PARTS: Final = (*FILES, *OWN_FOLDERS, *(f"{folder}/" for folder in sorted(DERIVED)))


def check_target(root: Path | str, url: str, replace: bool = False, **options: Any) -> tuple[str, ...]:
    """Raise now what `publish_store` of folder `root` would raise later about `url`; some requests, nothing is written.

    Returns the manifest hashes that may be replaced there: of what this folder published, and, with `replace`, of
    what is there now. Raises UsageError, StoreLocked, StoreChanged, or StoreError about credentials, bucket, rights.
    """
    remote = ConditionalStorage(url, **options)
    there = remote.listing()
    remote.check()
    ours = _published(root).get(remote.root, [])
    found = remote.get(MANIFEST)
    if found is None:
        strangers = sorted(name for name in there if not name.startswith((".", *_PARTS)))
        if strangers:
            raise StoreLocked(
                f"{remote.root}: expected a store or nothing there, got {strangers[:5]}; choose another prefix"
            )
        return tuple(ours)
    if replace:
        return (*ours, _content(found[0]))
    if _content(found[0]) not in ours:
        raise _refused(remote.root, found[0])
    return tuple(ours)


def publish_store(
    root: Path | str, url: str, progress: Progress | None = None, replace: bool = False,
    allowed: tuple[str, ...] | None = None, **options: Any,
) -> str:  # fmt: skip
    """Copy the store at folder `root` to the object storage `url` and commit it there; returns its manifest hash.

    replace: whatever store is there now may be replaced. allowed: what may be replaced (hashes of manifests), as
    `check_target` found it. options: for fsspec. What is there already is not sent again.
    Raises StoreMissing or StoreCorrupt about the local store, StoreLocked when somebody else's store is at `url` or
    somebody else won the race for it, UsageError and StoreError when it cannot be written.
    """
    local, remote = LocalStorage(root), ConditionalStorage(url, **options)
    content = read_manifest(local)
    target = hashlib.sha256(content).hexdigest()
    manifest = Manifest.from_bytes(content, str(root))
    with _writing(root):
        if allowed is None:
            found = remote.get(MANIFEST)
            same = found is not None and _content(found[0]) == target
            allowed = (target,) if same else check_target(root, url, replace, **options)
        _check_local(local, manifest)  # before the claim, which takes the old store away from its readers
        claim = _claim(root, remote, target, {target, *allowed})
        tags = _send(local, remote, manifest, progress)
        there = remote.listing()
        strangers = [name for name in there if name.startswith(OWN_FOLDERS) and name not in tags]
        changed = [name for name, tag in tags.items() if name not in there or there[name].tag != tag]
        if changed:
            raise StoreChanged(f"{remote.root}: somebody else writes there: {changed[:5]} changed; run it again")
        if claim is not None:
            remote.remove(strangers)
            remote.put(MANIFEST, content, claim)
            _remember(root, remote.root, [target])
    return target


@contextlib.contextmanager
def _writing(root: Path | str) -> Iterator[None]:
    """The folder's lock, where it can be written to at all."""
    with durable.lock(root, "statevla publish") if os.access(root, os.W_OK) else contextlib.nullcontext():
        yield


def _check_local(local: LocalStorage, manifest: Manifest) -> None:
    for found, item in zip(hash_objects(local.root, [i.path for i in manifest.objects]), manifest.objects, strict=True):
        if found != item:
            raise StoreCorrupt(
                f"{local.root}: {item.path} is not what {MANIFEST} says; run `statevla verify {local.root}`"
            )


def _claim(root: Path | str, remote: ConditionalStorage, target: str, allowed: set[str]) -> str | None:
    """Put the claim in the manifest's place; its tag. None when the manifest itself is there already."""
    found = remote.get(MANIFEST)
    if found is not None and not is_claim(found[0]) and _content(found[0]) == target:
        return None
    if found is not None and _content(found[0]) not in allowed:
        raise _refused(remote.root, found[0])
    ours = _published(root).get(remote.root, [])
    _remember(
        root, remote.root, [*dict.fromkeys([*ours, target])]
    )  # before the claim: a claim that nobody remembers stays for ever
    who = {"manifest": target, "pid": os.getpid(), "host": socket.gethostname(), "nonce": os.urandom(8).hex()}
    try:
        return remote.put(MANIFEST, durable.json_bytes({CLAIM: who}), None if found is None else found[1])
    except StoreChanged as error:
        now = remote.get(MANIFEST)
        raise (_refused(remote.root, now[0]) if now is not None else error) from error


def _send(
    local: LocalStorage, remote: ConditionalStorage, manifest: Manifest, progress: Progress | None
) -> dict[str, str]:
    """Put every object that is not there as it should be; the tag of each."""
    items = {item.path: item for item in manifest.objects}
    there = remote.listing()
    done, total = 0, sum(item.bytes for item in items.values())

    def send(path: str) -> str:
        data = local.read(path)
        if (len(data), hashlib.sha256(data).hexdigest()) != (items[path].bytes, items[path].sha256):
            raise StoreCorrupt(f"{local.root}: {path} is not what {MANIFEST} says; run `statevla verify {local.root}`")
        entry: Entry | None = there.get(path)
        if entry is not None and remote.holds(path, entry, data):
            return entry.tag
        return remote.put(path, data, None if entry is None else entry.tag)

    tags = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for path, tag in zip(sorted(items), pool.map(send, sorted(items)), strict=True):
            tags[path] = tag
            done += items[path].bytes
            if progress is not None:
                progress(ProgressEvent("publish", done, total, "B"))
    return tags


def put_derived(url: str, name: str, data: bytes) -> None:
    """Put a file of a derived folder, in place of what is there now (a damaged one). Raises StoreError."""
    remote = ConditionalStorage(url)
    found = remote.get(name)
    remote.put(name, data, None if found is None else found[1])


def _content(data: bytes) -> str:
    """The hash of the manifest that `data` is, or claims the place for."""
    if is_claim(data):
        claimed: str = json.loads(data)[CLAIM]["manifest"]
        return claimed
    return hashlib.sha256(data).hexdigest()


def _refused(url: str, data: bytes) -> StoreLocked:
    if not is_claim(data):
        return StoreLocked(
            f"{url}: another store is there, which this folder did not publish (manifest {_content(data)[:16]}…). "
            "Nothing was overwritten; choose another prefix, or replace it with --replace"
        )
    who = json.loads(data)[CLAIM]
    return StoreLocked(
        f"{url}: another store is being published there, by process {who['pid']} on {who['host']}. Wait for it, or "
        "choose another prefix; if it died, publish that store again, or replace it with --replace"
    )


def _published(root: Path | str) -> dict[str, list[str]]:
    path = Path(root, PUBLISHED)
    if not path.is_file():
        return {}
    try:
        found: dict[str, list[str]] = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreCorrupt(f"{path}: not JSON: {error}; remove it and say --replace") from error
    return found


def _remember(root: Path | str, url: str, hashes: list[str]) -> None:
    """Note what this folder publishes; a folder that cannot be written to cannot replace its store later."""
    if os.access(root, os.W_OK):
        durable.write_json(Path(root, PUBLISHED), {**_published(root), url: hashes})
