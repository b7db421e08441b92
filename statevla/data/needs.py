"""What a loader must deliver for a system to be trained: data, not a phase's number."""

from dataclasses import dataclass
from typing import Final

from statevla.data.views import INSTEAD, VIEWS
from stores.errors import UsageError

GOALS: Final = ("none", "final", "future", "near", "mixed")


@dataclass(frozen=True)
class Needs:
    """What of each transition a batch must hold.

    offsets: observation frames relative to t: (0,), or (0, k) with a later one, k steps on or as many as the segment
    holds (`Batch.ahead`). require: leave out steps that have none, instead of masking.
    views: what of an observation is loaded: pixels, or what the run takes instead of them, and further rows of `VIEWS`
    beside; with ``features`` among them, kept features come beside the pixels, not in their place. goal: which later
    observation comes with each row (`data.goals.Goals`).
    rows: fewest rows of a batch for which the loss means something.
    states: frames relative to t, 0 first, of which the kept states of the run's frozen encoder come with each row
    (`data.views.LaterStates`); no picture is opened for them, and the episode bounds them, not the segment.
    Raises UsageError for what no loader delivers.
    """

    offsets: tuple[int, ...] = (0,)
    require: bool = False
    views: tuple[str, ...] = ("pixels",)
    goal: str = "none"
    rows: int = 1
    states: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        unknown = [view for view in self.views if view not in VIEWS]
        if not _now_or_later(self.offsets) or unknown or self.goal not in GOALS:
            raise UsageError(
                f"needs: expected offsets (0,) or (0, k), views of {tuple(VIEWS)}, a goal of {GOALS}; "
                f"got {self.offsets}, {self.views}, {self.goal!r}"
            )
        if self.states and (self.states[0] != 0 or list(self.states) != sorted(set(self.states))):
            raise UsageError(f"needs: expected frames of states that rise from 0, got {self.states}")
        if self.beside and self.goal != "none":
            raise UsageError(f"needs: goals are of pixels alone, and cannot come with views {', '.join(self.beside)}")

    @property
    def beside(self) -> tuple[str, ...]:
        """The further views."""
        return tuple(name for name in self.views if name not in INSTEAD)

    @property
    def features_beside(self) -> bool:
        """Whether kept features of a frozen tower come beside the pixels."""
        return "features" in self.views

    @property
    def ahead(self) -> int:
        """Steps to the later observation that batches hold, 0 for none."""
        return self.offsets[-1]


def _now_or_later(offsets: tuple[int, ...]) -> bool:
    return offsets[:1] == (0,) and (len(offsets) == 1 or (len(offsets) == 2 and offsets[1] >= 1))


NOW: Final = Needs()
"""Every step, with its own observation."""

PAIRS: Final = Needs(offsets=(0, 1), require=True, rows=2)
"""Steps that have a successor, with both observations; statistics of a batch need two rows."""
