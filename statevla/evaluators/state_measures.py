"""Measures of states on plain arrays: ridge probes, PSNR and SSIM, how straight states move. Everything is float64.

Legend: N rows, F features, O outputs, H height, W width.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

LAMBDAS: Final = (1e-2, 1e0, 1e2, 1e4)
FOLDS: Final = 5
DRAWS: Final = 1000
"""Of the bootstrap."""
Floats = NDArray[np.float64]


def ridge(x: Float[np.ndarray, "N F"], y: Float[np.ndarray, "N O"], penalty: float) -> tuple[Floats, Floats]:
    """Weights [F, O] and offset [O] of least squares + penalty · ‖weights‖², the offset without a penalty."""
    mean = x.mean(axis=0)
    weights, offset = _solve(_sums(x - mean, y), penalty)
    return weights, offset - mean @ weights


@dataclass(frozen=True)
class Probe:
    """Of a linear probe on held-out rows: R², bounds of its 95 % interval (None of a single episode), and MSE."""

    r2: float
    low: float | None
    high: float | None
    mse: float


@dataclass(frozen=True)
class Linear:
    """Standardizes features, then weights [F, O] and offset [O]; mean: of the targets that it was fitted to."""

    shift: Floats
    scale: Floats
    weights: Floats
    offset: Floats
    mean: Floats

    def __call__(self, x: Float[np.ndarray, "N F"]) -> Floats:
        return np.asarray((x - self.shift) / self.scale @ self.weights + self.offset)


Rows = tuple[Float[np.ndarray, "N F"], Float[np.ndarray, "N O"], Int[np.ndarray, " N"]]
"""Features, targets, episode of each row."""
Held = tuple[Float[np.ndarray, "M F"], Float[np.ndarray, "M O"], Int[np.ndarray, " M"]]
"""Likewise, other rows."""


def fit_probe(train: Rows) -> Linear:
    """A ridge on standardized features; the penalty is chosen by 5-fold cross-validation over whole episodes."""
    x, y, episode = train
    shift, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-8)
    x, fold = (x - shift) / scale, episode % FOLDS
    folds = {number: _sums(x[fold == number], y[fold == number]) for number in np.unique(fold)}
    total = tuple(sum(each[part] for each in folds.values()) for part in range(5))
    errors = np.zeros(len(LAMBDAS))
    for number, own in folds.items():
        rest = tuple(whole - part for whole, part in zip(total, own, strict=True))
        for place, penalty in enumerate(LAMBDAS):
            weights, offset = _solve(rest, penalty)
            errors[place] += float(((x[fold == number] @ weights + offset - y[fold == number]) ** 2).sum())
    weights, offset = _solve(total, LAMBDAS[int(np.argmin(errors))])
    return Linear(shift, scale, weights, offset, y.mean(axis=0))


def probe(train: Rows, test: Held, seed: int = 0) -> Probe:
    """`fit_probe` of `train`, measured on `test`.

    R² is 1 - Σ(y - ŷ)² / Σ(y - mean of the training targets)², over all outputs; its interval is a bootstrap's over the
    episodes of `test`.
    """
    told = fit_probe(train)
    x, y, episode = test
    wrong, plain = ((y - told(x)) ** 2).sum(axis=1), ((y - told.mean) ** 2).sum(axis=1)
    low, high = bootstrap(wrong, plain, episode, seed)
    return Probe(float(1 - wrong.sum() / plain.sum()), low, high, float(wrong.mean() / y.shape[1]))


def bootstrap(
    wrong: Float[np.ndarray, " M"], plain: Float[np.ndarray, " M"], episode: Int[np.ndarray, " M"], seed: int
) -> tuple[float, float] | tuple[None, None]:
    """Bounds that hold 95 % of 1 - Σ wrong / Σ plain when as many episodes are drawn with replacement."""
    _, number = np.unique(episode, return_inverse=True)
    count = int(number.max()) + 1
    if count < 2:
        return None, None
    drawn = np.random.default_rng(seed).integers(0, count, (DRAWS, count))
    top, bottom = (np.bincount(number, weights=values)[drawn].sum(axis=1) for values in (wrong, plain))
    low, high = np.percentile(1 - top / np.maximum(bottom, 1e-12), [2.5, 97.5])
    return float(low), float(high)


Sums = tuple[Any, ...]
"""Rows, Σx, Σy, Σxxᵀ, Σxyᵀ: of several folds together they are added."""


def _sums(x: Floats, y: Floats) -> Sums:
    return len(x), x.sum(axis=0), y.sum(axis=0), x.T @ x, x.T @ y


def _solve(sums: Sums, penalty: float) -> tuple[Floats, Floats]:
    rows, x, y, xx, xy = sums
    weights = np.linalg.solve(xx - np.outer(x, x) / rows + penalty * np.eye(len(x)), xy - np.outer(x, y) / rows)
    return weights, y / rows - x / rows @ weights


def principal(x: Float[np.ndarray, "N F"], count: int) -> tuple[Floats, Floats]:
    """Mean and the first `count` principal directions [F, count]."""
    mean = x.mean(axis=0)
    values, vectors = np.linalg.eigh((x - mean).T @ (x - mean))
    return mean, vectors[:, np.argsort(values)[::-1][:count]]


def psnr(seen: Float[np.ndarray, "*rows"], told: Float[np.ndarray, "*rows"], where: Bool[np.ndarray, "*rows"]) -> float:
    """Peak signal-to-noise ratio in dB, of values in [0, 1], over the places `where`."""
    return float(-10 * np.log10(max(float(((seen - told)[where] ** 2).mean()), 1e-12)))


def ssim(a: Float[np.ndarray, "H W"], b: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "_ _"]:
    """Structural similarity of two grey pictures in [0, 1] in every window of 11 pixels that lies within them, at the
    place of its middle, from 5 pixels off each edge on: Gaussian weights, σ 1.5 (Wang et al. 2004).
    """
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window /= window.sum()

    def blurred(picture: Floats) -> Floats:
        rows = np.apply_along_axis(np.convolve, 0, picture, window, "valid")
        return np.asarray(np.apply_along_axis(np.convolve, 1, rows, window, "valid"))

    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b, both = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2, blurred(a * b) - mean_a * mean_b
    top, bottom = (2 * mean_a * mean_b + c1) * (2 * both + c2), (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return np.asarray(top / bottom)


def bend(states: Float[np.ndarray, "N F"], horizon: int) -> Floats:
    """‖s_{t+h/2} - (s_t + s_{t+h})/2‖ / ‖s_{t+h} - s_t‖ along an episode; 0 is a straight, even way."""
    first, middle, last = states[:-horizon], states[horizon // 2 : -horizon + horizon // 2], states[horizon:]
    away = np.linalg.norm(last - first, axis=1)
    return np.asarray(np.linalg.norm(middle - (first + last) / 2, axis=1) / np.maximum(away, 1e-8))
