"""The manifest of a store: every object with its size and sha256, what identifies them, and where they came from.

It is written last: that is the commit. What it does not name does not exist. It carries its own hash (`seal`), so that
a flipped digit in it is noticed too.

*Identity* is `Manifest.content_hash`, over what a reader can see of the data and nothing else. *Provenance* (who wrote
it, from which files) is kept and sealed beside it and changes no identity: what is keyed by the content (statistics,
features, latents, checkpoints) outlives another version of the code that makes the same data.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stores.cloud.storage import Storage, open_storage
from stores.disk import durable
from stores.errors import PlaceMissing, StoreCorrupt, StoreError, StoreMissing
from stores.layout import MANIFEST as MANIFEST
from stores.layout import is_data
from stores.printable import word
from stores.schema import IMAGE_CODECS, SCHEMA_VERSION

SEAL: Final = "sha256"
_SEAL_LINE: Final = re.compile(rb'^ "sha256": "([0-9a-f]{64})",?\n', re.MULTILINE)
"""In the one JSON form (`durable.json_bytes`) only fields of the outermost object are indented by one space."""
CLAIM: Final = "publishing"
"""The only field of what stands in the manifest's place while a store is being published (`stores.cloud.publish`)."""
IDENTITY: Final = "content_hash"
_CONTENT: Final = ("schema_version", "suite", "obs_spec", "config", "splits", "instructions")
_FIELDS: Final = {
    "suite": str, "obs_spec": dict, "config": dict, "splits": dict, "instructions": list, "objects": list,
    "counts": dict, "sources": list, "provenance": dict,
}  # fmt: skip
"""As they come from JSON, beside `schema_version`, identity and seal."""
_CONFIG: Final = {"window": int, "chunk": int, "codec": str, "language": dict}
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

    obs_spec: `stores.spec.ObsSpec` as a dict. config: what of the ingest's configuration bears on data: window, chunk,
    codec, quality, split_seed, train_split, language, … splits: episodes in train and val. counts: episodes, frames,
    steps, segments, bytes (of all objects), quarantined. sources: {file, sha256, bytes, alignment, …}.
    provenance: {code_version, formats, libraries}.
    """

    suite: str
    obs_spec: dict[str, Any]
    config: dict[str, Any]
    splits: dict[str, int]
    instructions: tuple[str, ...]
    objects: tuple[StoreObject, ...]
    counts: dict[str, int]
    sources: tuple[dict[str, Any], ...]
    provenance: dict[str, Any]
    schema_version: int = SCHEMA_VERSION

    @functools.cached_property
    def content_hash(self) -> str:
        """The store's identity: sha256 (hex) of schema version, suite, obs spec, configuration, splits, instructions
        and data objects (`stores.layout.is_data`), as JSON.
        """
        content = {name: getattr(self, name) for name in _CONTENT}
        objects = [vars(item) for item in self._ordered() if is_data(item.path)]
        return hashlib.sha256(durable.json_bytes({**content, "objects": objects})).hexdigest()

    def save(self, root: Path | str) -> None:
        """Commit: make every object durable with all folders on the way, whoever wrote it, then write the manifest.

        A run before this one may have written an object and died before it was durable; its hash matches all the same,
        as long as the system has it in memory.
        """
        durable.settle(root, [item.path for item in self.objects])
        durable.write_bytes(Path(root, MANIFEST), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The file's content, with its seal."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        objects = [vars(item) for item in self._ordered()]
        return durable.json_bytes(seal({**fields, "objects": objects, IDENTITY: self.content_hash}))

    def _ordered(self) -> list[StoreObject]:
        return sorted(self.objects, key=lambda item: item.path)

    @classmethod
    def load(cls, root: Path | str | Storage) -> "Manifest":
        """Read and check it. Raises StoreMissing, StoreCorrupt, or StoreError on a schema version of another time."""
        storage = open_storage(root)
        return cls.from_bytes(read_manifest(storage), storage.root)

    @classmethod
    def from_bytes(cls, data: bytes, root: str) -> "Manifest":
        """Inverse of `to_bytes`; `root` is where the store is, for errors."""
        where = f"{root}: {MANIFEST}"
        fields = read_sealed(data, where)
        version = fields.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{where}: expected schema version {SCHEMA_VERSION}, got {version!r}; "
                "ingest the sources again, or use the version of statevla that wrote it"
            )
        if IDENTITY not in fields:
            suite = fields.get("suite", "SUITE")
            raise StoreError(
                f"{where}: it has no {IDENTITY}: this store was made before version 0.1.0 was released, in a form that "
                f"is no longer read. Make it again: statevla ingest {suite} --source FOLDER --out {word(root)}, then "
                f"statevla stats --store {word(root)}"
            )
        identity = fields.pop(IDENTITY)
        require_types(fields, _FIELDS, where)
        require_types(fields["counts"], dict.fromkeys(_COUNTS, int), f"{where}: counts")
        _check_config(fields["config"], where)
        _check_sources(fields["sources"], where)
        objects = parse_objects(fields["objects"], where)
        manifest = cls(
            **{
                **fields,
                "sources": tuple(fields["sources"]),
                "instructions": tuple(fields["instructions"]),
                "objects": objects,
            }
        )
        try:
            manifest.content_hash  # noqa: B018, kept by the property
        except RecursionError:
            raise StoreCorrupt(f"{where}: nested too deeply") from None
        if manifest.content_hash != identity:
            raise StoreCorrupt(f"{where}: expected {IDENTITY} {manifest.content_hash} of what it says, got {identity}")
        return manifest


def _check_config(config: dict[str, Any], where: str) -> None:
    """Raise StoreCorrupt unless what readers need of it is there. The rest is for people."""
    require_types({name: config.get(name) for name in _CONFIG}, _CONFIG, f"{where}: config")
    if min(config["window"], config["chunk"]) < 1 or config["codec"] not in IMAGE_CODECS:
        got = {name: config[name] for name in ("window", "chunk", "codec")}
        raise StoreCorrupt(f"{where}: config: expected 1 or more steps, and a codec of {IMAGE_CODECS}, got {got}")


def _check_sources(sources: list[Any], where: str) -> None:
    for number, source in enumerate(sources):
        notes = source.get("notes", []) if isinstance(source, dict) else None
        named = isinstance(source, dict) and isinstance(source.get("file"), str)
        if not named or not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
            raise StoreCorrupt(f"{where}: sources[{number}]: expected a file with its notes, got {source!r:.200}")


_OBJECT: Final = {"path": str, "bytes": int, "sha256": str}
_SHA256: Final = re.compile("[0-9a-f]{64}")
"""It names files too (`stores.cloud.cache`)."""
_OUTSIDE: Final = re.compile(r"(?:^|/)\.{0,2}(?:/|\Z)|\\")
"""A part that is empty, ``.`` or ``..``, or a backslash."""


def parse_objects(items: Any, where: str) -> tuple[StoreObject, ...]:
    """A list of {path, bytes, sha256} as it came from JSON. Raises StoreCorrupt naming `where`."""
    if not isinstance(items, list):
        raise StoreCorrupt(f"{where}: expected a list of objects, got {type(items).__name__}")
    objects = []
    for item in items:
        if not isinstance(item, dict) or {name: type(item[name]) for name in item} != _OBJECT:
            raise StoreCorrupt(f"{where}: expected objects {{path, bytes, sha256}}, got {str(item)[:200]}")
        if item["bytes"] < 0 or not is_inside(item["path"]) or not _SHA256.fullmatch(item["sha256"]):
            raise StoreCorrupt(f"{where}: expected paths below the store, sizes, sha256 in hex, got {str(item)[:200]}")
        objects.append(StoreObject(**item))
    return tuple(objects)


def require_types(fields: Mapping[str, Any], wanted: Mapping[str, type], where: str) -> None:
    """Raise StoreCorrupt naming `where` unless `fields`, as they came from JSON, are `wanted` by name and type."""
    found = {name: type(value) for name, value in fields.items()}
    if found != wanted:
        expected, got = (
            ", ".join(f"{name} ({kind.__name__})" for name, kind in sorted(kinds.items(), key=lambda pair: pair[0]))
            for kinds in (wanted, found)
        )
        raise StoreCorrupt(f"{where}: expected fields {expected}; got {got[:500]}")


def content_hash(root: Path | str | Storage) -> str:
    """Identity of the content of the store at `root` (`Manifest.content_hash`). Raises as `Manifest.load` does."""
    return Manifest.load(root).content_hash


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
    return _OUTSIDE.search(path) is None


def seal(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with ``sha256``: the hash of their JSON form (`durable.json_bytes`) without that field."""
    plain = {name: value for name, value in fields.items() if name != SEAL}
    return {**plain, SEAL: hashlib.sha256(durable.json_bytes(plain)).hexdigest()}


def read_sealed(data: bytes, where: str) -> dict[str, Any]:
    """The fields of a sealed JSON object, without the seal. Raises StoreCorrupt naming `where`."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{where}: not JSON: {error}") from error
    if not isinstance(fields, dict) or SEAL not in fields:
        raise StoreCorrupt(f"{where}: expected a JSON object with a {SEAL!r} field")
    found = _SEAL_LINE.search(data)
    # The line of the seal is taken out of the text: to write the fields again would cost several times their reading.
    rest = b"" if found is None else data[: found.start()] + data[found.end() :]
    if found is not None and rest.endswith(b",\n}\n"):
        rest = rest[:-4] + b"\n}\n"  # it was the last field
    if found is None or hashlib.sha256(rest).hexdigest().encode() != found[1]:
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
