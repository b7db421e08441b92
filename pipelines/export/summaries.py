"""Statistics as LeRobot keeps them: of every feature by episode, and of all episodes together.

Quantiles of all are the episodes' own, weighted by their rows, as LeRobot adds them up; the rest is exact.

Legend: T rows of an episode, D numbers of a feature, H, W rows and columns of a picture.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

QUANTILES: Final = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Summary = dict[str, NDArray[Any]]


def of_rows(values: NDArray[Any]) -> Summary:
    """Of a feature's rows [T, D]: [D] each, count [1]."""
    rows = values.astype(np.float64)
    found = {"min": rows.min(axis=0), "max": rows.max(axis=0), "mean": rows.mean(axis=0), "std": rows.std(axis=0)}
    quantiles = {name: np.quantile(rows, share, axis=0) for name, share in QUANTILES.items()}
    return {**found, "count": np.array([len(rows)]), **quantiles}


class Pictures:
    """Of a camera's frames as they come, by channel, in units of the brightest value: [3, 1, 1] each."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._frames = 0

    def add(self, frames: NDArray[np.uint8]) -> None:
        """More frames [T, H, W, 3]."""
        self._frames += len(frames)
        for channel in range(3):
            self._counts[channel] += np.bincount(frames[..., channel].ravel(), minlength=256)

    def summary(self) -> Summary:
        """What they were like."""
        level = np.arange(256) / 255.0
        share = self._counts / self._counts.sum(axis=1, keepdims=True)
        mean = share @ level
        spread = np.sqrt(np.maximum(share @ np.square(level) - np.square(mean), 0))
        reached = np.cumsum(share, axis=1)
        found = {
            "min": level[(self._counts > 0).argmax(axis=1)],
            "max": level[255 - (self._counts[:, ::-1] > 0).argmax(axis=1)],
            "mean": mean,
            "std": spread,
            **{name: level[(reached >= part - 1e-12).argmax(axis=1)] for name, part in QUANTILES.items()},
        }
        return {**{name: values[:, None, None] for name, values in found.items()}, "count": np.array([self._frames])}


class Together:
    """Summaries of episodes added up."""

    def __init__(self) -> None:
        self._parts: list[Summary] = []

    def add(self, summary: Summary) -> None:
        """One more episode's; a thousand of them are kept as one."""
        self._parts.append(summary)
        if len(self._parts) >= 1000:
            self._parts = [self.summary()]

    def summary(self) -> Summary:
        """Of all."""
        counts = np.array([part["count"][0] for part in self._parts])

        def stacked(name: str) -> NDArray[Any]:
            return np.stack([part[name] for part in self._parts])

        mean = np.average(stacked("mean"), axis=0, weights=counts)
        spread = np.average(np.square(stacked("std")) + np.square(stacked("mean") - mean), axis=0, weights=counts)
        return {
            "min": stacked("min").min(axis=0),
            "max": stacked("max").max(axis=0),
            "mean": mean,
            "std": np.sqrt(spread),
            "count": np.array([counts.sum()]),
            **{name: np.average(stacked(name), axis=0, weights=counts) for name in QUANTILES},
        }


def plain(summaries: Mapping[str, Summary]) -> dict[str, dict[str, Any]]:
    """JSON-ready form."""
    return {key: {name: values.tolist() for name, values in found.items()} for key, found in summaries.items()}
