"""Field names, dtypes, shapes and units of a store, version 1.

Legend: T observations of an episode, W frames of a segment, K chunk length, C cameras.

A *frame* is one observation of an episode. A *step* is a frame that has an action. Observation ``t`` is what the
robot saw before executing action ``t``; so an episode has as many steps as frames (its last action has no
successor observation), or one less (its last frame has no action).
"""

from typing import Final

import pyarrow as pa

SCHEMA_VERSION: Final = 1

FORMATS: Final = {"images": 1, "segments": 1, "shards": 1, "tables": 1, "frames": 1}
"""Raised by hand when the same input leads to other bytes: of an encoded image, a segment's members, a tar, a table,
``frames.zarr``. Golden bytes hold them (``tests/stores/test_golden.py``); nothing else makes what is finished stale:
neither an edit of the code that writes it nor another version of a library.
"""

SEGMENT_FRAMES: Final = 16
CHUNK: Final = 10

IMAGE_SUFFIX: Final = {"jpeg": "jpg", "jpeg-420": "jpg", "png": "png"}
IMAGE_CODECS: Final = tuple(IMAGE_SUFFIX)

EPISODES = pa.schema(
    [
        ("episode", pa.int64()),  # position in this table, 0-based
        ("id", pa.string()),  # "<source stem>/<demo>", stable when other sources come and go
        ("task", pa.string()),  # as the source names it; LIBERO: the file's stem without "_demo"
        ("instruction", pa.string()),
        ("split", pa.string()),  # "train" or "val"
        ("frames", pa.int64()),  # observations
        ("steps", pa.int64()),  # actions: frames or frames - 1
        ("first_frame", pa.int64()),  # row of its first frame in frames.zarr
        ("first_segment", pa.int64()),  # row of its first segment in segments.parquet
        ("segments", pa.int64()),
        ("source", pa.string()),  # source file name
        ("demo", pa.string()),  # group below /data
        ("alignment", pa.string()),  # "after" or "before": how the source stored observations
        ("unit", pa.string()),
    ]
)

SEGMENTS = pa.schema(
    [
        ("segment", pa.int64()),
        ("episode", pa.int64()),
        ("key", pa.string()),  # WebDataset __key__
        ("shard", pa.string()),  # path below the store, "shards/<unit>.tar"
        ("offset", pa.int64()),  # of the segment's first tar header in the shard
        ("size", pa.int64()),  # bytes of the segment in the shard: headers, members, padding
        ("crc32", pa.uint32()),  # of those bytes
        ("first_step", pa.int64()),  # index in the episode
        ("steps", pa.int64()),  # 1 ... W
        ("observations", pa.int64()),  # steps + 1, or steps where the last has no successor
        ("member_offset", pa.list_(pa.int64())),  # of each member's data, absolute in the shard
        ("member_size", pa.list_(pa.int64())),
        ("member_name", pa.list_(pa.string())),  # part after "<key>."
    ]
)
