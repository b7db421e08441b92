"""The straight way between two states, painted: are the pictures on it those that the robot passed?

Between the states of two frames of an episode, nine states at even distances are painted with the same noise. Each
picture is held against the true frames between; where the states are laid out as time is, the number of the nearest one
rises along the way (Kendall's τ), through many of them. The control is the blend of the two end pictures, which shows
both at once and whose nearest frame is one of the ends: its τ is high as well, but it passes few frames.

Legend: P points of the way, M true frames, C cameras, S side.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray

from statevla.evaluators.state_pictures import Seen

POINTS = 9
APART = 40
"""Frames from one end to the other, at most: two seconds of LIBERO."""
LEAST = 8
"""Fewer frames say nothing of an order."""


class Way(NamedTuple):
    """What was painted between two frames. pictures: uint8 [3 P C S S 3]: true, evenly; painted; blended."""

    pictures: NDArray[np.uint8]
    order: dict[str, float]
    passed: dict[str, int]
    frames: int


def kendall(one: Int[np.ndarray, " P"], two: Int[np.ndarray, " P"]) -> float:
    """Kendall's τ-b: agreeing less disagreeing pairs over the geometric mean of the pairs that are not tied in each; 0
    where all of one are tied.
    """
    first, second = (np.sign(values[:, None] - values[None]) for values in (one, two))
    size = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / size) if size else 0.0


def ends(episode: NDArray[np.int64], most: int) -> list[tuple[int, int]]:
    """First and last row of a stretch in the middle of each of `most` episodes. episode: of each row, in order."""
    found = []
    numbers = np.unique(episode)
    for number in numbers[:: max(1, len(numbers) // most)][:most]:
        rows = np.flatnonzero(episode == number)
        apart = min(APART, len(rows) - 1)
        if apart >= LEAST:
            start = int(rows[0]) + (len(rows) - 1 - apart) // 2
            found.append((start, start + apart))
    return found


def way(
    seen: Seen,
    rows: tuple[int, int],
    code: Callable[[torch.Tensor], torch.Tensor],
    decode: Callable[[torch.Tensor], torch.Tensor],
) -> Way:
    """Between two rows of `seen`. code: states of rows. decode: uint8 [P C S S 3] of states, by the same noise."""
    first, last = rows
    true = seen.pixels[first : last + 1]
    share = torch.linspace(0, 1, POINTS)
    begin, end = code(torch.tensor([first, last]))
    along = share.view(-1, *[1] * begin.dim()).to(begin)
    painted = decode(begin + along * (end - begin)).cpu().numpy()
    mix = share.numpy().reshape(-1, *[1] * (true.ndim - 1))
    blend = (true[0] * (1 - mix) + true[-1] * mix).round().astype(np.uint8)
    number = np.arange(POINTS)
    nearest = {name: _nearest(true, pictures) for name, pictures in (("its state", painted), ("a blend", blend))}
    evenly = true[np.linspace(0, len(true) - 1, POINTS).round().astype(int)]
    return Way(
        np.stack([evenly, painted, blend]),
        {name: kendall(number, found) for name, found in nearest.items()},
        {name: len(np.unique(found)) for name, found in nearest.items()},
        len(true),
    )


def sheet(found: Way, camera: int) -> NDArray[np.uint8]:
    """uint8 [3 S, P S, 3]: true frames, painted ones and the blend below each other."""
    pictures = found.pictures[:, :, camera]
    return np.ascontiguousarray(np.concatenate([np.concatenate(list(row), axis=1) for row in pictures], axis=0))


def mean_order(ways: list[Way]) -> dict[str, dict[str, float]]:
    """By what painted: ``tau`` and ``passed``, frames that are the nearest of some point, means over the ways."""
    return {
        name: {
            "tau": float(np.mean([each.order[name] for each in ways])),
            "passed": float(np.mean([each.passed[name] for each in ways])),
        }
        for name in (ways[0].order if ways else ())
    }


def _nearest(true: UInt8[np.ndarray, "M C S S 3"], painted: UInt8[np.ndarray, "P C S S 3"]) -> NDArray[np.int64]:
    flat = true.reshape(len(true), -1).astype(np.float32)
    return np.array([((flat - row.reshape(-1)) ** 2).sum(axis=1).argmin() for row in painted.astype(np.float32)])
