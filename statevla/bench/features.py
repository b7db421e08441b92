"""Reading kept features: rows of a sharded array into reused buffers, against plain reads of the same bytes.

The limit is `preadv` of as many bytes from one file into a reused buffer, in the same order, with nothing around it.
Ours is measured as segments are read (runs of frames) and as training reads (single frames, in a shuffled order, by
threads); with every checksum, as a reader's first epoch is, and without, as all others are. Cold reads come after the
system was asked to forget the file; it may not. Buffers begin on a cache line, as those of the loader do.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from statevla.bench.machine import describe_machine, usable_cores
from statevla.data.views import Stored
from stores.arrays import create_group
from stores.sharded import ShardedSpec, aligned, create, open_sharded, write_shard

ROW: Final = (196, 768)
"""SigLIP ViT-B/16 at 224 pixels, float16: 301 KB a frame and camera."""
SEGMENT: Final = 16
BATCH: Final = 64
SHARD: Final = 208
"""Frames a shard of `statevla features` holds at this size."""


def bench_features(*, frames: int = 1040, repeats: int = 9, threads: int | None = None) -> dict[str, Any]:
    """Medians of `repeats` rounds in GB/s over `frames` synthetic frames of one camera, in a temporary folder.

    Returns name, unit, ours (warm, in segment order, checksums known), limit, ratio, peers, machine, details.
    """
    threads = usable_cores() if threads is None else threads
    spec = ShardedSpec((frames, *ROW), "float16", 1, min(SHARD, frames))
    size = frames * spec.row_bytes
    rng = np.random.default_rng(0)
    order = rng.permutation(frames).astype(np.int64)
    with tempfile.TemporaryDirectory(prefix="statevla-bench-") as name:
        root = Path(name)
        create_group(root)
        create(root, "a", spec)
        block = rng.integers(0, 2**15, (SEGMENT, *ROW), dtype=np.uint16).view(np.float16)
        for m in range(spec.shards):
            rows = spec.rows(m)
            write_shard(root, "a", spec, m, (block[: min(SEGMENT, rows - i)] for i in range(0, rows, SEGMENT)))
        plain = root / "plain"
        with plain.open("wb") as handle:
            for start in range(0, frames, SEGMENT):
                handle.write(block[: min(SEGMENT, frames - start)].tobytes())
        buffer = aligned((SEGMENT, *ROW), "float16")
        array = open_sharded(root, "a")
        files = [plain, *(root / "a" / shard for shard in spec.files())]

        def ours() -> None:
            for start in range(0, frames, SEGMENT):
                stop = min(start + SEGMENT, frames)
                array.read(start, stop, buffer[: stop - start])

        def first() -> None:
            fresh = open_sharded(root, "a")
            for start in range(0, frames, SEGMENT):
                stop = min(start + SEGMENT, frames)
                fresh.read(start, stop, buffer[: stop - start])

        def limit() -> None:
            descriptor = os.open(plain, os.O_RDONLY)
            for start in range(0, frames, SEGMENT):
                rows = min(SEGMENT, frames - start)
                os.preadv(descriptor, [buffer[:rows].reshape(-1).view(np.uint8).data], start * spec.row_bytes)
            os.close(descriptor)

        def shuffled() -> None:
            out = torch.empty((BATCH, *ROW), dtype=torch.float16).numpy()
            with ThreadPoolExecutor(threads) as pool:
                for start in range(0, frames, BATCH):
                    rows = order[start : start + BATCH]
                    Stored(array).take(rows, out[: len(rows)], pool)

        def theirs() -> None:
            import zarr

            opened: Any = zarr.open_array(root / "a", mode="r")
            for start in range(0, frames, SEGMENT):
                buffer[: min(SEGMENT, frames - start)] = opened[start : start + SEGMENT]

        ours()  # every checksum is known from here on
        ways: dict[str, Callable[[], None]] = {
            "ours": ours, "limit": limit, "with checksums": first, "shuffled frames": shuffled, "zarr-python": theirs,
        }  # fmt: skip
        warm = _rounds(ways, size, repeats, [])
        worked = _rounds({"ours": ours, "limit": limit}, size, repeats, [], time.process_time)
        cold = _rounds({"ours": ours, "limit": limit}, size, repeats, files)
    return {
        "name": "features",
        "unit": "GB/s",
        "ours": warm["ours"],
        "limit": warm["limit"],
        "ratio": warm["ours"] / warm["limit"],
        "peers": {"zarr-python": warm["zarr-python"]},
        "machine": describe_machine(),
        "details": {
            "with_checksums": warm["with checksums"],
            "shuffled_frames": warm["shuffled frames"],
            # By processor time: what a crowd on the machine leaves alone.
            "processor_ratio": worked["ours"] / worked["limit"],
            "cold": {**cold, "ratio": cold["ours"] / cold["limit"]},
            "frames": frames,
            "row_bytes": spec.row_bytes,
            "threads_of_shuffled_frames": threads,
        },
    }


def _rounds(
    ways: dict[str, Callable[[], None]],
    size: int,
    repeats: int,
    forget: list[Path],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """GB/s of each way, medians of interleaved rounds; the files `forget` leave the page cache before each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            for path in forget:
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
            began = clock()
            way()
            seconds[name].append(clock() - began)
    return {name: size / 1e9 / statistics.median(values) for name, values in seconds.items()}
