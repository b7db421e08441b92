"""Reading bytes by name from a folder or from any fsspec URL. Nothing here writes.

A name is a path below the root with ``/``. No handle is kept open between calls.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from stores.errors import StoreCorrupt, StoreError, StoreMissing

PIECE: Final = 1 << 20


class Storage(Protocol):
    """What readers need. `root` is for messages and equality."""

    root: str

    def read(self, name: str) -> bytes:
        """The whole object. Raises StoreMissing."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises StoreMissing, or StoreCorrupt when the object is shorter."""

    def pieces(self, name: str) -> Iterator[bytes]:
        """The whole object in pieces of bounded size, for hashing. Raises StoreMissing."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every object below the root."""


class LocalStorage:
    """A folder on a local (or mounted) file system; `pread` on a handle opened per call."""

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)

    def read(self, name: str) -> bytes:
        try:
            return Path(self.root, name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise _missing(self.root, name) from error

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        try:
            descriptor = os.open(os.path.join(self.root, name), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _missing(self.root, name) from error
        try:
            data = os.pread(descriptor, size, offset)
            while len(data) < size:  # one pread returns at most 2 GiB
                more = os.pread(descriptor, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        finally:
            os.close(descriptor)
        return _exact(data, self.root, name, offset, size)

    def pieces(self, name: str) -> Iterator[bytes]:
        try:
            with Path(self.root, name).open("rb", buffering=0) as handle:
                while piece := handle.read(PIECE):
                    yield piece
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise _missing(self.root, name) from error

    def sizes(self) -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return found


class RemoteStorage:
    """Any file system of fsspec: ``memory://``, ``s3://``, ``gs://``, ``https://`` … by byte ranges."""

    def __init__(self, url: str, **options: Any) -> None:
        import fsspec

        self.root = url.rstrip("/")
        try:
            self._fs, self._path = fsspec.core.url_to_fs(self.root, **options)
        except (ImportError, ValueError) as error:
            raise StoreError(f"{url}: cannot be opened through fsspec: {error}") from error

    def read(self, name: str) -> bytes:
        try:
            return bytes(self._fs.cat_file(f"{self._path}/{name}"))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise _missing(self.root, name) from error

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        try:
            data = bytes(self._fs.cat_file(f"{self._path}/{name}", start=offset, end=offset + size))
        except FileNotFoundError as error:
            raise _missing(self.root, name) from error
        return _exact(data, self.root, name, offset, size)

    def pieces(self, name: str) -> Iterator[bytes]:
        try:
            with self._fs.open(f"{self._path}/{name}", "rb", block_size=8 * PIECE) as handle:
                while piece := handle.read(PIECE):
                    yield piece
        except FileNotFoundError as error:
            raise _missing(self.root, name) from error

    def sizes(self) -> dict[str, int]:
        base = self._path.rstrip("/") + "/"
        found = self._fs.find(self._path, detail=True)
        return {path.removeprefix(base): int(info["size"]) for path, info in found.items()}


def open_storage(root: Path | str | Storage, **options: Any) -> Storage:
    """A path or URL -> Storage (one that is given is returned). `options` go to fsspec."""
    if isinstance(root, Path):
        return LocalStorage(root)
    if isinstance(root, str):
        if root.startswith("file://"):
            return LocalStorage(root.removeprefix("file://"))
        return RemoteStorage(root, **options) if "://" in root else LocalStorage(root)
    return root


def _missing(root: str, name: str) -> StoreMissing:
    return StoreMissing(
        f"{root}: {name} is missing; run `statevla verify {root}` to see what else is, then ingest again"
    )


def _exact(data: bytes, root: str, name: str, offset: int, size: int) -> bytes:
    if len(data) != size:
        raise StoreCorrupt(
            f"{root}: {name} is too short: expected {size} bytes at {offset}, got {len(data)}; "
            f"run `statevla verify {root}`"
        )
    return data
