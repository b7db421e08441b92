"""Measures of predicted action chunks against demonstrated ones, on plain arrays.

Everything is float64; chunk steps past an episode's end (`is_pad`) count nowhere.

Legend: N frames, K chunk, D action dimensions.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray


def mse_by_dimension(
    predicted: Float[Array, "N K D"], target: Float[Array, "N K D"], is_pad: Bool[Array, "N K"]
) -> Float[Array, " D"]:
    """Mean squared error of each action dimension over all valid chunk steps."""
    error = predicted.astype(np.float64) - target.astype(np.float64)
    return np.asarray((error[~is_pad] ** 2).mean(axis=0))


def mse_by_horizon(
    predicted: Float[Array, "N K D"], target: Float[Array, "N K D"], is_pad: Bool[Array, "N K"]
) -> list[float | None]:
    """Mean squared error of each chunk step over frames and dimensions; None where every frame is padded."""
    return [
        float(mse_by_dimension(predicted[:, k : k + 1], target[:, k : k + 1], is_pad[:, k : k + 1]).mean())
        if not is_pad[:, k].all()
        else None
        for k in range(is_pad.shape[1])
    ]


def gripper_accuracy(closes: Bool[Array, "N K"], should_close: Bool[Array, "N K"], is_pad: Bool[Array, "N K"]) -> float:
    """Share of valid chunk steps with the right command."""
    return float((closes == should_close)[~is_pad].mean())


def gripper_transition_f1(
    closes: Bool[Array, "N K"], should_close: Bool[Array, "N K"], is_pad: Bool[Array, "N K"]
) -> float | None:
    """F1 of the changes of command between neighbouring valid steps of a chunk; None when neither has any.

    A change counts as found only at the exact step and in the right direction.
    """
    valid = ~is_pad[:, 1:]  # padding ends a chunk: a valid step has a valid step before it
    changed = (closes[:, 1:] != closes[:, :-1]) & valid
    wanted = (should_close[:, 1:] != should_close[:, :-1]) & valid
    if not changed.any() and not wanted.any():
        return None
    found = changed & wanted & (closes[:, 1:] == should_close[:, 1:])
    return float(2 * found.sum() / (changed.sum() + wanted.sum()))


def calibration_error(
    probability: Float[Array, "N K"], should_close: Bool[Array, "N K"], is_pad: Bool[Array, "N K"], bins: int = 10
) -> float:
    """Expected calibration error of the probability to close, ``bins`` equal bins of confidence on [0.5, 1].

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.
    """
    p, closed = probability[~is_pad].astype(np.float64), should_close[~is_pad]
    confidence = np.maximum(p, 1 - p)
    right = (p > 0.5) == closed
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(np.int64), bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / p.size)


def jerk(chunks: Float[Array, "N K D"], is_pad: Bool[Array, "N K"]) -> float | None:
    """RMS second difference along valid chunk steps; None when no chunk has three valid steps."""
    second = np.diff(chunks.astype(np.float64), n=2, axis=1)
    valid = second[~is_pad[:, 2:]]
    return float(np.sqrt((valid**2).mean())) if valid.size else None


def seam(
    chunks: Float[Array, "N K D"], is_pad: Bool[Array, "N K"], episode: Int[Array, " N"], frame: Int[Array, " N"]
) -> float | None:
    """RMS step from the last action of a chunk to the first one of the chunk that begins K frames later.

    None when no episode is longer than a chunk.
    """
    length = chunks.shape[1]
    row = {(int(e), int(f)): number for number, (e, f) in enumerate(zip(episode, frame, strict=True))}
    steps = [
        chunks[row[e, f + length], 0].astype(np.float64) - chunks[number, -1].astype(np.float64)
        for (e, f), number in row.items()
        if (e, f + length) in row and not is_pad[number, -1]
    ]
    return float(np.sqrt((np.asarray(steps) ** 2).mean())) if steps else None
