"""What a store costs before its first batch, by its size: synthetic stores of a hundred thousand segments and more.

A synthetic store has true tables, frames and manifest; its shards are sparse files of the right size, which nobody
reads here. Each measurement runs in a process of its own, after its imports: seconds by the clock and of the processor,
and by how much the process grew at most. 10 segments of 16 steps an episode, 160 a shard, 38 members a segment.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores.disk import durable
from stores.language import LanguageRow, write_language
from stores.layout import EPISODES_FILE, LANGUAGE_FILE, SEGMENTS_FILE, shard_path
from stores.manifest import Manifest, StoreObject, hash_objects
from stores.numbers import frame_objects, frames_writer
from stores.schema import CHUNK, EPISODES, SEGMENT_FRAMES, SEGMENTS
from stores.segments import image_name
from stores.shards import BLOCK, END
from stores.spec import LIBERO
from stores.tables import table_writer

SIZES: Final = (100_000,)
PER_EPISODE: Final = 10
PER_SHARD: Final = 160
"""Segments of a shard: 16 episodes."""
GOAL: Final = {"seconds": 2.0, "megabytes": 500.0}
"""To open a store of a million segments and be ready for its first batch."""
TASKS: Final = 10


def make_synthetic(root: Path, segments: int, seed: int = 0) -> None:
    """Write a store of `segments` segments (a multiple of `PER_SHARD`) at `root`; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    episodes, window, spec = segments // PER_EPISODE, SEGMENT_FRAMES, LIBERO.sized(((128, 128),) * 2)
    frames = PER_EPISODE * window + 1
    names = ["json", "robot_state.npy", "action.npy", "is_pad.npy"]
    names += [image_name(camera, t, "jpeg") for camera in spec.camera_names for t in range(window + 1)]
    shards: list[StoreObject] = []
    (root / "shards").mkdir(parents=True)
    with (
        durable.unsafe_without_fsync(),
        table_writer(root / EPISODES_FILE, EPISODES) as episode_table,
        table_writer(root / SEGMENTS_FILE, SEGMENTS) as segment_table,
        frames_writer(root, episodes * frames, spec) as numbers,
    ):
        for unit in range(segments // PER_SHARD):
            first = unit * PER_SHARD
            sizes = np.concatenate(
                [
                    np.tile([200, 740, 828, 153], (PER_SHARD, 1)),
                    rng.integers(2500, 3500, (PER_SHARD, len(names) - 4)),
                ],
                axis=1,
            )
            steps = BLOCK + sizes + -sizes % BLOCK
            ends = np.cumsum(steps.ravel()).reshape(steps.shape)
            begins = ends - steps
            size = int(ends[-1, -1]) + len(END)
            episode_table.add(_episodes(unit, frames, window))
            segment_table.add(_segments(unit, first, names, begins, ends, sizes))
            path = shard_path(f"task-{unit:06d}")
            with (root / path).open("wb") as file:
                file.truncate(size)
            shards.append(StoreObject(path, size, "0" * 64))
            number = np.arange(unit * PER_SHARD // PER_EPISODE, (unit + 1) * PER_SHARD // PER_EPISODE)
            count = len(number) * frames
            action = rng.uniform(-1, 1, (count, spec.action_dim)).astype(np.float32)
            action[frames - 1 :: frames] = np.nan
            numbers.add(
                {
                    "robot_state": rng.normal(0, 1, (count, spec.robot_state_dim)).astype(np.float32),
                    "action": action,
                    "episode": np.repeat(number, frames),
                    "index": np.tile(np.arange(frames), len(number)),
                }
            )
        texts = [f"do task {task}" for task in range(TASKS)]
        vector = np.full(spec.language_width, spec.language_width**-0.5, np.float32)
        write_language(root / LANGUAGE_FILE, [LanguageRow(text, "synthetic", "1", vector) for text in texts])
    with durable.unsafe_without_fsync():
        paths = [EPISODES_FILE, SEGMENTS_FILE, LANGUAGE_FILE, *frame_objects(episodes * frames, spec)]
        objects = (*shards, *hash_objects(root, paths))
        val = sum(number % 10 == 9 for number in range(episodes))
        Manifest(
            suite="synthetic",
            obs_spec=spec.to_dict(),
            config={"window": window, "chunk": CHUNK, "codec": "jpeg", "language": {"encoder": "synthetic"}},
            splits={"train": episodes - val, "val": val},
            instructions=tuple(texts),
            objects=objects,
            counts={
                "episodes": episodes,
                "frames": episodes * frames,
                "steps": segments * window,
                "segments": segments,
                "bytes": sum(item.bytes for item in objects),
                "quarantined": 0,
            },
            sources=(),
            provenance={},
        ).save(root)


def _episodes(unit: int, frames: int, window: int) -> pa.Table:
    per_unit = PER_SHARD // PER_EPISODE
    rows = []
    for number in range(unit * per_unit, (unit + 1) * per_unit):
        task = number % TASKS
        rows.append(
            {
                "episode": number,
                "id": f"task_{task}/demo_{number}",
                "task": f"task_{task}",
                "instruction": f"do task {task}",
                "split": "val" if number % 10 == 9 else "train",
                "frames": frames,
                "steps": PER_EPISODE * window,
                "first_frame": number * frames,
                "first_segment": number * PER_EPISODE,
                "segments": PER_EPISODE,
                "source": f"task_{task}.hdf5",
                "demo": f"demo_{number}",
                "alignment": "after",
                "unit": f"task-{unit:06d}",
            }
        )
    return pa.Table.from_pylist(rows, schema=EPISODES)


def _segments(
    unit: int, first: int, names: list[str], begins: NDArray[Any], ends: NDArray[Any], sizes: NDArray[Any]
) -> pa.Table:
    rows = np.arange(first, first + PER_SHARD)
    cuts = pa.array(np.arange(0, sizes.size + 1, len(names)), pa.int32())
    columns = {
        "segment": rows,
        "episode": rows // PER_EPISODE,
        "key": [f"task/demo_{row // PER_EPISODE}-{row % PER_EPISODE:06d}" for row in rows],
        "shard": pa.repeat(shard_path(f"task-{unit:06d}"), PER_SHARD),
        "offset": begins[:, 0],
        "size": ends[:, -1] - begins[:, 0],
        "crc32": pa.array(rows % 2**32, pa.uint32()),
        "first_step": rows % PER_EPISODE * SEGMENT_FRAMES,
        "steps": np.full(PER_SHARD, SEGMENT_FRAMES),
        "observations": np.full(PER_SHARD, SEGMENT_FRAMES + 1),
        "member_offset": pa.ListArray.from_arrays(cuts, pa.array(begins.ravel() + BLOCK)),
        "member_size": pa.ListArray.from_arrays(cuts, pa.array(sizes.ravel())),
        "member_name": pa.ListArray.from_arrays(cuts, pa.array(names * PER_SHARD)),
    }
    return pa.table([columns[name] for name in SEGMENTS.names], schema=SEGMENTS)


def bench_index(sizes: tuple[int, ...] = SIZES, folder: Path | None = None) -> dict[str, Any]:
    """Measure stores of `sizes` segments, made below `folder` (default: a temporary one)."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for size in sizes:
            segments = size // PER_SHARD * PER_SHARD
            root, started = Path(scratch, str(size)), time.perf_counter()
            make_synthetic(root, segments)
            found[str(segments)] = {
                "made": {"seconds": round(time.perf_counter() - started, 2)},
                **{what: _apart(what, root) for what in MEASURES},
            }
    largest = found[str(max(map(int, found)))]
    seconds = largest["open"]["seconds"] + largest["loader"]["seconds"]
    return {
        "name": "index",
        "unit": "seconds to open a store and be ready for its first batch",
        "ours": round(seconds, 2),
        "limit": GOAL["seconds"],
        "ratio": round(GOAL["seconds"] / seconds, 2),
        "peers": {},
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "details": found,
    }


def _apart(what: str, root: Path) -> dict[str, float]:
    code = f"from pipelines.bench.index import measure; measure({what!r}, {str(root)!r})"
    answer = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, cwd=os.getcwd())
    result: dict[str, float] = json.loads(answer.stdout)
    return result


def measure(what: str, root: str) -> None:
    """Run one of `MEASURES` and print seconds and megabytes by which this process grew at its peak."""
    work = MEASURES[what](root)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = _kilobytes("VmRSS")
    started, worked = time.perf_counter(), time.process_time()
    kept = work()
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    grown = _kilobytes("VmHWM") - before
    print(
        json.dumps({"seconds": round(seconds, 3), "processor": round(processor, 3), "megabytes": round(grown / 1024)})
    )
    del kept


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _open(root: str) -> Callable[[], object]:
    from stores.reader import Store

    return lambda: Store.open(root)


def _loader(root: str) -> Callable[[], object]:
    """What a rank does beyond opening the store before its first batch; memory is of both."""
    from statevla.config import DataConfig
    from statevla.data.loaders import SegmentLoader
    from statevla.data.needs import Needs
    from stores.reader import Store

    store = Store.open(root)
    return lambda: SegmentLoader(store, "train", 64, 0, DataConfig(), CHUNK, Needs())


def _both(root: str) -> Callable[[], object]:
    from statevla.config import DataConfig
    from statevla.data.loaders import SegmentLoader
    from statevla.data.needs import Needs
    from stores.reader import Store

    return lambda: SegmentLoader(Store.open(root), "train", 64, 0, DataConfig(), CHUNK, Needs())


def _range(root: str) -> Callable[[], object]:
    from stores.reader import Store

    store = Store.open(root)
    return lambda: store.numbers["action"].read(1000, 3000)


def _statistics(root: str) -> Callable[[], object]:
    from pipelines.derive.stats import compute_statistics

    return lambda: compute_statistics(root)


MEASURES: Final[dict[str, Callable[[str], Callable[[], object]]]] = {
    "open": _open,
    "loader": _loader,
    "open and loader": _both,
    "2,000 rows of numbers": _range,
    "statistics": _statistics,
}
