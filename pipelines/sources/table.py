"""The formats of demonstrations, and which one a file is in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipelines.sources.libero import LIBERO_SOURCE
from pipelines.sources.source import Source
from stores.errors import SourceError, UsageError

SOURCES: Final[dict[str, Source]] = {"libero": LIBERO_SOURCE}
"""By name. Where a file could be in several, the first that recognizes it."""


def source_of(name: str) -> Source:
    """The format `name`. Raises UsageError naming those there are."""
    if name not in SOURCES:
        raise UsageError(f"--format {name}: expected one of {', '.join(SOURCES)}")
    return SOURCES[name]


def formats_by_suffix(suffix: str) -> list[str]:
    """Names of the formats whose files end so."""
    return [name for name, source in SOURCES.items() if source.suffix == suffix]


def recognize(paths: Sequence[Path]) -> str:
    """The format of the first of `paths` that one recognizes; else the first format for such names: it says why not.

    Opens files: call it in the child.
    """
    names = formats_by_suffix(paths[0].suffix)
    for path in paths:
        for name in names:
            try:
                if SOURCES[name].recognizes(path):
                    return name
            except SourceError:
                break
    return names[0]
