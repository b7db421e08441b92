"""A long epoch does not cost what was trained in it: a run also saves when `SAVE_SECONDS` have passed."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from statevla.runs import layout
from statevla.runs.state import read_state
from statevla.trainers import run as running
from statevla.trainers.run import SAVE_SECONDS
from statevla.trainers.trainer import train
from stores.progress import ProgressEvent
from tests.trainers.micro import micro_config, micro_store
from tests.trainers.together import checkpoint

JEPA = "temporal_jepa"


def saved_before(run: Path, tick: Callable[[], None]) -> tuple[dict[int, int | None], Callable[[ProgressEvent], None]]:
    """Which step checkpoint_latest is of when a step's line comes, by step, and what finds it. tick: at each line."""
    found: dict[int, int | None] = {}

    def watch(event: ProgressEvent) -> None:
        if not event.said and event.done not in found:
            latest = checkpoint(run, JEPA)
            found[event.done] = read_state(latest).step if layout.is_checkpoint(latest) else None
            tick()

    return found, watch


@pytest.mark.parametrize(
    ("seconds", "saved"),
    [
        (0.0, [None, None, None, None, None, None]),
        (0.6 * SAVE_SECONDS, [None, None, 2, 2, 4, 4]),  # counted anew from each time
        (1.1 * SAVE_SECONDS, [None, 1, 2, 3, 4, 5]),
    ],
)
def test_the_latest_checkpoint_is_never_older_than_the_time_and_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, saved: list[int | None]
) -> None:
    """Each step takes `seconds` of a clock that stands still otherwise. The epoch ends after the run."""
    clock = SimpleNamespace(now=0.0)

    def tick() -> None:
        clock.now += seconds

    monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=lambda: clock.now))
    found, watch = saved_before(tmp_path / "run", tick)
    config = micro_config("training.max_steps=6")
    train(JEPA, config, micro_store(tmp_path / "store"), tmp_path / "run", progress=watch)
    assert list(found.values()) == saved
    assert list(found) == [1, 2, 3, 4, 5, 6]
    assert read_state(checkpoint(tmp_path / "run", JEPA)).step == 6
