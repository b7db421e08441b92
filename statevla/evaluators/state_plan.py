"""Going straight to a goal in the space of states: are the actions those that were demonstrated?

s_g is the state of a frame that is to be reached. The linear probe of K-step differences is asked for the actions of
the difference s_g - s_t, which is cut to the length that states move in K frames: the first part of the straight way. A
straight line through states passes through tables, so what counts is how the answer's correlation with the demonstrated
actions falls with the distance to the goal.

Legend: N frames, A continuous action dimensions, E episodes, K = `STEP`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from statevla.evaluators.state_measures import DRAWS, Floats, fit_probe
from statevla.evaluators.state_probes import Coded, enough, pairs

STEP: Final = 10
"""Frames whose actions are told, and by whose differences the probe is fitted."""
DISTANCES: Final = (10, 20, 40, 80)
"""Frames to the goal; then the episode's last one."""
END: Final = "the end"
FLAT: Final = 1e-12


@dataclass(frozen=True)
class Planned:
    """Pearson's r of planned and demonstrated actions, the mean over their dimensions; bounds of its 95 % interval by a
    bootstrap over episodes, None of a single one; pairs of frames.
    """

    r: float
    low: float | None
    high: float | None
    pairs: int


Plans = dict[str, Planned | None]
"""By distance to the goal; None where no episode is so long."""


def plan_all(train: Coded, val: Coded, seed: int) -> dict[str, Plans]:
    """Of every feature, fitted to `train` and measured on `val`."""
    return {name: plans(train, val, name, seed) for name in train.features}


def plans(train: Coded, val: Coded, name: str, seed: int) -> Plans:
    """Of one feature. All None where `train` has too few episodes."""
    distances = (*(str(distance) for distance in DISTANCES), END)
    fitted = pairs(train.features[name], train, STEP)
    if not enough(fitted):
        return dict.fromkeys(distances)
    told = fit_probe(fitted)
    length = float(np.median(np.linalg.norm(fitted[0], axis=1)))
    states = val.features[name].astype(np.float64)
    sums = np.cumsum(np.concatenate([np.zeros((1, val.action.shape[1])), val.action]), axis=0)
    found: Plans = {}
    for distance in distances:
        here, goal = _rows(val, None if distance == END else int(distance))
        if not len(here):
            found[distance] = None
            continue
        planned = told(clipped(states[goal] - states[here], length))
        shown = sums[here + STEP] - sums[here]
        r, low, high = correlation(planned, shown, val.episode[here], seed)
        found[distance] = Planned(r, low, high, len(here))
    return found


def clipped(differences: Float[np.ndarray, "N F"], length: float) -> Floats:
    """Those that are longer cut to `length`, their direction kept."""
    sizes = np.linalg.norm(differences, axis=1, keepdims=True)
    return np.asarray(differences * np.minimum(1, length / np.maximum(sizes, FLAT)))


def correlation(
    planned: Float[np.ndarray, "N A"], shown: Float[np.ndarray, "N A"], episode: Int[np.ndarray, " N"], seed: int
) -> tuple[float, float | None, float | None]:
    """Mean over dimensions of Pearson's r, and the bounds that hold 95 % when as many episodes are drawn with
    replacement. A dimension that never changes counts as 0.
    """
    _, number = np.unique(episode, return_inverse=True)
    count = int(number.max()) + 1
    parts = np.stack([np.ones_like(shown), planned, shown, planned**2, shown**2, planned * shown])
    sums = np.zeros((count, *parts[:, 0].shape))
    np.add.at(sums, number, parts.transpose(1, 0, 2))
    whole = float(_pearson(sums.sum(axis=0)).mean())
    if count < 2:
        return whole, None, None
    drawn = np.random.default_rng(seed).integers(0, count, (DRAWS, count))
    spread = [float(_pearson(sums[rows].sum(axis=0)).mean()) for rows in drawn]
    low, high = np.percentile(spread, [2.5, 97.5])
    return whole, float(low), float(high)


def _pearson(sums: Float[np.ndarray, "6 A"]) -> Floats:
    rows, x, y, xx, yy, xy = sums
    spread = np.sqrt(np.maximum(xx - x * x / rows, 0) * np.maximum(yy - y * y / rows, 0))
    return np.where(spread > FLAT, (xy - x * y / rows) / np.maximum(spread, FLAT), 0.0)


def _rows(coded: Coded, distance: int | None) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """(frame, goal's frame) of one episode each, so far apart; None: the goal is the last frame."""
    found = list(_rows_of_episodes(coded, distance))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    here, goal = (np.concatenate(side) for side in zip(*found, strict=True))
    return here, goal


def _rows_of_episodes(
    coded: Coded, distance: int | None
) -> Iterator[tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]]:
    for number in np.unique(coded.episode):
        rows = np.flatnonzero(coded.episode == number)
        here = rows[: max(0, len(rows) - (STEP if distance is None else distance))]
        if len(here):
            yield here, np.full_like(here, rows[-1]) if distance is None else here + distance
