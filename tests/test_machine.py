"""What a loader takes of a machine follows the machine, what is configured goes before it, and a training says it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from statevla.config import DataConfig
from statevla.data import machine
from statevla.data.machine import cache_bytes, in_words, loader_threads, remote_cache_bytes, usable_cores
from statevla.memory import GIB
from statevla.trainers.trainer import train
from stores.progress import ProgressEvent
from tests.trainers.micro import micro_config, micro_store


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """The free memory is asked for once a process; these tests have machines of their own."""
    machine._free_memory.cache_clear()
    yield
    machine._free_memory.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, *, cores: int, free: float) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    monkeypatch.setattr(machine, "free_gib", lambda: free)


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 9}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (3, 3), (8, 8), (96, 8)])
def test_threads_are_the_cores_up_to_8_or_what_is_configured(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    pretend(monkeypatch, cores=cores, free=8.0)
    assert loader_threads(DataConfig()) == threads
    assert loader_threads(DataConfig(loader_threads=12)) == 12


@pytest.mark.parametrize(("free", "gib"), [(8.0, 1), (100.0, 12.5), (128.0, 16), (1000.0, 16), (float("inf"), 16)])
def test_the_cache_is_an_eighth_of_the_free_memory_up_to_16_gib_or_what_is_configured(
    monkeypatch: pytest.MonkeyPatch, free: float, gib: float
) -> None:
    pretend(monkeypatch, cores=2, free=free)
    assert cache_bytes(DataConfig()) == gib * GIB
    assert cache_bytes(DataConfig(cache_gib=3.0)) == 3 * GIB
    assert cache_bytes(DataConfig(cache_gib=0.0)) == 0, "always streams"


def test_the_free_memory_is_that_of_the_first_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train and val must not share it unequally because the first has filled some by then."""
    pretend(monkeypatch, cores=2, free=16.0)
    first = cache_bytes(DataConfig())
    pretend(monkeypatch, cores=2, free=4.0)
    assert cache_bytes(DataConfig()) == first


@pytest.mark.parametrize(("free", "kept", "gib"), [(40, 0, 10), (30, 10, 10), (4000, 0, 64)])
def test_a_cache_of_a_remote_store_is_a_quarter_of_the_disk_up_to_64_gib_and_counts_what_it_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, kept: int, gib: int
) -> None:
    data = DataConfig(remote_cache=str(tmp_path / "ranges"))
    usage = machine.shutil.disk_usage(tmp_path)._replace(free=free * GIB)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    assert remote_cache_bytes(data, kept * GIB) == gib * GIB


def test_a_training_says_what_was_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, cores=5, free=20.0)
    words = "loader: 5 threads (data.loader_threads), up to 2.5 GiB of decoded frames a split (data.cache_gib)"
    assert in_words(DataConfig()) == words
    events: list[ProgressEvent] = []
    train("temporal_jepa", micro_config("training.max_steps=1"), micro_store(tmp_path / "store"), tmp_path / "run",
          progress=events.append)  # fmt: skip
    assert [event.message for event in events if event.said and event.message.startswith("loader: ")] == [words]
