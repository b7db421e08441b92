"""The number of workers is what memory and cores allow."""

import pytest

from statevla.memory import free_gib
from statevla.sims.libero import memory


@pytest.mark.parametrize(
    ("free", "cores", "expected"),
    [(32.0, 4, 4), (6.0, 4, 2), (3.4, 4, 1), (0.5, 4, 1), (float("inf"), 3, 3)],
)
def test_workers(monkeypatch: pytest.MonkeyPatch, free: float, cores: int, expected: int) -> None:
    monkeypatch.setattr(memory, "free_gib", lambda: free)
    assert memory.workers_that_fit(cores) == expected


def test_free_memory_is_told() -> None:
    assert free_gib() > 0
