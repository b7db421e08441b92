"""Opening a store in a folder or at a URL, and reading its segments and frames.

Nothing here returns zeros, skips an object or puts another in its place: an object that is missing, too short, altered
or not in the manifest raises an error that names it. What is checked, and when:

- opening: the manifest and the index tables by sha256, all objects by name and size (`stores.presence`);
- a segment, when it is read: its crc32, and the names, shapes and dtypes of its members;
- a shard, when its first segment is read: that it ends as it should;
- frames and the language cache, when they are read: sha256.

`stores.verify` checks everything at once.

Legend: n steps of a segment, O its observations (n or n + 1), K actions of a chunk, C cameras, H height, W width,
N frames of the store, R numbers of a robot state, A numbers of an action.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores.arrays import CheckedArray
from stores.cloud.cache import CachedStorage, Piece
from stores.cloud.storage import LocalStorage, Storage, open_storage
from stores.columns import Columns
from stores.errors import StaleKey, StoreCorrupt, StoreMissing, UsageError
from stores.images import decode_image
from stores.language import LanguageCache
from stores.layout import EPISODES_FILE, LANGUAGE_FILE, MANIFEST, SEGMENTS_FILE
from stores.manifest import Manifest, StoreObject, read_manifest
from stores.npy import decode_npy
from stores.numbers import open_frames, read_frames
from stores.presence import check_end, check_presence, check_tiling
from stores.printable import word
from stores.schema import EPISODES, SEGMENTS
from stores.segments import image_names
from stores.shards import matches, read_segment
from stores.spec import ObsSpec
from stores.statistics import Normalization, load_stats
from stores.tables import check_tables

TOGETHER: Final = 8
"""Segments of a far store that one request brings at most: two megabytes of 128 x 128 pictures of two cameras."""


@dataclass(frozen=True, repr=False)
class Segment:
    """One segment of an episode, its images still encoded.

    where: store, shard and segment, for errors. key: of the segment, as in segments.parquet. images: for each camera,
    the encoded bytes of O images. robot_state: float32 [O, R]. action: float32 [n + K - 1, A]. is_pad: bool
    [n + K - 1], true past the episode's end, where the last action is repeated. raw_meta: its JSON member. codec:
    one of `IMAGE_CODECS`. spec: of the store.
    """

    where: str
    key: str
    images: dict[str, tuple[bytes, ...]]
    robot_state: NDArray[np.float32]
    action: NDArray[np.float32]
    is_pad: NDArray[np.bool_]
    raw_meta: bytes
    codec: str
    spec: ObsSpec

    def __repr__(self) -> str:
        return f"Segment({self.where}, {len(self.robot_state)} frames of {', '.join(self.images)})"

    @property
    def meta(self) -> dict[str, Any]:
        """The segment's JSON member."""
        fields: dict[str, Any] = json.loads(self.raw_meta)
        return fields

    def decode(
        self, cameras: Sequence[str] | None = None, out: Sequence[NDArray[np.uint8]] | None = None
    ) -> tuple[NDArray[np.uint8], ...]:
        """Decode the images: uint8 RGB [O, H, W, 3] for each of `cameras` (default: all, in the spec's order).

        out: contiguous arrays of these shapes to decode into, one for each camera; they are what is returned then.
        Raises StoreCorrupt naming the image, UsageError for an unknown camera or an array of `out` that does not fit.
        """
        names = self.spec.camera_names if cameras is None else tuple(cameras)
        sizes = dict(zip(self.spec.camera_names, self.spec.image_sizes, strict=True))
        unknown = [name for name in names if name not in sizes]
        if unknown:
            raise UsageError(f"camera: expected one of {sorted(sizes)}, got {unknown[0]!r}")
        shapes = [(len(self.robot_state), *sizes[name], 3) for name in names]
        if out is None:
            out = [np.empty(shape, np.uint8) for shape in shapes]
        for camera, shape, pictures in zip(names, shapes, out, strict=True):
            if pictures.shape != shape or pictures.dtype != np.uint8 or not pictures.flags.c_contiguous:
                raise UsageError(
                    f"{self.where}: {camera} images need contiguous uint8 {list(shape)}, "
                    f"got {pictures.dtype} {pictures.shape}"
                )
            named = image_names(camera, len(self.images[camera]), self.codec)
            try:
                for data, picture, image in zip(self.images[camera], pictures, named, strict=True):
                    decode_image(data, self.codec, picture, image)
            except StoreCorrupt as error:
                raise StoreCorrupt(f"{self.where}, {error}") from error
        return tuple(out)


@dataclass(frozen=True, eq=False, repr=False)
class Store:
    """An open store. It never changes, and any thread may use it; pickled, it is opened again where it is unpickled.

    spec: cameras, robot state and action of its frames. episode_columns, segment_columns: the index tables
    (`stores.schema`) by column; a column is read when it is first asked for, numbers as arrays and text as object
    arrays.
    """

    storage: Storage
    manifest: Manifest
    spec: ObsSpec
    episode_columns: Columns
    segment_columns: Columns

    @classmethod
    def open(cls, root: Path | str | Storage, **options: Any) -> "Store":
        """Open the store at a path or fsspec URL (`options` go to fsspec).

        Raises StoreMissing when it is none, StoreCorrupt when an index is not as the manifest says, StoreError on
        another schema version.
        """
        storage = open_storage(root, **options)
        data = read_manifest(storage)
        manifest = Manifest.from_bytes(data, storage.root)
        spec = ObsSpec.from_dict(manifest.obs_spec, f"{storage.root}: {MANIFEST}, obs_spec")
        counts = manifest.counts
        episodes = Columns(storage, _named(manifest, storage, EPISODES_FILE), EPISODES, counts["episodes"])
        segments = Columns(storage, _named(manifest, storage, SEGMENTS_FILE), SEGMENTS, counts["segments"])
        check_tables(episodes, segments, episodes.codes("split")[1], counts, manifest.config["window"], storage.root)
        check_tiling(segments, manifest, storage.root)
        check_presence(storage, manifest)
        segments.forget("segment")
        return cls(storage, manifest, spec, episodes, segments)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which opens the store again: no content is sent, and nothing of it is shared."""
        local = isinstance(self.storage, LocalStorage)
        return _open_again, (Path(self.root).absolute() if local else self.storage, self.content_hash)

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.manifest.counts[name]:,} {name}" for name in ("episodes", "frames", "segments"))
        return f"Store({self.root!r}, {self.manifest.suite}, {counts}, content {self.content_hash[:12]})"

    @property
    def root(self) -> str:
        """Path or URL."""
        return self.storage.root

    @property
    def content_hash(self) -> str:
        """Identity of the content. Statistics, features, latents and checkpoints are kept under it."""
        return self.manifest.content_hash

    @property
    def obs_spec(self) -> dict[str, Any]:
        """`spec` as plain JSON values, as it stands in the manifest."""
        return self.manifest.obs_spec

    def __len__(self) -> int:
        """Number of segments."""
        return self.segment_columns.rows

    @functools.cached_property
    def episodes(self) -> pa.Table:
        """episodes.parquet, whole."""
        return self.episode_columns.table()

    @functools.cached_property
    def segments(self) -> pa.Table:
        """segments.parquet, whole, with the member tables (a kilobyte a segment). Reading segments does not need it."""
        return self.segment_columns.table()

    @functools.cached_property
    def language(self) -> LanguageCache:
        """Embeddings of the instructions."""
        return LanguageCache.from_bytes(
            self.read_object(LANGUAGE_FILE), f"{self.root}: {LANGUAGE_FILE}", self.spec.language_width
        )

    @functools.cached_property
    def frames(self) -> dict[str, NDArray[Any]]:
        """robot_state float32 [N, R], action float32 [N, A] (NaN rows: no action), episode and index int64 [N]."""
        ep = self.episode_columns
        return read_frames(self.storage, self.read_object, ep["frames"], ep["steps"], self.spec)

    @functools.cached_property
    def numbers(self) -> dict[str, CheckedArray]:
        """The same arrays as `frames`, opened but not read: read the rows that you need."""
        return open_frames(self.storage, self.read_object, self.manifest.counts["frames"], self.spec)

    @property
    def is_far(self) -> bool:
        """Whether it is read over a network, through a cache on this machine."""
        return isinstance(self.storage, CachedStorage)

    def stats(self) -> Normalization:
        """Statistics of the train split of exactly this content.

        Raises StoreMissing where there are none, StaleKey where they are of other content or of another transform;
        run ``statevla stats``.
        """
        return load_stats(self.storage, self.content_hash)

    def read_object(self, path: str) -> bytes:
        """A whole object, checked against the manifest. Raises StoreMissing or StoreCorrupt naming it."""
        return _read_object(self.storage, self.object(path))

    def read_segment(self, i: int) -> Segment:
        """Segment `i` (row of segments.parquet), in one range read.

        Raises StoreMissing or StoreCorrupt naming shard and segment; UsageError when there is no such segment.
        """
        shard, place = self._place(i)
        key, members = read_segment(self.storage, shard.path, shard.sha256, *place, lambda: self._where(i, shard.path))
        return self.parse_segment(i, key, members)

    def parse_segment(self, i: int, key: str, members: dict[str, bytes]) -> Segment:
        """Segment `i` from the members of its tar sample, for callers that read the shard themselves.

        key: the sample's key. members: their bytes by name without the key. Raises StoreCorrupt naming the segment.
        """
        seg = self.segment_columns
        codes, names = seg.codes("shard")
        where = f"{self.root}: {names[int(codes[i])]}, segment {key!r}"
        return self._segment(where, key, members, int(seg["steps"][i]), int(seg["observations"][i]))

    def object(self, path: str) -> StoreObject:
        """What the manifest says of an object. Raises StoreMissing where it does not name it."""
        if path not in self._objects:
            raise StoreMissing(f"{self.root}: {path} is not in {MANIFEST}")
        return self._objects[path]

    def fetch_segment(self, i: int) -> None:
        """Have segment `i` at hand soon: one of a near store is asked of the disk, which may answer later; one of a far
        store is in the cache (`stores.cloud.cache`) when this returns. Where the cache has room for the whole store,
        those that lie beside it come by the same request: an epoch needs them too.

        Damage is not reported here but when the segment is read. Raises StoreError when it cannot be fetched.
        """
        if not isinstance(self.storage, CachedStorage):
            codes, names = self.segment_columns.codes("shard")
            self.storage.advise(names[int(codes[i])], *self._piece(i)[:2])
            return
        if i in self._fetched:
            return
        shard, _ = self._place(i)
        whole = self.manifest.counts["bytes"] <= self.storage.cache.limit
        rows = self._beside(i) if whole else range(i, i + 1)
        self.storage.fetch(shard.path, shard.sha256, [self._piece(j) for j in rows])
        if whole:
            self._fetched.update(rows)

    def _beside(self, i: int) -> range:
        """Rows of segments that lie one after the other in the shard of `i`, which is one of them; at most `TOGETHER`,
        the same for each of them.
        """
        first = i - i % TOGETHER
        codes, _ = self.segment_columns.codes("shard")
        group = slice(first, first + TOGETHER)
        offset, size = self.segment_columns["offset"][group], self.segment_columns["size"][group]
        breaks = (codes[group][1:] != codes[group][:-1]) | (offset[1:] != offset[:-1] + size[:-1])
        cuts = [first, *(first + 1 + np.flatnonzero(breaks)).tolist(), first + len(offset)]
        return next(range(low, high) for low, high in itertools.pairwise(cuts) if low <= i < high)

    def _piece(self, i: int) -> Piece:
        seg = self.segment_columns
        return int(seg["offset"][i]), int(seg["size"][i]), matches(int(seg["crc32"][i]))

    def _place(self, i: int) -> tuple[StoreObject, tuple[int, int, int]]:
        """The shard of segment `i`, its end checked, and the segment's offset, size and crc32 in it."""
        if not 0 <= i < len(self):
            raise UsageError(f"{self.root}: segment {i}: the store has {len(self)}")
        seg = self.segment_columns
        codes, names = seg.codes("shard")
        shard = self._objects[names[int(codes[i])]]
        if shard.path not in self._ends:
            check_end(self.storage, shard.path, shard.sha256, shard.bytes)
            self._ends.add(shard.path)
        return shard, (int(seg["offset"][i]), int(seg["size"][i]), int(seg["crc32"][i]))

    def _where(self, i: int, shard: str) -> str:
        """Store, shard and key of segment `i`, for errors."""
        group, row = self.segment_columns.group(i, ["key"])
        return f"{self.root}: {shard}, segment {group['key'][row].as_py()!r}"

    def decode_segment(self, i: int, cameras: Sequence[str] | None = None) -> tuple[NDArray[np.uint8], ...]:
        """Images of segment `i` by camera: uint8 RGB [O, H, W, 3] each."""
        return self.read_segment(i).decode(cameras)

    def _segment(self, where: str, key: str, members: dict[str, bytes], steps: int, observations: int) -> Segment:
        codec, actions = self.manifest.config["codec"], int(steps) + int(self.manifest.config["chunk"]) - 1
        images, wanted = _member_names(self.spec.camera_names, observations, codec)
        if members.keys() != wanted:
            missing, extra = sorted(wanted - members.keys()), sorted(members.keys() - wanted)
            raise StoreCorrupt(f"{where}: lacks the members {missing[:5]}, has the unknown {extra[:5]}")
        return Segment(
            where,
            key,
            {camera: tuple(members[name] for name in names) for camera, names in images.items()},
            _array(members, where, "robot_state.npy", (int(observations), self.spec.robot_state_dim), "float32"),
            _array(members, where, "action.npy", (actions, self.spec.action_dim), "float32"),
            _array(members, where, "is_pad.npy", (actions,), "bool"),
            members["json"],
            codec,
            self.spec,
        )

    @functools.cached_property
    def _fetched(self) -> set[int]:
        """Segments that were brought near together: not looked for again. One that is gone since is asked for alone, by
        who reads it.
        """
        return set()

    @functools.cached_property
    def _ends(self) -> set[str]:
        """Shards whose end was checked. Two threads may both check one; that costs a read and harms nothing."""
        return set()

    @functools.cached_property
    def _objects(self) -> dict[str, StoreObject]:
        return {item.path: item for item in self.manifest.objects}


def _open_again(root: Path | Storage, content_hash: str) -> Store:
    """The store that another process had open. Raises as `Store.open`, and StaleKey when another is there now."""
    store = Store.open(root)
    if store.content_hash != content_hash:
        raise StaleKey(
            f"{store.root}: expected the store of content {content_hash:.12} that was handed over, got "
            f"{store.content_hash:.12}: it was written again meanwhile; open it again, and hand it over again"
        )
    return store


@functools.lru_cache(maxsize=1024)
def _member_names(
    cameras: tuple[str, ...], count: int, codec: str
) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    """Members of a segment of `count` observations: names of its images by camera, and of everything in it."""
    images = {camera: image_names(camera, count, codec) for camera in cameras}
    tables = ("json", "robot_state.npy", "action.npy", "is_pad.npy")
    return images, frozenset(tables).union(*images.values())


def _array(members: dict[str, bytes], where: str, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    array = decode_npy(members[name], f"{where}, {name}")
    if array.shape != shape or array.dtype != dtype:
        raise StoreCorrupt(f"{where}, {name}: expected {dtype} {list(shape)}, got {array.dtype} {list(array.shape)}")
    return array


def _named(manifest: Manifest, storage: Storage, path: str) -> StoreObject:
    for item in manifest.objects:
        if item.path == path:
            return item
    raise StoreCorrupt(f"{storage.root}: {MANIFEST} does not name {path}")


def _read_object(storage: Storage, item: StoreObject) -> bytes:
    data = storage.read(item.path)
    if len(data) != item.bytes:
        raise StoreCorrupt(f"{storage.root}: {item.path}: expected {item.bytes} bytes, got {len(data)}")
    if hashlib.sha256(data).hexdigest() != item.sha256:
        raise StoreCorrupt(
            f"{storage.root}: {item.path}: its content is not what was written (sha256 differs from {MANIFEST}); "
            f"run `statevla verify {word(storage.root)}`, then ingest again"
        )
    return data
