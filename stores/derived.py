"""What is computed from a store after its commit, and kept beside it: one sealed folder each, keyed by what made it.

    stats/<key>.json                 a seal with content and no other object
    features/<name>/manifest.json    the seal; beside it Zarr arrays, cut into row ranges (`stores.arrays`) or
                                     sharded (`stores.sharded`). Where it was published, a pointer to a folder beside it
                                     that has all of this (`stores.cloud.publish_derived`)
    latents/<name>/…, decoded/<name>/…   likewise

A seal is sealed JSON (`stores.manifest.seal`) with ``key``, ``made_from`` (everything that the content is a function
of: the store's content hash, and what else there is, such as an encoder's revision), ``about`` (content of any kind)
and ``objects``. `key_of` makes the key from ``made_from``. What was made from something else is stale, and refused.

A folder of arrays is written in place, chunk by chunk or shard by shard, by any number of processes (`begin`), and
committed by its seal, which is written last. Before that it is nothing to a reader; a writer of the same key goes on
where an interrupted one stopped (`Unfinished.missing`), one of another key begins anew. What is taken over is checked
by its own checksums: the seal would agree with whatever lies there.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stores.cloud.storage import LocalStorage, Storage, open_storage, pointed, require_pointed
from stores.disk import durable
from stores.errors import StaleKey, StoreCorrupt, StoreError, StoreMissing, UsageError
from stores.layout import DERIVED, MANIFEST, STATISTICS, is_leftover, is_seal, seal_path
from stores.manifest import (
    StoreObject,
    hash_objects,
    is_claim,
    is_inside,
    parse_objects,
    read_sealed,
    require_types,
    seal,
)

if TYPE_CHECKING:  # statistics are sealed too, and are needed where no array can be read
    from stores.arrays import ArraySpec, CheckedArray
    from stores.sharded import ShardedArray, ShardedSpec

BEGUN: Final = ".begun.json"
"""In an unfinished folder: its key, what it is made from, and its arrays."""
_STATISTICS_FILE: Final = re.compile(rf"{STATISTICS}/[0-9a-f]{{16}}\.json")
_FOLDER_FILE: Final = re.compile(
    r"(publication-[0-9a-f]{16}/)?(manifest\.json|\.begun\.json|\.DS_Store|([^/]+/)?zarr\.json|[^/]+/c(/[0-9]+)+)"
)
_FIELDS: Final = {"key": str, "made_from": dict, "about": dict, "objects": list}


def key_of(made_from: Mapping[str, Any]) -> str:
    """16 hex digits that name one derived content."""
    return hashlib.sha256(durable.json_bytes(dict(made_from))).hexdigest()[:16]


@dataclass(frozen=True)
class Derived:
    """A sealed derived folder, open for reading. objects: paths below `folder`, which is a path below the store."""

    storage: Storage
    kind: str
    name: str
    key: str
    made_from: dict[str, Any]
    about: dict[str, Any]
    objects: tuple[StoreObject, ...]
    folder: str

    def array(self, name: str) -> "CheckedArray":
        """One of its arrays, to be read by row range; every chunk is checked by length and crc32c when it is read.

        Raises StoreMissing when there is none of that name, StoreCorrupt when its metadata is not as sealed.
        """
        from stores.arrays import open_checked

        return open_checked(self.storage, self._array(name))

    def sharded(self, name: str, expected: "ShardedSpec | None" = None) -> "ShardedArray":
        """One of its sharded arrays. Raises as `array`."""
        from stores.sharded import open_sharded

        contents = {f"{self.folder}/{item.path}": item.sha256 for item in self.objects}
        return open_sharded(self.storage, self._array(name), expected, contents)

    @property
    def arrays(self) -> list[str]:
        """Names of its arrays."""
        from stores.arrays import METADATA

        end = f"/{METADATA}"
        return sorted(item.path.removesuffix(end) for item in self.objects if item.path.endswith(end))

    @property
    def bytes(self) -> int:
        """Size of its objects, the seal not counted."""
        return sum(item.bytes for item in self.objects)

    def _array(self, name: str) -> str:
        if name not in self.arrays:
            raise StoreMissing(
                f"{self.storage.root}: {self.kind}/{self.name} has no array {name!r}, only {self.arrays}"
            )
        return f"{self.folder}/{name}"


def find_seal(storage: Storage, path: str) -> tuple[str, bytes]:
    """What the seal at `path` stands beside (a folder, or statistics' own file), and its bytes; a pointer is followed.

    Raises StoreMissing when there is none, or one that is still on its way, StoreCorrupt when a pointer names another.
    """
    folder, data = path.removesuffix(f"/{MANIFEST}"), storage.read(path)
    if is_claim(data):
        raise StoreMissing(f"{storage.root}: {path}: not there yet, it is being published")
    found = pointed(data)
    if found is None:
        return folder, data
    within = f"{folder}/{found[0]}"
    seal = storage.read(f"{within}/{MANIFEST}")
    return within, require_pointed(seal, found[1], f"{storage.root}: {path}")


def parse_seal(data: bytes, where: str) -> tuple[dict[str, Any], tuple[StoreObject, ...]]:
    """The fields and the objects of a seal. Raises StoreCorrupt naming `where`."""
    fields = read_sealed(data, where)
    require_types(fields, _FIELDS, where)
    try:
        key = key_of(fields["made_from"])
    except RecursionError:
        raise StoreCorrupt(f"{where}: made_from is nested too deeply") from None
    if fields["key"] != key:
        raise StoreCorrupt(f"{where}: expected {key}, the key of made_from, got {str(fields['key'])[:80]!r}")
    return fields, parse_objects(fields["objects"], where)


def seal_bytes(made_from: Mapping[str, Any], about: Mapping[str, Any], objects: tuple[StoreObject, ...] = ()) -> bytes:
    """A seal's content."""
    ordered = [asdict(item) for item in sorted(objects, key=lambda item: item.path)]
    fields = {"key": key_of(made_from), "made_from": dict(made_from), "about": dict(about), "objects": ordered}
    return durable.json_bytes(seal(fields))


def open_derived(
    root: Path | str | Storage, kind: str, made_from: Mapping[str, Any], make: str, name: str | None = None
) -> Derived:
    """The derived content of `kind` that was made from exactly `made_from`.

    make: the command that makes it, for errors. name: of the folder; default: the key. Raises StoreMissing when there
    is none (of a name: naming those there are), StaleKey when there are only others of that kind or the named one is
    made from something else, StoreCorrupt when the seal was altered or an object that it names is missing or of another
    size.
    """
    storage = open_storage(root)
    key = key_of(made_from)
    path = seal_path(_checked_kind(kind), name or key)
    where = f"{storage.root}: {path}"
    try:
        folder, data = find_seal(storage, path)
    except StoreMissing as error:
        there = storage.sizes() if storage.lists else {}
        others = sorted(found for found in there if is_seal(found) and found.startswith(f"{kind}/"))
        if others and name is None:
            raise StaleKey(
                f"{storage.root}: its {kind} ({', '.join(others)}) are of another content of the store or were made "
                f"another way, expected {path}; run `{make}` again"
            ) from error
        unfinished = f"{kind}/{name or key}/{BEGUN}" in there
        state = "are not finished: an interrupted writer left them" if unfinished else "are not there yet"
        names = ", ".join(dict.fromkeys(found.split("/")[1] for found in others))
        instead = f" (there are: {names})" if names else ""
        raise StoreMissing(f"{storage.root}: {path}: {kind} {state}{instead}; run `{make}`") from error
    fields, objects = parse_seal(data, where)
    if fields["key"] != key:
        differs = sorted(
            field for field in {*fields["made_from"], *made_from}
            if fields["made_from"].get(field) != made_from.get(field)
        )  # fmt: skip
        raise StaleKey(f"{where}: made from another {', '.join(differs)} than this store's; run `{make}` again")
    _check_presence(storage, kind, folder, objects, make)
    return Derived(storage, kind, name or key, key, fields["made_from"], fields["about"], objects, folder)


def _check_presence(storage: Storage, kind: str, folder: str, objects: tuple[StoreObject, ...], make: str) -> None:
    if not objects or not storage.lists:
        return
    there = storage.sizes(skip=DERIVED - {kind})
    for item in objects:
        path = f"{folder}/{item.path}"
        size = there.get(path)
        if size != item.bytes:
            found = "it is missing" if size is None else f"it has {size}"
            raise StoreCorrupt(f"{storage.root}: {path}: expected {item.bytes} bytes, {found}; run `{make}` again")


@dataclass(frozen=True)
class Unfinished:
    """A derived folder that is being written. root: the folder itself; arrays: their specs by name.

    As a context: where that ends by an error and no part is finished, the folder goes too. It would spare no work, and
    `stores.verify` would name it for ever where the same command fails again.
    """

    root: Path
    made_from: dict[str, Any]
    arrays: "dict[str, ArraySpec | ShardedSpec]"

    def __enter__(self) -> "Unfinished":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        there = [path for path in LocalStorage(self.root).sizes() if not is_leftover(path)]
        of_use = any("/c/" in path or path == MANIFEST for path in there)
        if error is not None and not of_use and not is_foreign("", there):
            with contextlib.suppress(OSError):  # a worker may still write there
                durable.remove(self.root)

    def missing(self, name: str) -> list[int]:
        """Numbers of the chunks (of the shards, where it has some) of an array that are not there yet, or not as they
        were written: all that is there is read.

        Write them with `stores.arrays.write_region`, `stores.sharded.write_shard`.
        """
        from stores.arrays import CheckedArray
        from stores.sharded import ShardedArray, ShardedSpec

        spec, storage = self.arrays[name], LocalStorage(self.root)
        check: Callable[[int], Any] = (
            ShardedArray(name, spec, storage).check if isinstance(spec, ShardedSpec)
            else CheckedArray(name, storage.root, spec, storage.read).chunk
        )  # fmt: skip
        found = set(self._absent(name))
        for m in set(range(len(spec.files()))) - found:
            try:
                check(m)
            except StoreError:
                found.add(m)
        return sorted(found)

    def _absent(self, name: str) -> list[int]:
        there = LocalStorage(self.root / name).sizes()
        return [m for m, (path, size) in enumerate(self.arrays[name].files().items()) if there.get(path) != size]

    def commit(self, about: Mapping[str, Any]) -> str:
        """Hash everything and write the seal; returns the key. Raises UsageError while a part is missing."""
        from stores.arrays import METADATA

        paths = [METADATA]
        for name, spec in self.arrays.items():
            if absent := self._absent(name):
                raise UsageError(f"{self.root}: {name}: {len(absent)} chunks are not written yet, first {absent[0]}")
            paths += [f"{name}/{METADATA}", *(f"{name}/{path}" for path in spec.files())]
        # An interrupted writer may have named a chunk, or made a folder, without making that durable.
        durable.settle(self.root, paths)
        content = seal_bytes(self.made_from, about, tuple(hash_objects(self.root, paths)))
        durable.write_bytes(self.root / MANIFEST, content)
        durable.remove(self.root / BEGUN)
        return key_of(self.made_from)


def made_otherwise(root: Path | str, kind: str, name: str, made_from: Mapping[str, Any]) -> list[str]:
    """Fields in which what lies under that name, finished or in part, was made from something else than `made_from`:
    work that `begin` would remove. Empty where there is none, or none of use: damaged, of another content of the store,
    or of another format.
    """
    folder = LocalStorage(Path(root, kind, name))
    if not any("/c/" in path for path in folder.sizes()):
        return []
    for file in (MANIFEST, BEGUN):
        try:
            found = read_sealed(folder.read(file), f"{folder.root}/{file}").get("made_from")
        except StoreError:
            continue
        if isinstance(found, dict) and all(found.get(key) == made_from.get(key) for key in ("content_hash", "format")):
            return sorted(field for field in {*found, *made_from} if found.get(field) != made_from.get(field))
    return []


def is_foreign(folder: str, names: Collection[str]) -> bool:
    """Whether `names`, objects of the derived folder at `folder`, all below the store, are not all those of a writer of
    derived folders, going by their names alone.
    """
    if folder.startswith(f"{STATISTICS}/"):
        return any(_STATISTICS_FILE.fullmatch(name) is None for name in names)
    return any(_FOLDER_FILE.fullmatch(name.removeprefix(f"{folder}/")) is None for name in names)


def begin(
    root: Path | str,
    kind: str,
    name: str,
    made_from: Mapping[str, Any],
    arrays: "Mapping[str, ArraySpec | ShardedSpec]",
) -> Unfinished:
    """A folder of `arrays` below the store at folder `root`, to be filled and committed; under the store's lock.

    What an interrupted writer of the same content and arrays left is kept; anything else under that name is removed,
    but for what is foreign: raises UsageError.
    """
    from stores.arrays import METADATA, group_metadata

    plain = bool(name.strip()) and "/" not in name and is_inside(name) and not is_leftover(name)
    if _checked_kind(kind) == STATISTICS or not plain:
        raise UsageError(f"derived folder {kind}/{name}: expected a plain name below features, latents or decoded")
    folder = Path(root, kind, name)
    fields = {"made_from": dict(made_from), "arrays": {name: spec.metadata() for name, spec in arrays.items()}}
    begun = durable.json_bytes(seal(fields))
    try:
        same = (folder / BEGUN).is_file() and (folder / BEGUN).read_bytes() == begun
    except FileNotFoundError:
        same = False
    if folder.is_file():
        raise UsageError(f"{folder}: expected a folder of {kind}, or nothing, got a file; move it away")
    if not same:
        place = f"{kind}/{name}"
        there = [name for name in LocalStorage(folder).sizes() if not is_leftover(name)] if folder.is_dir() else []
        if is_foreign(place, [f"{place}/{name}" for name in there]):
            raise UsageError(f"{folder}: holds files that are not of {kind}, so it is not replaced; move them away")
        durable.remove(folder)
    described = {folder / array / METADATA: spec.metadata() for array, spec in arrays.items()}
    for file, metadata in {folder / METADATA: group_metadata(), **described}.items():
        data = durable.json_bytes(metadata)
        if not file.is_file() or file.read_bytes() != data:  # of an interrupted writer it may be damaged too
            durable.write_bytes(file, data)
    if not same:
        durable.write_bytes(folder / BEGUN, begun)
    return Unfinished(folder, json.loads(json.dumps(dict(made_from))), dict(arrays))


def room_needed(root: Path | str, kind: str, name: str, arrays: "Mapping[str, ArraySpec | ShardedSpec]") -> int:
    """Bytes that `arrays` take beyond what lies under that name: `begin` keeps that as theirs, or removes it first.

    To be asked before `begin`, so that a refusal changes nothing.
    """
    there = sum(size for path, size in LocalStorage(Path(root, kind, name)).sizes().items() if "/c/" in path)
    return max(0, sum(sum(spec.files().values()) for spec in arrays.values()) - there)


def _checked_kind(kind: str) -> str:
    if kind not in DERIVED:
        raise UsageError(f"derived folder: expected one of {sorted(DERIVED)}, got {kind!r}")
    return kind
