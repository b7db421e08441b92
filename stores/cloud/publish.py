"""A committed store into object storage: of two writers exactly one wins, and no reader sees half of two stores.

Object storage has no rename and no lock, but conditional puts (`conditional`). ``manifest.json`` is a register, and
every publication has a folder of its own beside it, ``publication-<16 hex digits>/``, which holds a whole store:

1. A *claim* takes the register, which names the manifest that is coming and the fresh folder. From here on there is no
   store to read, and no other publisher gets in.
2. Every object is put into that folder, or copied there from the one before.
3. A *pointer* to the folder takes the claim's place: the commit.
4. Folders that the register does not name are removed.

Why whole under any stall: an object's name has one right content for ever, because all who write into a folder have its
manifest; a late put changes nothing. And a folder that was listed, and that the register did not name when it was read
*after* that, was claimed once and lost: no later claim names it again, so who removes it takes nothing from anybody.

An interrupted publication is continued, in its folder, by whoever publishes the same content. A store that is there is
replaced only by the folder that published it (``.published.json`` in the local folder says so), or when told to
(`replace`). A store that was copied here by other means, its manifest in the register, is read and replaced too.
"""

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stores.cloud.conditional import ConditionalStorage, Entry
from stores.cloud.storage import POINTER, LocalStorage, is_publication, pointed
from stores.disk import durable
from stores.disk.lock import lock
from stores.errors import StoreChanged, StoreCorrupt, StoreError, StoreLocked
from stores.layout import MANIFEST, PUBLISHED
from stores.manifest import CLAIM, Manifest, hash_objects, is_claim, read_manifest
from stores.printable import word
from stores.progress import Progress, ProgressEvent

THREADS: Final = 4
"""Objects on their way at once; each is in memory meanwhile (a shard is some tens of MB)."""
LEGACY: Final = ""
"""The folder of a store whose objects lie beside the register."""


@dataclass(frozen=True)
class Registered:
    """What the register says. manifest: hash of the store that is there, or, with `who`, of the one that is coming.

    at: its folder. who: process, host and nonce of a claim. tag: of the register. objects: of a store beside it.
    """

    manifest: str
    at: str
    tag: str
    who: dict[str, Any] | None = None
    objects: tuple[str, ...] = ()


def check_target(root: Path | str, url: str, replace: bool = False, **options: Any) -> tuple[str, ...]:
    """Raise now what `publish_store` of folder `root` would raise later about `url`; some requests, nothing is written.

    Returns the manifest hashes that may be replaced there: of what this folder published, and, with `replace`, of
    what is there now. Raises UsageError, StoreLocked, StoreChanged, or StoreError about credentials, bucket, rights.
    """
    remote = ConditionalStorage(url, **options)
    there = remote.listing()
    remote.check()
    ours = _published(root).get(remote.root, [])
    found = _registered(remote)
    if found is None:
        known = {name for name in there if name.startswith(".") or is_publication(name.partition("/")[0])}
        strangers = sorted(there.keys() - known)
        if strangers:
            raise StoreLocked(
                f"{remote.root}: expected a store or nothing there, got {strangers[:5]}; choose another prefix"
            )
        return tuple(ours)
    if replace:
        return (*ours, found.manifest)
    if found.manifest not in ours:
        raise _refused(remote.root, found)
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
        before = _registered(remote)
        if allowed is None:
            same = before is not None and before.manifest == target
            allowed = (target,) if same else check_target(root, url, replace, **options)
        _check_local(local, manifest)  # before the claim, which takes the old store away from its readers
        now = _claim(root, remote, target, {target, *allowed})
        _send(local, remote, manifest, now.at, before, progress)
        _require_whole(remote, now.at, manifest)
        if now.at != LEGACY:
            _put_manifest(remote, _under(now.at, MANIFEST), content)
        if now.who is not None:
            remote.put(MANIFEST, pointer_to(now.at, target), now.tag)
            _remember(root, remote.root, [target])
        _remove_dead(remote, before)
    return target


@contextlib.contextmanager
def _writing(root: Path | str) -> Iterator[None]:
    """The folder's lock, where it can be written to at all."""
    with lock(root, "statevla publish") if os.access(root, os.W_OK) else contextlib.nullcontext():
        yield


def _check_local(local: LocalStorage, manifest: Manifest) -> None:
    for found, item in zip(hash_objects(local.root, [i.path for i in manifest.objects]), manifest.objects, strict=True):
        if found != item:
            raise StoreCorrupt(
                f"{local.root}: {item.path} is not what {MANIFEST} says; run `statevla verify {word(local.root)}`"
            )


def _registered(remote: ConditionalStorage) -> Registered | None:
    """What the register says now, None when there is none. Raises StoreLocked when it is not ours to read."""
    found = remote.get(MANIFEST)
    return None if found is None else _parse(remote.root, *found)


def _parse(url: str, data: bytes, tag: str) -> Registered:
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError, StoreError):
        if (found := parse_register(data, tag)) is not None:
            return found
        objects = tuple(item.path for item in Manifest.from_bytes(data, url).objects)
        return Registered(hashlib.sha256(data).hexdigest(), LEGACY, tag, objects=objects)
    raise StoreLocked(f"{url}: its {MANIFEST} is not one of a store (or is damaged); choose another prefix")


def parse_register(data: bytes, tag: str) -> Registered | None:
    """A claim or a pointer; None where `data` is neither. Raises StoreCorrupt when it is one that nobody could read."""
    try:
        if is_claim(data):
            who = json.loads(data)[CLAIM]
            at = who.get("at", LEGACY)
            if at == LEGACY or is_publication(at):
                return Registered(str(who["manifest"]), at, tag, who)
            raise ValueError(f"a claim of {at!r}")
        if (found := pointed(data)) is not None:
            return Registered(found[1], found[0], tag)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorrupt(f"{MANIFEST}: {error}") from error
    return None


def claim_of(manifest: str, at: str | None) -> tuple[str, bytes]:
    """A claim by this process for `manifest`: folder (`at`, or a fresh one) and bytes, which nobody else has."""
    nonce = os.urandom(8).hex()
    at = at or f"publication-{nonce}"
    who = {"manifest": manifest, "at": at, "pid": os.getpid(), "host": socket.gethostname(), "nonce": nonce}
    return at, durable.json_bytes({CLAIM: who})


def pointer_to(at: str, manifest: str) -> bytes:
    """What takes a claim's place."""
    return durable.json_bytes({POINTER: {"at": at, "manifest": manifest}})


def _claim(root: Path | str, remote: ConditionalStorage, target: str, allowed: set[str]) -> Registered:
    """Take the register for `target`; what it says then. Without `who` where the store is there already."""
    found = _registered(remote)
    if found is not None and found.who is None and found.manifest == target:
        return found
    if found is not None and found.manifest not in allowed:
        raise _refused(remote.root, found)
    ours = _published(root).get(remote.root, [])
    # Before the claim: a claim that nobody remembers stays for ever.
    _remember(root, remote.root, [*dict.fromkeys([*ours, target])])
    goes_on = found is not None and found.manifest == target
    at, claim = claim_of(target, found.at if found is not None and goes_on else None)
    try:
        tag = remote.put(MANIFEST, claim, None if found is None else found.tag)
    except StoreChanged as error:
        now = _registered(remote)
        raise (_refused(remote.root, now) if now is not None else error) from error
    return Registered(target, at, tag, json.loads(claim)[CLAIM])


def _send(
    local: LocalStorage, remote: ConditionalStorage, manifest: Manifest, at: str, before: Registered | None,
    progress: Progress | None,
) -> None:  # fmt: skip
    """Put or copy into folder `at` every object that is not there as it should be. before: what may be copied from."""
    items = {item.path: item for item in manifest.objects}
    there = remote.listing(at)
    # Not from beside the register: who writes there by other means is not held to one content for a name.
    older = {} if before is None or before.at in (at, LEGACY) else remote.listing(before.at)
    done, total = 0, sum(item.bytes for item in items.values())

    def send(path: str) -> None:
        data = local.read(path)
        if (len(data), hashlib.sha256(data).hexdigest()) != (items[path].bytes, items[path].sha256):
            raise StoreCorrupt(
                f"{local.root}: {path} is not what {MANIFEST} says; run `statevla verify {word(local.root)}`"
            )
        name = _under(at, path)
        entry: Entry | None = there.get(name)
        if entry is not None and remote.holds(name, entry, data):
            return
        old = "" if before is None else _under(before.at, path)
        if old in older and remote.shows(older[old], data) and remote.copy(old, name):
            return
        remote.put(name, data, None if entry is None else entry.tag)

    with ThreadPoolExecutor(THREADS) as pool:
        for path, _ in zip(sorted(items), pool.map(send, sorted(items)), strict=True):
            done += items[path].bytes
            if progress is not None:
                progress(ProgressEvent("publish", done, total, "B"))


def _require_whole(remote: ConditionalStorage, at: str, manifest: Manifest) -> None:
    """Raise StoreChanged unless every object is in folder `at`. What is there is right: nobody writes others."""
    there = remote.listing(at)
    names = {_under(at, item.path): item.bytes for item in manifest.objects}
    changed = [name for name, size in names.items() if name not in there or there[name].bytes != size]
    if changed:
        raise StoreChanged(f"{remote.root}: somebody else writes there: {changed[:5]} changed; run it again")


def _put_manifest(remote: ConditionalStorage, name: str, content: bytes) -> None:
    found = remote.get(name)
    if found is None or found[0] != content:
        remote.put(name, content, None if found is None else found[1])


def _remove_dead(remote: ConditionalStorage, before: Registered | None) -> None:
    """Remove the folders of publications that lost, and what lay beside the register before it pointed to a folder."""
    there = remote.listing()
    now = _registered(remote)  # after the listing: a folder that is claimed in between is not in it
    if now is None or now.at == LEGACY:
        return
    folders = {folder for folder in (name.partition("/")[0] for name in there) if is_publication(folder)}
    beside = set(before.objects) if before is not None else set()
    remote.remove(name for name in there if name.partition("/")[0] in folders - {now.at} or name in beside)


def _under(at: str, path: str) -> str:
    return path if at == LEGACY else f"{at}/{path}"


def _tag(remote: ConditionalStorage, name: str) -> str | None:
    found = remote.get(name)
    return None if found is None else found[1]


def put_derived(url: str, name: str, data: bytes) -> None:
    """Put a file of a derived folder, in place of what is there now (a damaged one). Raises StoreError."""
    remote = ConditionalStorage(url)
    found = _registered(remote)
    where = _under(LEGACY if found is None else found.at, name)
    remote.put(where, data, _tag(remote, where))


def _refused(url: str, found: Registered) -> StoreLocked:
    if found.who is None:
        return StoreLocked(
            f"{url}: another store is there, which this folder did not publish (manifest {found.manifest[:16]}…). "
            "Nothing was overwritten; choose another prefix, or replace it with --replace"
        )
    return StoreLocked(
        f"{url}: another store is being published there, by process {found.who.get('pid')} on "
        f"{found.who.get('host')}. Wait for it, or choose another prefix; if it died, publish that store again, or "
        "replace it with --replace"
    )


def _published(root: Path | str) -> dict[str, list[str]]:
    path = Path(root, PUBLISHED)
    if not path.is_file():
        return {}
    try:
        found: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{path}: not JSON: {error}; remove it and say --replace") from error
    if not isinstance(found, dict) or not all(isinstance(hashes, list) for hashes in found.values()):
        raise StoreCorrupt(f"{path}: expected lists of hashes by URL; remove it and say --replace")
    return found


def _remember(root: Path | str, url: str, hashes: list[str]) -> None:
    """Note what this folder publishes; a folder that cannot be written to cannot replace its store later."""
    if os.access(root, os.W_OK):
        durable.write_json(Path(root, PUBLISHED), {**_published(root), url: hashes})
