"""What can be known of a store's objects without reading them: every one is there at its size, and no other is.

One listing when a store is opened; the two blocks that end a tar when a shard is first read. With these, and a checksum
on each segment read, no byte of what a reader uses is taken on trust.
"""

import numpy as np

from stores.cloud.storage import Storage
from stores.columns import Columns
from stores.errors import StoreCorrupt, StoreMissing
from stores.layout import DERIVED, MANIFEST, SHARDS, is_hidden
from stores.manifest import Manifest
from stores.printable import word
from stores.shards import END


def check_presence(storage: Storage, manifest: Manifest) -> None:
    """Raise StoreMissing or StoreCorrupt naming the first object that is missing, of another size, or extra.

    Names with a leading dot belong to writers and file managers. Nothing is checked where there are no listings (http).
    """
    if not storage.lists:
        return
    there = storage.sizes(skip=DERIVED)
    hint = f"run `statevla verify {word(storage.root)}`, then ingest again"
    for item in manifest.objects:
        size = there.pop(item.path, None)
        if size is None:
            raise StoreMissing(f"{storage.root}: {item.path} is missing; {hint}")
        if size != item.bytes:
            raise StoreCorrupt(f"{storage.root}: {item.path}: expected {item.bytes} bytes, got {size}; {hint}")
    there.pop(MANIFEST, None)
    extra = sorted(name for name in there if not is_hidden(name))
    if extra:
        raise StoreCorrupt(
            f"{storage.root}: {extra[0]} is extra: {MANIFEST} does not name it ({len(extra)} such objects); remove it"
        )


def check_tiling(segments: Columns, manifest: Manifest, where: str) -> None:
    """Raise StoreCorrupt unless the segments of segments.parquet fill the shards that the manifest names."""
    codes, names = segments.codes("shard")
    offset, size = segments["offset"], segments["size"]
    end = offset + size
    turns = codes[1:] != codes[:-1]  # where the next row is of another shard
    if int(turns.sum()) + 1 != len(names) or bool((offset[1:] < offset[:-1])[~turns].any()):
        order = np.lexsort((offset, codes))  # our own writer's tables need no sorting
        codes, offset, end = codes[order], offset[order], end[order]
        turns = codes[1:] != codes[:-1]
    before = np.concatenate([[0], np.where(turns, 0, end[:-1])])[: len(codes)]
    broken = {names[code] for code in codes[offset != before]}
    last = np.flatnonzero(np.concatenate([turns, [True]])[: len(codes)])
    ends = dict(zip((names[code] for code in codes[last]), end[last].tolist(), strict=True))
    shards = {item.path: item.bytes for item in manifest.objects if item.path.startswith(f"{SHARDS}/")}
    broken |= {name for name in shards.keys() | ends.keys() if shards.get(name) != ends.get(name, 0) + len(END)}
    if broken:
        raise StoreCorrupt(f"{where}: the segments do not fill {sorted(broken)[:5]} as {MANIFEST} names them")


def check_end(storage: Storage, shard: str, content: str, size: int) -> None:
    """Raise StoreCorrupt unless the `size` bytes of `shard`, whose sha256 is `content`, end as a tar: in two empty
    blocks.
    """
    if storage.read_checked(shard, content, size - len(END), len(END), lambda data: data == END) != END:
        raise StoreCorrupt(
            f"{storage.root}: {shard}: expected {len(END)} zeros at its end, got other bytes; "
            f"run `statevla verify {word(storage.root)}`, then ingest again"
        )
