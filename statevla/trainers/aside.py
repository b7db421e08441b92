"""Going back to an earlier checkpoint: those of the future that is left are set aside, so that no name lies."""

import itertools
from pathlib import Path

from statevla.runs import layout
from statevla.runs.state import read_state
from stores.disk import durable
from stores.errors import StateVLAError


def set_aside_later(folder: Path, step: int) -> list[Path]:
    """Rename checkpoint_best and checkpoint_epoch_N of steps beyond `step`; where they are now. Nothing is deleted.

    checkpoint_latest stays: the next one takes its place. So does what cannot be read, of which no step is known.
    """
    moved = []
    for path in sorted(folder.glob("checkpoint_*")):
        if (
            path.name == layout.LATEST
            or "_before_" in path.name
            or not layout.is_checkpoint(path)
            or _step(path) <= step
        ):
            continue
        named = layout.set_aside_name(path.name, step)
        free = (named if number == 1 else f"{named}_{number}" for number in itertools.count(1))
        final = next(place for name in free if not (place := folder / name).exists())
        durable.rename(path, final)
        moved.append(final)
    return moved


def _step(path: Path) -> int:
    try:
        return read_state(path).step
    except StateVLAError:
        return 0
