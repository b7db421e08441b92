"""Ingest of more than fits: memory, open files and throughput of an ingest whose store is gigabytes large.

The source is made of few demonstrations: they are rewritten without compression, and the files named many times over by
symbolic links, so that every link is a task of its own. What is watched from outside, in ``/proc``, ten times a second:
resident memory and open files of this process, of the Dask workers and of the processes that read sources.

Throughput is told by the gigabyte: frames/s while the first, second, ... gigabyte of the store was made, and frames for
each second of processor time, which other work on the machine disturbs less.
"""

import itertools
import math
import os
import platform
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

from pipelines.bench.ingest import configuration, rewrite
from pipelines.ingest.config import preview_ingest
from pipelines.ingest.driver import ingest
from stores.errors import UsageError
from stores.progress import ProgressEvent

GIGABYTE: Final = 10**9
DEMOS: Final = 8
"""Times that each demonstration is in a rewritten file."""
MARGIN: Final = 1.05
"""More than the predicted number of copies, because the prediction is from a sample."""
INTERVAL: Final = 0.1


class Watch(threading.Thread):
    """Peaks of memory and open files of this process and all below it, while it runs.

    anonymous: bytes by role that belong to the process alone; what it maps of files can be dropped at any time. The
    pages that a forked process still shares with its parent count in both. memory: (moment, bytes) of this process.
    cpu: (moment, processor seconds of all so far).
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous: dict[str, int] = {}
        self.files: dict[str, int] = {}
        self.memory: list[tuple[float, int]] = []
        self.cpu: list[tuple[float, float]] = []
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(INTERVAL):
            cpu = 0.0
            for pid, role in family(os.getpid()).items():
                try:
                    memory, files = anonymous_bytes(pid), len(os.listdir(f"/proc/{pid}/fd"))
                    cpu += cpu_seconds(pid)
                except (OSError, ValueError):
                    continue  # it ended meanwhile
                self.anonymous[role] = max(self.anonymous.get(role, 0), memory)
                self.files[role] = max(self.files.get(role, 0), files)
                if role == "driver":
                    self.memory.append((time.monotonic(), memory))
            self.cpu.append((time.monotonic(), cpu))

    def stop(self) -> None:
        """End it."""
        self._end.set()
        self.join()


def family(root: int) -> dict[int, str]:
    """Processes below `root`, itself included, by role: driver, worker (its children), reader (all further below)."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(name))
    roles, level, names = {root: "driver"}, [root], ["worker", "reader"]
    for role in names:
        level = [child for pid in level for child in children.get(pid, [])]
        roles |= dict.fromkeys(level, role)
    return roles


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process that is not a file's."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no memory")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5)


def bench_large(source: Path, workers: int = 2, gigabytes: float = 4.0) -> dict[str, Any]:
    """Ingest a store of at least `gigabytes` GB with `workers` worker processes and report peaks and throughput.

    ratio: frames/s in the last gigabyte to those in the first (1.0: flat). Raises UsageError on impossible numbers, and
    where there is no ``/proc``.
    """
    if workers < 1 or gigabytes <= 0 or not Path("/proc/self/status").exists():
        raise UsageError(f"bench large: expected workers, gigabytes above 0 and a /proc, got {workers}, {gigabytes}")
    with tempfile.TemporaryDirectory(prefix="statevla-bench-") as name:
        folder = Path(name)
        rewrite(source, folder / "once", DEMOS)
        once = preview_ingest(configuration(folder / "once", folder / "store"))
        copies = math.ceil(MARGIN * gigabytes * GIGABYTE / once.bytes)
        (folder / "source").mkdir()
        for path in (folder / "once").iterdir():
            for number in range(copies):
                (folder / "source" / f"{path.stem.removesuffix('_demo')}_{number}_demo.hdf5").symlink_to(path)
        marks: list[tuple[float, int]] = []

        def progress(event: ProgressEvent) -> None:
            marks.append((time.monotonic(), event.done))

        watch = Watch()
        watch.start()
        try:
            summary = ingest(configuration(folder / "source", folder / "store"), workers, progress=progress)
        finally:
            watch.stop()
    spans = by_gigabyte(marks, summary.frames, summary.bytes)
    rates = [frames / (end - begin) for begin, end, frames in spans]
    used = [last_before(watch.cpu, end) - last_before(watch.cpu, begin) for begin, end, _ in spans]
    return {
        "name": "ingest-large",
        "unit": "frames/s",
        "ours": rates[-1],
        "limit": rates[0],
        "ratio": rates[-1] / rates[0],
        "peers": {f"gigabyte_{number}": rate for number, rate in enumerate(rates, 1)},
        "workers": workers,
        "frames": summary.frames,
        "bytes": summary.bytes,
        "seconds": summary.seconds,
        "frames_per_processor_second": [frames / cpu for (_, _, frames), cpu in zip(spans, used, strict=True)],
        "units": summary.units,
        "anonymous_bytes_peak": watch.anonymous,
        "driver_bytes_by_quarter": quarters(watch.memory),
        "open_files_peak": watch.files,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    }


def by_gigabyte(marks: list[tuple[float, int]], frames: int, size: int) -> list[tuple[float, float, int]]:
    """(begin, end, frames) of each whole gigabyte of a store of `size` bytes; marks: (moment, frames finished)."""
    spans = []
    for number in range(max(1, size // GIGABYTE)):
        low, high = (min(1.0, (number + more) * GIGABYTE / size) * frames for more in (0, 1))
        first = max((mark for mark in marks if mark[1] <= low), key=lambda mark: mark[1])
        last = min((mark for mark in marks if mark[1] >= high), key=lambda mark: mark[1], default=marks[-1])
        spans.append((first[0], last[0], last[1] - first[1]))
    return spans


def last_before(series: list[tuple[float, float]], moment: float) -> float:
    """The last value of a series at `moment`; the first, where it begins later."""
    return max((item for item in series if item[0] <= moment), default=series[0])[1]


def quarters(series: list[tuple[float, int]]) -> list[int]:
    """The largest of each quarter of a series."""
    cut = [len(series) * quarter // 4 for quarter in range(5)]
    return [max((value for _, value in series[low:high]), default=0) for low, high in itertools.pairwise(cut)]
