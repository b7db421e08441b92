"""The formats of demonstrations, and which one a file is in."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from pipelines.sources import pulse
from pipelines.sources.lerobot.source import LEROBOT_SOURCE
from pipelines.sources.libero import LIBERO_SOURCE
from pipelines.sources.robomimic import ROBOMIMIC_SOURCE
from pipelines.sources.source import Source
from stores.errors import SourceError, UsageError

SOURCES: Final[dict[str, Source]] = {
    "libero": LIBERO_SOURCE,
    "robomimic": ROBOMIMIC_SOURCE,
    "lerobot": LEROBOT_SOURCE,
}
"""By name. Where a file could be in several, the first that recognizes it."""


def source_of(name: str) -> Source:
    """The format `name`. Raises UsageError naming those there are."""
    if name not in SOURCES:
        raise UsageError(f"--format {name}: expected one of {', '.join(SOURCES)}")
    return SOURCES[name]


def recognize(paths: Sequence[Path], names: Sequence[str], poison: Collection[int] = ()) -> str:
    """Of the formats `names`, that of the first of `paths` which one of them recognizes; else the first: it says why
    not. Opens files: call it in the child. poison: paths that must not be touched, counted from 1.
    """
    for position, path in enumerate(paths, 1):
        pulse.at(position)
        if position in poison:
            continue
        for name in names:
            try:
                if SOURCES[name].recognizes(path):
                    return name
            except SourceError:
                break
    return names[0]
