"""The manifest of a store: every object with its size and sha256, and where all of it came from.

It is written last: that is the commit. What it does not name does not exist. It carries its own hash (`seal`), so that
a flipped digit in it is noticed too.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from stores.cloud.storage import Storage, open_storage
from stores.disk import durable
from stores.errors import PlaceMissing, StoreCorrupt, StoreError, StoreMissing
from stores.schema import SCHEMA_VERSION

MANIFEST: Final = "manifest.json"
SEAL: Final = "sha256"
CLAIM: Final = "publishing"
"""The only field of what stands in the manifest's place while a store is being published (`stores.cloud.publish`)."""
_COUNTS: Final = ("episodes", "frames", "steps", "segments", "bytes", "quarantined")


@dataclass(frozen=True)
class StoreObject:
    """A file of the store: path below the root with '/', size in bytes, sha256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Contents of ``manifest.json``.

    obs_spec: fields of the canonical observation. config: window, chunk, codec, quality, split_seed, train_split,
    language, … as ingest had them. sources: {file, sha256, bytes, alignment}. counts: episodes, frames, steps,
    segments, bytes (of all objects), quarantined. splits: episodes in train and val.
    """

    suite: str
    obs_spec: dict[str, Any]
    config: dict[str, Any]
    code_version: str
    sources: tuple[dict[str, Any], ...]
    counts: dict[str, int]
    instructions: tuple[str, ...]
    splits: dict[str, int]
    objects: tuple[StoreObject, ...]
    schema_version: int = SCHEMA_VERSION

    def save(self, root: Path | str) -> None:
        """Commit: make every object durable with all folders on the way, whoever wrote it, then write the manifest.

        A run before this one may have written an object and died before it was durable; its hash matches all the same,
        as long as the system has it in memory.
        """
        durable.settle(root, [item.path for item in self.objects])
        durable.write_bytes(Path(root, MANIFEST), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The file's content, with its seal."""
        ordered = sorted(self.objects, key=lambda item: item.path)
        return durable.json_bytes(seal({**asdict(self), "objects": [asdict(item) for item in ordered]}))

    def hash(self) -> str:
        """What `manifest_hash` gives of the store where this is saved."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def load(cls, root: Path | str | Storage) -> "Manifest":
        """Read and check it. Raises StoreMissing, StoreCorrupt, or StoreError on a schema version of another time."""
        storage = open_storage(root)
        return cls.from_bytes(read_manifest(storage), f"{storage.root}: {MANIFEST}")

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Manifest":
        """Inverse of `to_bytes`; `where` names the file in errors."""
        fields = read_sealed(data, where)
        version = fields.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{where}: expected schema version {SCHEMA_VERSION}, got {version!r}; "
                "ingest the sources again, or use the version of statevla that wrote it"
            )
        wanted = set(cls.__dataclass_fields__) - {"schema_version"}
        if set(fields) != wanted or set(fields["counts"]) != set(_COUNTS):
            raise StoreCorrupt(f"{where}: expected fields {sorted(wanted)} and counts {_COUNTS}, got {sorted(fields)}")
        outside = [item["path"] for item in fields["objects"] if not is_inside(item["path"])]
        if outside:
            raise StoreCorrupt(f"{where}: expected paths below the store, got {outside}")
        return cls(
            **{
                **fields,
                "sources": tuple(fields["sources"]),
                "instructions": tuple(fields["instructions"]),
                "objects": tuple(StoreObject(**item) for item in fields["objects"]),
            }
        )


def manifest_hash(root: Path | str | Storage) -> str:
    """sha256 (hex) of manifest.json's bytes: the identity of a store's content."""
    return hashlib.sha256(read_manifest(open_storage(root))).hexdigest()


def read_manifest(storage: Storage) -> bytes:
    """Bytes of the manifest. Raises StoreMissing when there is none: `storage` is then no store."""
    try:
        data = storage.read(MANIFEST)
    except PlaceMissing:
        raise
    except StoreMissing as error:
        raise StoreMissing(
            f"{storage.root} is not a store: it has no {MANIFEST}. An interrupted ingest leaves none: run it again"
        ) from error
    if is_claim(data):
        raise StoreMissing(
            f"{storage.root} is not a store yet: one is being published there. If that was interrupted, run it again"
        )
    return data


def is_claim(data: bytes) -> bool:
    """Whether this stands in for a manifest that is being published."""
    return data.startswith(f'{{\n "{CLAIM}": {{'.encode())


def is_inside(path: str) -> bool:
    """Whether `path` stays below a store's root: relative, normal, with '/'."""
    return all(part not in ("", ".", "..") for part in path.split("/")) and "\\" not in path


def seal(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with ``sha256``: the hash of their JSON form (`durable.json_bytes`) without that field."""
    plain = {name: value for name, value in fields.items() if name != SEAL}
    return {**plain, SEAL: hashlib.sha256(durable.json_bytes(plain)).hexdigest()}


def read_sealed(data: bytes, where: str) -> dict[str, Any]:
    """The fields of a sealed JSON object, without the seal. Raises StoreCorrupt naming `where`."""
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise StoreCorrupt(f"{where}: not JSON: {error}") from error
    if not isinstance(fields, dict) or SEAL not in fields:
        raise StoreCorrupt(f"{where}: expected a JSON object with a {SEAL!r} field")
    if seal(fields)[SEAL] != fields[SEAL] or durable.json_bytes(fields) != data:
        raise StoreCorrupt(f"{where}: its content does not match its own sha256; it was altered after it was written")
    del fields[SEAL]
    return fields


def hash_object(root: Path | str, path: str) -> StoreObject:
    """Size and sha256 of the file `path` (with '/') below `root`."""
    size, digest = hash_stream(open_storage(Path(root)).pieces(path))
    return StoreObject(path, size, digest)


def hash_stream(pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """(bytes, sha256 in hex) of the pieces of an object."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def hash_objects(root: Path | str, paths: Iterable[str], threads: int = 2) -> list[StoreObject]:
    """`hash_object` of each path, in order, hashing in threads."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda path: hash_object(root, path), paths))
