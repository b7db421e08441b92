"""How near ingest is to its floor: reading the HDF5 and encoding the images, and nothing else.

All are measured in one run, alternating, on files rewritten without compression (as LIBERO's official ones are), each
demonstration several times, so that a run lasts seconds; in the page cache, with this process and its children held to
as many cores as there are workers:

- floor: read the same rows with plain h5py, 16 at a time into memory that is used again, flip, encode, throw away;
- ours: a whole `ingest` into a fresh folder, from listing the source to the committed manifest: fingerprints, checks,
  shards, fsync, object hashes, tables, and the process that reads the sources;
- plain tar: the floor with ``tarfile`` writing the same images, without index, hash or fsync;
- without fsync: ours with durability switched off.

With two or more workers, all run on Dask clusters that are started before the clock, over the same units of work.
Before every run the disk is left to finish what was written before. Machines change their speed from one second to the
next, so what is compared is compared within a round, and the median over the rounds is what counts.
"""

import contextlib
import io
import os
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from pipelines.ingest.config import IngestConfig, plan_ingest
from pipelines.ingest.driver import ingest
from pipelines.ingest.unit import READ_FRAMES
from pipelines.run import local_cluster, run_units
from statevla.observation import HDF5_IMAGE_KEYS
from stores.disk import durable
from stores.errors import UsageError
from stores.images import JPEG_QUALITY, encode_image


@dataclass(frozen=True)
class FloorTask:
    """Demonstrations of one file to read and encode; `tar` names a file to write them to, None throws them away."""

    file: str
    demos: tuple[str, ...]
    tar: str | None


COPIES: Final = 6
"""Times that each demonstration is repeated, so that a run lasts seconds and not its start."""


REPEATS: Final = 9
"""Rounds; each measures everything once."""


def bench_ingest(source: Path, workers: int = 1, repeats: int = REPEATS, copies: int = COPIES) -> dict[str, Any]:
    """Frames/s of ingest of `source`, and what fraction of the floor that is (`ratio`, 1.0: at the floor).

    quartiles: of the rounds' ratios, whose median `ratio` is.
    copies: how often each demonstration is repeated in the rewritten source, for a longer measurement.
    Raises UsageError on impossible counts, and as `plan_ingest` does.
    """
    if min(workers, repeats, copies) < 1:
        raise UsageError(f"workers, repeats, copies: expected 1 or more, got {workers}, {repeats}, {copies}")
    with tempfile.TemporaryDirectory(prefix="statevla-bench-") as name, held_to_cores(workers) as cores:
        folder = Path(name)
        rewrite(source, folder / "source", copies)
        plan = plan_ingest(configuration(folder / "source", folder / "plan"))
        with contextlib.ExitStack() as stack:
            durable_cluster = stack.enter_context(local_cluster(workers)) if workers > 1 else None
            with durable.unsafe_without_fsync():  # its workers inherit the switch
                loose_cluster = stack.enter_context(local_cluster(workers)) if workers > 1 else None

            def floor(number: int, tar: bool) -> None:
                tasks = [
                    (unit.name, FloorTask(
                        str(folder / "source" / unit.file), unit.demos,
                        str(folder / "out" / f"{unit.name}-{number}.tar") if tar else None,
                    ))
                    for unit in sorted(plan.units, key=plan.unit_frames, reverse=True)  # as ingest does
                ]  # fmt: skip
                for _ in run_units(read_and_encode, tasks, scheduler=durable_cluster):
                    pass

            def ours(number: int, fsync: bool) -> None:
                config = configuration(folder / "source", folder / "out" / f"store-{number}-{fsync}")
                with contextlib.nullcontext() if fsync else durable.unsafe_without_fsync():
                    ingest(config, scheduler=durable_cluster if fsync else loose_cluster)

            runs: dict[str, Callable[[int], None]] = {
                "floor": lambda number: floor(number, tar=False),
                "ours": lambda number: ours(number, fsync=True),
                "plain_tar": lambda number: floor(number, tar=True),
                "without_fsync": lambda number: ours(number, fsync=False),
            }
            seconds = measure(runs, repeats, folder / "out")
    rates = {name: plan.frames / statistics.median(taken) for name, taken in seconds.items()}
    ratios = [floor / ours for floor, ours in zip(seconds["floor"], seconds["ours"], strict=True)]
    costs = [1 - loose / ours for loose, ours in zip(seconds["without_fsync"], seconds["ours"], strict=True)]
    return {
        "name": "ingest",
        "unit": "frames/s",
        "ours": rates["ours"],
        "limit": rates["floor"],
        "ratio": statistics.median(ratios),
        "quartiles": [float(np.quantile(ratios, part)) for part in (0.25, 0.75)],
        "peers": {"plain_tar": rates["plain_tar"], "without_fsync": rates["without_fsync"]},
        "workers": workers,
        "frames": plan.frames,
        "copies": copies,
        "repeats": repeats,
        "durability_cost": statistics.median(costs),
        "machine": f"{platform.processor() or platform.machine()}, {len(cores)} of {os.cpu_count()} cores",
    }


def measure(runs: dict[str, Callable[[int], None]], repeats: int, out: Path) -> dict[str, list[float]]:
    """Seconds of each run in each of `repeats` rounds that alternate all of them, after one round to warm up.

    out: the folder in which they write; it is empty, and the disk at rest, when a run begins.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            durable.remove(out)
            out.mkdir()
            os.sync()
            started = time.perf_counter()
            run(number)
            seconds[name].append(time.perf_counter() - started)
    return {name: taken[1:] for name, taken in seconds.items()}


def configuration(source: Path, out: Path) -> IngestConfig:
    """The default store of `source`; hashed language, because the bench is about frames."""
    return IngestConfig("bench", source, out, language="hashed")


@contextlib.contextmanager
def held_to_cores(count: int) -> Iterator[set[int]]:
    """Hold this process, and threads and children started inside, to `count` cores; the floor and ours share them."""
    if not hasattr(os, "sched_setaffinity"):
        yield set(range(os.cpu_count() or 1))
        return
    allowed = os.sched_getaffinity(0)
    chosen = set(sorted(allowed)[:count])
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, allowed)


def rewrite(source: Path, target: Path, copies: int) -> None:
    """Copy the files of `source` without compression, each demonstration `copies` times."""
    target.mkdir()
    plan = plan_ingest(configuration(source, target))
    for path in plan.paths:
        if path.name not in plan.files:
            continue
        with h5py.File(path, "r") as old, durable.staging_file(target / path.name) as temp, h5py.File(temp, "w") as new:
            data = new.create_group("data")
            for name, value in old["data"].attrs.items():
                if name not in ("num_demos", "total"):
                    data.attrs[name] = value
            for copy in range(copies):
                for number, demo in enumerate(plan.files[path.name].episodes):
                    copy_demo(old["data"][demo], data.create_group(f"demo_{copy * 1000 + number}"))


def copy_demo(old: h5py.Group, new: h5py.Group) -> None:
    """Attributes and datasets of a demonstration, contiguous."""
    for name, value in old.attrs.items():
        new.attrs[name] = value

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            new.create_dataset(name, data=item[()])

    old.visititems(visit)


def read_and_encode(task: FloorTask) -> int:
    """The floor, and with ``tar`` the plain tar writer; returns how many frames it encoded."""
    total = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(h5py.File(task.file, "r"))
        tar = stack.enter_context(tarfile.open(task.tar, "w", format=tarfile.USTAR_FORMAT)) if task.tar else None
        for number, demo in enumerate(task.demos):
            cameras = {camera: file[f"data/{demo}/obs/{key}"] for camera, key in HDF5_IMAGE_KEYS.items()}
            rows, *shape = next(iter(cameras.values())).shape
            buffer = np.empty((READ_FRAMES, *shape), np.uint8)
            for start in range(0, rows, READ_FRAMES):
                count = min(READ_FRAMES, rows - start)
                for camera, images in cameras.items():
                    images.read_direct(buffer, np.s_[start : start + count], np.s_[:count])
                    for offset, image in enumerate(buffer[:count]):
                        data = encode_image(image[::-1], "jpeg", JPEG_QUALITY)
                        if tar is not None:
                            member = tarfile.TarInfo(f"{number}-{start:06d}.{camera}.{offset:02d}.jpg")
                            member.size = len(data)
                            tar.addfile(member, io.BytesIO(data))
            total += rows
    return total
