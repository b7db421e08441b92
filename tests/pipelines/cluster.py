"""A Dask cluster of real processes: one scheduler and workers, as a user starts them by hand."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distributed import Client

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cluster:
    """address: of the scheduler. Processes are killed with `kill`, by name "scheduler", "worker-0", …"""

    address: str
    processes: dict[str, subprocess.Popen[bytes]]

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Signal a process; nothing else is told."""
        self.processes[name].send_signal(number)


@contextlib.contextmanager
def cluster(folder: Path, workers: int = 2, options: tuple[str, ...] = ("--no-nanny",)) -> Iterator[Cluster]:
    """`dask scheduler` and `workers` times `dask worker --nthreads 1`, on loopback; ended with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    logs = (folder / "log").open("wb")
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "dask", *arguments]
        processes[name] = subprocess.Popen(command, cwd=folder, env=environment, stdout=logs, stderr=logs)

    try:
        start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
              "--scheduler-file", "scheduler.json")  # fmt: skip
        for number in range(workers):
            start(f"worker-{number}", "worker", "--scheduler-file", "scheduler.json", "--nthreads", "1",
                  "--no-dashboard", "--local-directory", f"worker-{number}", *options)  # fmt: skip
        with Client(scheduler_file=str(folder / "scheduler.json"), timeout=120, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=120)
            address = client.scheduler.address
        yield Cluster(address, processes)
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.wait()
        logs.close()
