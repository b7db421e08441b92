"""Faults of a cluster of real processes: the ingest gives the same bytes, or stops with a clear message and resumes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import IngestSummary, ingest
from pipelines.run import run_units
from stores.errors import StateVLAError
from stores.progress import ProgressEvent
from stores.verify import verify_store
from tests.pipelines.cluster import ROOT, cluster
from tests.pipelines.make_hdf5 import demo_arrays, make_world, write_file
from tests.stores.faults import read_tree

pytestmark = pytest.mark.slow
TASKS = 8
KILLS = 20

POISON = """
import os, signal
import h5py
from pipelines.sources import hdf5
if not hasattr(hdf5, "sound"):  # Dask runs a preload more than once
    hdf5.sound = hdf5.read_rows
def read_rows(data, *arguments):
    if "task_3" in h5py.h5f.get_name(data.id).decode() and "demo_1/obs/eye" in data.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    return hdf5.sound(data, *arguments)
hdf5.read_rows = read_rows
"""
INGEST = """
import sys
from pathlib import Path
from pipelines.ingest.driver import ingest
from pipelines.ingest.config import IngestConfig
from pipelines.run import run_units
if __name__ == "__main__":
    ingest(IngestConfig("toy", Path(sys.argv[1]), Path(sys.argv[2]), language="hashed"), workers=2)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for task in range(TASKS):
        demos = {f"demo_{n}": demo_arrays(make_world(10 * task + n, steps=40, side=32)) for n in range(2)}
        write_file(folder / f"task_{task}_demo.hdf5", demos, f"do task {task}")
    return folder


@pytest.fixture(scope="module")
def wanted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | None]:
    """The store of an undisturbed serial ingest."""
    root = tmp_path_factory.mktemp("serial") / "store"
    run(source, root)
    return read_tree(root)


def run(
    source: Path, out: Path, scheduler: str | None = None, after_first: Callable[[], None] | None = None
) -> IngestSummary:
    """Ingest; `after_first` is called once, when the first unit is finished."""
    done = []

    def progress(event: ProgressEvent) -> None:
        if event.done and not done and after_first is not None:
            done.append(event)
            after_first()

    config = IngestConfig("toy", source, out, language="hashed")
    return ingest(config, scheduler=scheduler, progress=progress)


def test_a_scheduler_and_two_workers_give_the_bytes_of_a_serial_run(tmp_path: Path, source: Path, wanted) -> None:
    with cluster(tmp_path / "dask") as dask:
        run(source, tmp_path / "store", dask.address)
    assert read_tree(tmp_path / "store") == wanted


def test_a_killed_worker_costs_nothing(tmp_path: Path, source: Path, wanted) -> None:
    with cluster(tmp_path / "dask") as dask:
        run(source, tmp_path / "store", dask.address, after_first=lambda: dask.kill("worker-0"))
    assert read_tree(tmp_path / "store") == wanted


def test_a_lost_scheduler_is_said_and_a_rerun_resumes(tmp_path: Path, source: Path, wanted) -> None:
    with cluster(tmp_path / "dask") as dask, pytest.raises(StateVLAError, match="run the same command again"):
        run(source, tmp_path / "store", dask.address, after_first=lambda: dask.kill("scheduler"))
    assert run(source, tmp_path / "store").units_reused >= 1
    assert read_tree(tmp_path / "store") == wanted


def test_workers_that_are_all_gone_are_said(
    tmp_path: Path, source: Path, wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.run.PATIENCE_SECONDS", 0.5)

    def kill_all() -> None:
        dask.kill("worker-0")
        dask.kill("worker-1")

    with cluster(tmp_path / "dask") as dask, pytest.raises(StateVLAError, match=r"no worker|died"):
        run(source, tmp_path / "store", dask.address, after_first=kill_all)
    run(source, tmp_path / "store")
    assert read_tree(tmp_path / "store") == wanted


def leave_mark(path: str) -> str:
    Path(path).touch()
    return path


def test_results_that_died_with_their_workers_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.run.PATIENCE_SECONDS", 0.5)
    marks = [tmp_path / str(number) for number in range(6)]
    with cluster(tmp_path / "dask") as dask:
        results = run_units(leave_mark, [(mark.name, str(mark)) for mark in marks], scheduler=dask.address)
        next(results)
        while not all(mark.exists() for mark in marks):
            os.sched_yield()
        dask.kill("worker-0")
        dask.kill("worker-1")
        with pytest.raises(StateVLAError, match=r"no worker has been there for 3 seconds"):
            list(results)


def test_a_worker_without_memory_is_said_and_a_rerun_resumes(
    tmp_path: Path, source: Path, wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nanny kills its worker above the limit, which the interpreter alone exceeds."""
    monkeypatch.setattr("pipelines.run.PATIENCE_SECONDS", 2.0)
    with (
        cluster(tmp_path / "dask", 1, ("--nanny", "--memory-limit", "40MB")) as dask,
        pytest.raises(StateVLAError, match="memory"),
    ):
        run(source, tmp_path / "store", dask.address)
    run(source, tmp_path / "store")
    assert read_tree(tmp_path / "store") == wanted


def test_a_poison_demonstration_kills_no_worker(tmp_path: Path, source: Path) -> None:
    preload = tmp_path / "poison.py"
    preload.write_text(POISON)
    with cluster(tmp_path / "dask", options=("--no-nanny", "--preload", str(preload))) as dask:
        summary = run(source, tmp_path / "store", dask.address)
        assert all(process.poll() is None for process in dask.processes.values())
    assert (summary.episodes, summary.quarantined) == (2 * TASKS - 1, 1)
    assert summary.quarantine[0]["demo"] == "demo_1"
    assert "SIGSEGV" in summary.quarantine[0]["reason"]
    assert verify_store(tmp_path / "store") == []


def test_kill_9_at_random_moments(tmp_path: Path, source: Path, wanted) -> None:
    """Driver and workers die at once, twenty times, then a run that is left alone gives the bytes of a serial one."""
    script = tmp_path / "ingest.py"
    script.write_text(INGEST)
    command = [sys.executable, str(script), str(source), str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    subprocess.run([*command[:3], str(tmp_path / "timed")], env=environment, check=True)
    whole = time.monotonic() - started
    rng = random.Random(7)
    finished = 0
    for _ in range(KILLS):
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            process.wait(timeout=whole * rng.uniform(0.3, 1.0))
            finished += 1
            whole = min(whole, time.monotonic() - started)  # the first run may have met other load
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if (tmp_path / "store" / "manifest.json").exists():
            problems = [p for p in verify_store(tmp_path / "store") if "interrupted writer" not in p.problem]
            assert problems == []
            for path in sorted((tmp_path / "store").iterdir()):  # and once more from the start
                subprocess.run(["rm", "-rf", str(path)], check=True)
    subprocess.run(command, env=environment, check=True)
    print(f"{KILLS} runs, {finished} of them finished before their kill")
    assert read_tree(tmp_path / "store") == wanted
    assert finished < KILLS
