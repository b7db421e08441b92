"""Reading bytes by name from a folder or from any fsspec URL. Nothing here writes (`stores.cloud.conditional` does).

A name is a path below the root with ``/``. Handles stay open between calls of `Storage.read_into` and `advise`.

What `stores.cloud.publish` put at a URL lies in a folder of its own; ``manifest.json`` is then a *pointer* to it, which
`open_storage` follows once: a reader stays with the store that it opened.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from stores.cloud.again import ShortAnswer, again
from stores.disk import trouble
from stores.disk.handles import Handles, NotAFile, open_file
from stores.errors import PlaceMissing, StateVLAError, StoreCorrupt, StoreError, StoreMissing, UsageError
from stores.layout import is_derived, remedy
from stores.printable import plain, word

IOV_MAX: Final = 1024
"""Buffers that one system call may fill."""

POINTER: Final = "published"
"""The only field of a pointer: {"at": folder, "manifest": its manifest's hash}."""
REGISTER: Final = "manifest.json"
_POINTER_BYTES: Final = 512
_FOLDER: Final = re.compile(r"publication-[0-9a-f]{16}")
PIECE: Final = 1 << 18
"""Bytes read at once when hashing: small enough to stay in the processor's cache."""
SILENT_SECONDS: Final = 60.0
"""A web server that sends nothing for so long is taken for gone, as an S3 is; aiohttp alone would wait five minutes."""
ADVISED: Final = 1 << 17
"""Bytes that a system begins to read when it is asked, at least; of more, some leave the rest."""
REMOTE_PIECE: Final = 8 * PIECE
"""The same, where each piece is a request."""

Sound = Callable[[bytes | memoryview], bool]
"""Whether bytes are what they should be, by the checksum that an index has of them."""


@runtime_checkable
class Storage(Protocol):
    """What readers need. `root` is for messages and equality; `lists` tells whether `sizes` can be asked."""

    root: str
    lists: bool

    def read(self, name: str) -> bytes:
        """The whole object. Raises StoreMissing."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises StoreMissing, or StoreCorrupt when the object is shorter."""

    def read_checked(self, name: str, content: str, offset: int, size: int, sound: Sound) -> bytes:
        """`read_range`, of an object whose sha256 is `content`. What is `sound` may be kept near by; the caller says
        what is wrong with what is not.
        """

    def read_into(self, name: str, offset: int, views: Sequence[memoryview]) -> None:
        """Fill `views` one after the other from `offset` on. Raises as `read_range`."""

    def advise(self, name: str, offset: int, size: int) -> None:
        """These bytes will be read soon: a disk may begin to. Returns at once, and raises nothing."""

    def pieces(self, name: str) -> Iterator[bytes | memoryview]:
        """The whole object in pieces of bounded size, for hashing: each is gone with the next. Raises StoreMissing."""

    def local_path(self, name: str) -> str | None:
        """Where the object lies on this machine; None when it does not."""

    def sizes(self, skip: Collection[str] = ()) -> dict[str, int]:
        """Bytes of every object below the root, but for those in the top-level folders `skip`.

        Raises UsageError where nothing can be listed.
        """


class LocalStorage:
    """A folder on a local (or mounted) file system: `pread` on a handle opened for the call, or kept."""

    def __init__(self, root: Path | str) -> None:
        self.root, self.lists = str(root), True
        self._handles = Handles(self.root)

    def local_path(self, name: str) -> str | None:
        return os.path.join(self.root, name)

    def read(self, name: str) -> bytes:
        with named_errors(self.root, name), os.fdopen(self._open(name), "rb", buffering=0) as handle:
            return handle.readall()

    def _open(self, name: str) -> int:
        """A descriptor. What is no ordinary file (a pipe would wait for ever) is refused."""
        with self._ordinary(name):
            return open_file(os.path.join(self.root, name))

    @contextlib.contextmanager
    def _ordinary(self, name: str) -> Iterator[None]:
        try:
            yield
        except NotAFile:
            raise StoreCorrupt(
                f"{self.root}: {name} is not an ordinary file; run `statevla verify {word(self.root)}`"
            ) from None

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        with named_errors(self.root, name):
            descriptor = self._open(name)
            try:
                data = os.pread(descriptor, size, offset)
                while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
                    data += more  # one pread returns at most 2 GiB
            finally:
                os.close(descriptor)
        return _exact(data, self.root, name, offset, size)

    def read_checked(self, name: str, content: str, offset: int, size: int, sound: Sound) -> bytes:
        return self.read_range(name, offset, size)

    def read_into(self, name: str, offset: int, views: Sequence[memoryview]) -> None:
        with named_errors(self.root, name), self._ordinary(name):
            got = self._handles.read(name, lambda descriptor: _fill_all(descriptor, offset, views))
        wanted = sum(len(view) for view in views)
        if got != wanted:
            raise StoreCorrupt(
                f"{self.root}: {name}: expected {wanted} bytes from {offset}, got {got}: the file is shorter"
            )

    def advise(self, name: str, offset: int, size: int) -> None:
        def ask(descriptor: int) -> int:
            for at in range(offset, offset + size, ADVISED):
                os.posix_fadvise(descriptor, at, min(ADVISED, offset + size - at), os.POSIX_FADV_WILLNEED)
            return 0

        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError, NotAFile):  # who reads says what is wrong
                self._handles.read(name, ask)

    def pieces(self, name: str) -> Iterator[memoryview]:
        # One buffer for all pieces: it stays in the processor's cache, and no memory is asked for on the way.
        buffer = memoryview(bytearray(PIECE))
        with named_errors(self.root, name), os.fdopen(self._open(name), "rb", buffering=0) as handle:
            while count := handle.readinto(buffer):
                yield buffer[:count]

    def sizes(self, skip: Collection[str] = ()) -> dict[str, int]:
        found: dict[str, int] = {}
        folders = [""]
        while folders:
            prefix = folders.pop()
            with contextlib.suppress(FileNotFoundError), os.scandir(os.path.join(self.root, prefix)) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        found[prefix + entry.name] = entry.stat(follow_symlinks=False).st_size
                    elif prefix or entry.name not in skip:
                        folders.append(f"{prefix}{entry.name}/")
        return found


def is_publication(folder: str) -> bool:
    """Whether `folder` is a name that a publication gives to its folder."""
    return _FOLDER.fullmatch(folder) is not None


def pointed(data: bytes) -> tuple[str, str] | None:
    """What a pointer names: a folder, and the sha256 of the manifest in it; None where `data` is none."""
    if not data.startswith(f'{{\n "{POINTER}": {{'.encode()):
        return None
    try:
        at, manifest = (json.loads(data)[POINTER][name] for name in ("at", "manifest"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    named = isinstance(at, str) and isinstance(manifest, str) and is_publication(at)
    return (at, manifest) if named else None


def require_pointed(data: bytes, promised: str, where: str) -> bytes:
    """`data`, the manifest that a pointer names with its hash. Raises StoreCorrupt where it is another."""
    found = hashlib.sha256(data).hexdigest()
    if found != promised:
        raise StoreCorrupt(
            f"{where}: the pointer names a manifest of sha256 {plain(promised):.16}…, its folder has {found:.16}…"
        )
    return data


class RemoteStorage:
    """Any file system of fsspec: ``memory://``, ``s3://``, ``gs://``, ``https://`` … by byte ranges.

    files, path: fsspec's file system, and the prefix in it.
    """

    def __init__(self, url: str, **options: Any) -> None:
        import fsspec

        self.root = url.rstrip("/")
        self.lists = not self.root.startswith(("http://", "https://"))
        with named_errors(self.root, "the file system of this URL"):
            if self.root.startswith(("http://", "https://")):
                import aiohttp

                silent = aiohttp.ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
                options = {"client_kwargs": {"timeout": silent}, **options}
            self._files, self.path = fsspec.core.url_to_fs(self.root, **options)
        self._options, self._process = options, os.getpid()
        self._promised: str | None = None

    @property
    def files(self) -> Any:
        """fsspec's file system; a forked process makes its own, because a loop of events does not outlive a fork."""
        if self._process != os.getpid():
            import fsspec

            fresh = {**self._options, "skip_instance_cache": True}
            self._files, self._process = fsspec.core.url_to_fs(self.root, **fresh)[0], os.getpid()
        return self._files

    def local_path(self, name: str) -> str | None:
        return None

    def follow(self) -> "RemoteStorage":
        """Read, from now on, the folder that the pointer here names; nothing changes where there is none."""
        with contextlib.suppress(StoreMissing), named_errors(self.root, REGISTER):
            head = self._get(REGISTER, 0, _POINTER_BYTES)
            if (found := pointed(head)) is not None:
                self.path, self._promised = f"{self.path}/{found[0]}", found[1]
        return self

    def read(self, name: str) -> bytes:
        with named_errors(self.root, name):
            data = self._get(name)
        if name == REGISTER and self._promised is not None:
            require_pointed(data, self._promised, f"{self.root}: {name}")
        return data

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        def whole_or_ended() -> bytes:
            path = f"{self.path}/{name}"
            data = bytes(self.files.cat_file(path, start=offset, end=offset + size))
            # A server may give part of a range, a proxy lose the rest: only where the object ends is it really short.
            if len(data) < size and self.files.size(path) != offset + len(data):
                raise ShortAnswer(f"expected {size} bytes at {offset}, got {len(data)}")
            return data

        with named_errors(self.root, name):
            data = again(whole_or_ended, self.root, name)
            if len(data) > size:
                raise StoreError(
                    f"{self.root}: {name}: asked for {size} bytes, got {len(data)}: this server does not know byte "
                    "ranges (HTTP Range); serve the store with one that does, or copy it"
                )
        return _exact(data, self.root, name, offset, size)

    def _get(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        path = f"{self.path}/{name}"
        return again(lambda: bytes(self.files.cat_file(path, start=start, end=end)), self.root, name)

    def read_checked(self, name: str, content: str, offset: int, size: int, sound: Sound) -> bytes:
        return self.read_range(name, offset, size)

    def read_into(self, name: str, offset: int, views: Sequence[memoryview]) -> None:
        data = memoryview(self.read_range(name, offset, sum(len(view) for view in views)))
        at = 0
        for view in views:
            view[:] = data[at : at + len(view)]
            at += len(view)

    def advise(self, name: str, offset: int, size: int) -> None:
        """Nothing lies on a disk here."""

    def pieces(self, name: str) -> Iterator[bytes]:
        """By ranges, so that a connection that breaks costs one of them; whole where the server knows no ranges."""
        with named_errors(self.root, name):
            size = again(lambda: self.files.size(f"{self.path}/{name}"), self.root, name)
        if size is None:  # a server that does not say
            yield self.read(name)
            return
        with named_errors(self.root, name):
            first = self._get(name, 0, min(REMOTE_PIECE, size)) if size else b""
        yield first
        for start in range(len(first), size, REMOTE_PIECE):
            yield self.read_range(name, start, min(REMOTE_PIECE, size - start))

    def sizes(self, skip: Collection[str] = ()) -> dict[str, int]:
        if not self.lists:
            raise UsageError(f"{self.root}: a web server lists no objects; copy the store, or serve it from a bucket")
        base = self.path.rstrip("/") + "/"
        with named_errors(self.root, "the list of objects"):
            self.files.invalidate_cache()
            found = self._find_but(skip, base) if skip else self.files.find(self.path, detail=True)
        return {path.removeprefix(base): int(info["size"]) for path, info in found.items()}

    def _find_but(self, skip: Collection[str], base: str) -> dict[str, Any]:
        """`find`, one folder at a time, without going into those of `skip`: they may hold a thousand times as much."""
        found: dict[str, Any] = {}
        for info in self.files.ls(self.path, detail=True):
            name = info["name"].rstrip("/").removeprefix(base)
            if info["type"] != "directory":
                found[info["name"]] = info
            elif name not in skip:
                found |= self.files.find(base + name, detail=True)
        return found


HINTS: Final = {
    "NoCredentialsError": "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "PartialCredentialsError": "only part of the credentials was found: set both AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY",
    "PermissionError": "the credentials do not allow it",
    "EndpointConnectionError": "the endpoint does not answer",
    "ImportError": "the package for this kind of URL is not installed (s3://: pip install s3fs)",
}
"""What errors of file systems mean, by the name of their type."""


@contextlib.contextmanager
def named_errors(root: str, name: str, done: str = "read") -> Iterator[None]:
    """Turn whatever a file system raises into a StoreError that names the object.

    All exceptions, because every fsspec backend has its own (no credentials, no bucket, no network). They are told by
    type and by the server's code; what their text says depends on names that people chose.
    """
    try:
        yield
    except StateVLAError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        if error_code(error) == "NoSuchBucket":
            raise PlaceMissing(f"{root}: there is no such bucket: {error}") from error
        store = f"run `statevla verify {word(root)}` to see what else is, then ingest again"
        told = remedy(root, name) if is_derived(name) else store
        raise StoreMissing(f"{root}: {name} is missing; {told}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno and "://" not in root:
            raise StoreError(f"{name} cannot be {done}: {trouble.describe(error)}") from error
        hint = HINTS.get(type(error).__name__)
        reason = f"{hint} ({error})" if hint else f"{type(error).__name__}: {error}"
        raise StoreError(f"{root}: {name} cannot be {done}: {reason}") from error


def error_code(error: BaseException | None) -> str | None:
    """What the server said (S3: "NoSuchKey", "PreconditionFailed" …), from the error or what it came from."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and isinstance(response.get("Error"), dict):
            code = response["Error"].get("Code")
            return None if code is None else str(code)
        error = error.__cause__
    return None


def open_storage(root: Path | str | Storage, **options: Any) -> Storage:
    """A path or URL -> Storage (one that is given is returned), pointers followed. `options` go to fsspec."""
    if isinstance(root, Path):
        return LocalStorage(root)
    if isinstance(root, str):
        if root.startswith("file://"):
            return LocalStorage(root.removeprefix("file://"))
        return RemoteStorage(root, **options).follow() if "://" in root else LocalStorage(root)
    return root


def _fill_all(descriptor: int, offset: int, views: Sequence[memoryview]) -> int:
    """`_fill`, of any number of views."""
    done = 0
    for first in range(0, len(views), IOV_MAX):
        done += _fill(descriptor, offset + done, list(views[first : first + IOV_MAX]))
    return done


def _fill(descriptor: int, offset: int, views: list[memoryview]) -> int:
    """Read into `views` until they are full or the file ends; how many bytes that were."""
    done, wanted = 0, sum(map(len, views))
    while views and (count := os.preadv(descriptor, views, offset + done)):
        done += count
        if done == wanted:  # as nearly always: by one call
            break
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]
    return done


def _exact(data: bytes, root: str, name: str, offset: int, size: int) -> bytes:
    if len(data) != size:
        raise StoreCorrupt(
            f"{root}: {name} is too short: expected {size} bytes at {offset}, got {len(data)}; "
            f"run `statevla verify {word(root)}`"
        )
    return data
