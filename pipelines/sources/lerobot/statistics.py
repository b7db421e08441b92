"""``meta/stats.json`` held against the data: statistics that were not made anew after an edit or a merge are common.

This toolkit computes its own (`statevla stats`), so what differs is named, and changes nothing.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.lerobot.metadata import STATS, read_json
from stores.errors import SourceError

SPREAD: Final = 0.01
"""Share of a dimension's spread that mean and standard deviation may be off: they were made in float32, and merged."""
EXACT: Final = 1e-5


class Moments:
    """Count, minimum, maximum, mean and standard deviation of columns that come in pieces, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[tuple[Any, ...]] = []

    def add(self, values: NDArray[Any]) -> None:
        """More rows [N, D]."""
        if not len(values):
            return
        mean = values.mean(axis=0, dtype=np.float64)
        squares = np.square(values.astype(np.float64) - mean).sum(axis=0)
        self.count += len(values)
        self._parts.append((np.float64(len(values)), values.min(axis=0), values.max(axis=0), mean, squares))

    def told(self) -> dict[str, NDArray[np.float64]]:
        """By the names of ``stats.json``; [D] each. Of no rows there is none."""
        counts = np.array([part[0] for part in self._parts])[:, None]
        low, high, means, squares = (np.stack([part[n] for part in self._parts]) for n in range(1, 5))
        mean = (counts * means).sum(axis=0) / counts.sum()
        spread = (squares + counts * np.square(means - mean)).sum(axis=0) / counts.sum()
        return {"min": low.min(axis=0), "max": high.max(axis=0), "mean": mean, "std": np.sqrt(spread)}


def differences(root: Path, found: Mapping[str, Moments], names: Mapping[str, Iterable[str]]) -> list[str]:
    """What of ``meta/stats.json`` is not what the data give, feature by feature, the first dimension that differs."""
    if not (root / STATS).exists():
        return [f"{STATS} is missing; statistics are made by `statevla stats`"]
    try:
        told = read_json(root, STATS)
    except SourceError as error:
        return [f"{error}; statistics are made by `statevla stats`"]
    notes = []
    for key, moments in found.items():
        said = told.get(key) if isinstance(told, dict) else None
        if not isinstance(said, dict):
            notes.append(f"{STATS} says nothing of {key}")
        elif moments.count and (wrong := _differs(said, moments, list(names[key]))):
            notes.append(f"{STATS}, {key}, {wrong}: not made from these rows; `statevla stats` makes its own")
    return notes


def _differs(said: Mapping[str, Any], moments: Moments, names: list[str]) -> str | None:
    if "count" in said:
        try:
            count = np.ravel(np.asarray(said["count"], np.float64))
        except (TypeError, ValueError):
            return f"count: expected a number, got {said['count']!r:.60}"
        if len(count) != 1 or count[0] != moments.count:
            return f"count: it says {', '.join(f'{n:.0f}' for n in count[:3])}, the data have {moments.count} rows"
    have = moments.told()
    reach = np.maximum(np.abs(have["min"]), np.abs(have["max"]))
    for name in ("min", "max", "mean", "std"):
        if name not in said:
            continue
        try:
            values = np.ravel(np.asarray(said[name], np.float64))
        except (TypeError, ValueError):
            return f"{name}: expected numbers, got {said[name]!r:.60}"
        if len(values) != len(have[name]):
            return f"{name}: it has {len(values)} numbers, expected {len(have[name])}"
        allowed = EXACT * reach + 1e-12 + (SPREAD * have["std"] if name in ("mean", "std") else 0)
        wrong = np.flatnonzero(~(np.abs(values - have[name]) <= allowed))
        if len(wrong):
            at = int(wrong[0])
            label = f" ({names[at]})" if at < len(names) else ""
            return f"{name} of dimension {at}{label}: it says {values[at]:.6g}, the data give {have[name][at]:.6g}"
    return None
