"""The runners: same results here and on worker processes, clear errors."""

import hashlib
import os

import pytest

from pipelines.bench.large import anonymous_bytes
from pipelines.run import run_units
from stores.errors import SourceError, StateVLAError, UsageError

TASKS = [(f"unit-{number}", number) for number in range(5)]


def square(number: int) -> int:
    return number * number


def work(_: int) -> bytes:
    """Some milliseconds of it, so that results come one by one; each is as large as a unit's record."""
    return hashlib.pbkdf2_hmac("sha256", b"", b"", 50_000) + os.urandom(120_000)


def process_id(_: int) -> int:
    return os.getpid()


def refuse(number: int) -> int:
    raise SourceError(f"number {number}")


def die(_: int) -> int:
    os._exit(9)


def test_serial_runs_here_in_order() -> None:
    assert list(run_units(square, TASKS)) == [(name, number * number) for name, number in TASKS]
    assert {result for _, result in run_units(process_id, TASKS)} == {os.getpid()}


def test_workers_give_the_same_results_from_other_processes() -> None:
    assert sorted(run_units(square, TASKS, workers=2)) == sorted(run_units(square, TASKS))


def test_workers_leave_the_environment_as_it_was() -> None:
    before = dict(os.environ)
    list(run_units(square, TASKS, workers=2))
    assert dict(os.environ) == before


def test_what_a_task_raises_is_raised_here() -> None:
    with pytest.raises(SourceError, match="number 3"):
        list(run_units(refuse, [("unit", 3)], workers=1))


def test_a_task_that_kills_its_worker_is_named() -> None:
    with pytest.raises(StateVLAError, match=r"unit poison: the worker processes that tried it died"):
        list(run_units(die, [("poison", 0)], workers=1))


def test_wrong_requests() -> None:
    with pytest.raises(UsageError, match="expected one of the two"):
        run_units(square, TASKS, workers=1, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(UsageError, match="0 or more"):
        run_units(square, TASKS, workers=-1)


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.run.CONNECT_SECONDS", 0.5)
    with pytest.raises(UsageError, match="no Dask scheduler answers"):
        list(run_units(square, TASKS, scheduler="tcp://127.0.0.1:1"))


@pytest.mark.slow
def test_the_driver_does_not_grow_with_the_number_of_tasks() -> None:
    """Results that come and go, of which hundreds are to come: Dask's own wait() left tens of MB of holes."""
    tasks = [(f"unit-{number}", number) for number in range(420)]
    grown = [anonymous_bytes(os.getpid()) for _ in run_units(work, tasks, workers=2)]
    assert grown[-1] - grown[0] < 12 * 2**20
