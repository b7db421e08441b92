"""Copying a committed store into object storage, so that of two writers one wins and nothing is ever overwritten.

Object storage has no rename and no lock, but it has a conditional put: create this object only where there is none.
Every object goes up that way, the manifest last: that is the commit. An object that is there already must be the same,
byte for byte (an interrupted copy is continued so); another one is another store's, and this copy is refused.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from stores.errors import StoreCorrupt, StoreLocked, UsageError
from stores.manifest import MANIFEST, Manifest, hash_stream, read_manifest
from stores.progress import Progress, ProgressEvent
from stores.storage import LocalStorage, RemoteStorage

THREADS: Final = 4
"""Objects on their way at once; each is in memory meanwhile (a shard is some tens of MB)."""


def publish_store(root: Path | str, url: str, progress: Progress | None = None, **options: Any) -> str:
    """Copy the store at folder `root` to the fsspec URL `url` and commit it there; returns its manifest hash.

    options: for fsspec. A store that is there already with the same content is left as it is.
    Raises StoreMissing or StoreCorrupt about the local store, StoreLocked when another store is at `url` or won the
    race for it, UsageError when the file system there has no conditional put, StoreError when it cannot be written.
    """
    if "://" not in url:
        raise UsageError(f"{url}: expected a URL such as s3://bucket/prefix; a folder is copied by other means")
    local, remote = LocalStorage(root), RemoteStorage(url, **options)
    content = read_manifest(local)
    items = {item.path: item for item in Manifest.from_bytes(content, f"{root}: {MANIFEST}").objects}
    done, total = 0, sum(item.bytes for item in items.values())

    def copy(path: str) -> int:
        data = local.read(path)
        if (len(data), hashlib.sha256(data).hexdigest()) != (items[path].bytes, items[path].sha256):
            raise StoreCorrupt(f"{root}: {path} is not what {MANIFEST} says; run `statevla verify {root}`")
        put_once(remote, path, data)
        return len(data)

    with ThreadPoolExecutor(THREADS) as pool:
        for count in pool.map(copy, sorted(items)):
            done += count
            if progress is not None:
                progress(ProgressEvent("publish", done, total, "B"))
    put_once(remote, MANIFEST, content)
    return hashlib.sha256(content).hexdigest()


def put_once(remote: RemoteStorage, name: str, data: bytes) -> None:
    """Create object `name`, or find the same bytes there. Raises StoreLocked when others are there."""
    if remote.create(name, data):
        return
    if hash_stream(remote.pieces(name)) != (len(data), hashlib.sha256(data).hexdigest()):
        raise StoreLocked(
            f"{remote.root}: {name} is there already and differs: another store is, or is being, published there. "
            "Nothing of it was overwritten; choose another prefix, or remove that one first"
        )
