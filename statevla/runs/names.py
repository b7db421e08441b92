"""Short names of folders that stand side by side."""

from collections.abc import Sequence
from pathlib import Path


def apart(folders: Sequence[Path]) -> list[str]:
    """Of each path, from the first part in which they differ to the last one."""
    parts = [folder.resolve().parts for folder in folders]
    first = _shared(parts)
    last = min(_shared([each[::-1] for each in parts]), *(len(each) - first - 1 for each in parts))
    return ["/".join(each[first : len(each) - last]) for each in parts]


def _shared(parts: Sequence[tuple[str, ...]]) -> int:
    """How many parts all begin with."""
    return next((k for k, each in enumerate(zip(*parts, strict=False)) if len(set(each)) > 1), min(map(len, parts)))
