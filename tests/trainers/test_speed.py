"""A run's speed, by a clock that the test sets."""

import pytest

from statevla.trainers import speed


def test_pauses_do_not_count_and_a_lap_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(speed.time, "monotonic", lambda: clock)
    stopwatch = speed.Stopwatch(step=3)
    with stopwatch.waiting():
        clock += 1.0
    with stopwatch.paused():
        clock += 50.0
    clock += 3.0
    assert stopwatch.lap(step=7, batch_size=8) == speed.Speed(samples_per_s=8.0, data_wait=0.25)
    clock += 2.0
    assert stopwatch.lap(step=8, batch_size=8) == speed.Speed(samples_per_s=4.0, data_wait=0.0)
