"""Object storage as a register: an object is created only where there is none, replaced only while it is what we saw.

A *tag* names one version of an object (S3's ETag). With conditional puts two writers cannot both believe that they
wrote an object, without any lock: ``If-None-Match: *`` to create, ``If-Match: <tag>`` to replace.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from stores.cloud.storage import RemoteStorage, error_code, named_errors
from stores.disk.durable import TEMP_PREFIX
from stores.errors import PlaceMissing, StoreChanged, StoreError, StoreMissing, UsageError
from stores.manifest import hash_stream

_LOST: Final = ("PreconditionFailed", "ConditionalRequestConflict")
"""What S3 answers when the condition did not hold (HTTP 412), or when another put was under way (409)."""
_NO_TAG: Final = '"00000000000000000000000000000000"'
_READS: Final = 10


@dataclass(frozen=True)
class Entry:
    """An object as a listing shows it."""

    bytes: int
    tag: str


class _Put(Protocol):
    def __call__(self, files: Any, path: str, data: bytes, tag: str | None) -> str:
        """Write `data` where `tag` is still the object's (None: where there is none); its tag. Raises StoreChanged."""


@dataclass(frozen=True)
class _Kind:
    """One kind of object storage: how it puts, how it tells a tag, which tag bytes would have ("" where unknown)."""

    put: _Put
    tag: Any
    tag_of: Any


def _put_s3(files: Any, path: str, data: bytes, tag: str | None) -> str:
    bucket, key, _ = files.split_path(path)
    condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
    try:
        answer = files.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
    except OSError as error:
        code = error_code(error)
        if code in _LOST or (code == "NoSuchKey" and tag is not None):
            raise StoreChanged(f"{path} is not what it was") from error
        raise
    found: str = answer["ETag"]
    return found


def _tag_s3(files: Any, path: str) -> str:
    bucket, key, _ = files.split_path(path)
    tag: str = files.call_s3("head_object", Bucket=bucket, Key=key)["ETag"]
    return tag


def _tag_of_s3(data: bytes) -> str:
    """The ETag of an object put in one piece and not encrypted with a key of one's own."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


_memory_lock: Final = threading.Lock()


def _put_memory(files: Any, path: str, data: bytes, tag: str | None) -> str:
    with _memory_lock:
        now = _tag_memory(files, path) if files.exists(path) else None
        if now != tag:
            raise StoreChanged(f"{path} is not what it was")
        files.pipe_file(path, data)
    return _tag_of_memory(data)


def _tag_memory(files: Any, path: str) -> str:
    return _tag_of_memory(files.cat_file(path))


def _tag_of_memory(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_S3: Final = _Kind(_put_s3, _tag_s3, _tag_of_s3)
KINDS: Final = {"s3": _S3, "s3a": _S3, "memory": _Kind(_put_memory, _tag_memory, _tag_of_memory)}


class ConditionalStorage:
    """A prefix in object storage to write to. `storage` reads it.

    Raises UsageError when `url` is none, or of a kind without conditional puts.
    """

    def __init__(self, url: str, **options: Any) -> None:
        protocol, _, rest = url.partition("://")
        if not rest:
            raise UsageError(f"{url}: expected a URL such as s3://bucket/prefix")
        if protocol not in KINDS:
            raise UsageError(
                f"{url}: stores can be written to {', '.join(f'{kind}://' for kind in KINDS)}, which can put an object "
                "conditionally; copy a local store there by other means, its manifest.json last"
            )
        self._kind = KINDS[protocol]
        self.storage = RemoteStorage(url, **options)
        self.root = self.storage.root
        self._files, self._path = self.storage.files, self.storage.path

    def check(self) -> None:
        """Raise unless conditional puts are allowed here and obeyed; writes nothing. StoreError says what is wrong.

        The probe is a put to a name nobody uses on a condition that cannot hold: a server that does not know
        conditions would carry it out.
        """
        probe = f"{TEMP_PREFIX}probe-{os.urandom(6).hex()}"
        try:
            self.put(probe, b"", _NO_TAG)
        except StoreChanged:
            return
        self.remove([probe])
        raise StoreError(f"{self.root}: the server ignores the condition of a put; of two writers both would win")

    def listing(self, folder: str = "") -> dict[str, Entry]:
        """Every object below the prefix (and its `folder`), as it is now, by its name below the prefix."""
        base = self._path.rstrip("/") + "/"
        with named_errors(self.root, "the list of objects"):
            self._files.invalidate_cache()
            found = self._files.find(f"{base}{folder}".rstrip("/"), detail=True)
            return {
                path.removeprefix(base): Entry(
                    int(info["size"]), info["ETag"] if "ETag" in info else self._kind.tag(self._files, path)
                )
                for path, info in found.items()
            }

    def get(self, name: str) -> tuple[bytes, str] | None:
        """(content, tag) of one object, both of the same moment; None when there is none."""
        path = f"{self._path}/{name}"
        for _ in range(_READS):
            try:
                with named_errors(self.root, name):
                    data = bytes(self._files.cat_file(path))
                    tag = self._kind.tag(self._files, path)
                    if tag == self._kind.tag_of(data) or bytes(self._files.cat_file(path)) == data:
                        return data, tag
            except PlaceMissing:
                raise
            except StoreMissing:
                return None
        raise StoreChanged(f"{self.root}: {name} changes all the time: somebody else writes there")

    def put(self, name: str, data: bytes, tag: str | None) -> str:
        """Create (`tag` None) or replace one object, in one atomic step; its new tag.

        Raises StoreChanged when another one is there. A put whose answer was lost and which was sent again by the
        client is recognised by what is there.
        """
        try:
            with named_errors(self.root, name, "written"):
                written = self._kind.put(self._files, f"{self._path}/{name}", data, tag)
                self._files.invalidate_cache()  # a listing of before would hide the object from readers
                return written
        except StoreChanged as error:
            found = self.get(name)
            if found is not None and found[0] == data:
                return found[1]
            raise StoreChanged(f"{self.root}: {name} was changed by somebody else meanwhile") from error

    def shows(self, entry: Entry, data: bytes) -> bool:
        """Whether the listing alone says that the object is `data`; servers with tags of their own do not say."""
        return entry.bytes == len(data) and entry.tag == self._kind.tag_of(data)

    def holds(self, name: str, entry: Entry, data: bytes) -> bool:
        """Whether object `name`, listed as `entry`, is `data`; it is read only where its tag does not tell."""
        if self.shows(entry, data):
            return True
        whole = len(data), hashlib.sha256(data).hexdigest()
        return entry.bytes == len(data) and hash_stream(self.storage.pieces(name)) == whole

    def copy(self, name: str, target: str) -> bool:
        """Copy an object on the server, over what is at `target`; False when there is none of that `name`."""
        try:
            with named_errors(self.root, name, "copied"):
                self._files.cp_file(f"{self._path}/{name}", f"{self._path}/{target}")
        except PlaceMissing:
            raise
        except StoreMissing:
            return False
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; no error where there is none."""
        self._files.invalidate_cache()
        for name in names:
            self.remove_one(name)

    def remove_one(self, name: str) -> None:
        """Remove an object; no error where there is none."""
        with named_errors(self.root, name, "removed"), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self._path}/{name}")
