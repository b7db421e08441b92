"""Other places for the things of a scene, so that a policy must look where they are.

The initial states of `libero_object` put a thing within millimetres of one place, so that demonstrations from them
teach where to reach, not what to look for: `statevla eval robustness` shows it (`swap`, `temp_*`). Only suites whose
instructions name no place may be scattered.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from statevla.sims.libero.scene import Scene
from stores.errors import UsageError

Vector = NDArray[np.float64]

SCATTERED: Final = ("libero_object",)
"""Suites whose things may stand anywhere."""
GAP = 0.03
"""Least room [m] between two things: a finger fits in."""
MARGIN = 0.03
"""[m] by which the new places may lie outside the old ones' rectangle."""
TRIES = 30
"""Places that are tried for a thing before all begin anew."""
ROUNDS = 1000


class Disc(NamedTuple):
    """What a thing covers of the floor: ``center [2]`` and radius [m]."""

    center: Vector
    radius: float


def check_scatter(suite: str, share: float) -> None:
    """Raises UsageError unless the suite's things may be scattered, in a share of attempts from 0 to 1."""
    if not 0 <= share <= 1:
        raise UsageError(f"expected scatter from 0 to 1, got {share}")
    if share and suite not in SCATTERED:
        raise UsageError(
            f"--scatter {share:g}: expected {' or '.join(SCATTERED)}, got {suite}, whose instructions say where a "
            "thing is or whose things stand in each other; leave --scatter out"
        )


def seed_of_places(seed: tuple[int, ...], share: float) -> tuple[int, ...] | None:
    """Of the places in an attempt with ``seed``; None where the things stand as the initial state has them. Of many
    attempts, ``share`` have one."""
    scattered = np.random.default_rng((*seed, 4)).random() < share
    return (*seed, 5) if scattered else None


def disc_of(scene: Scene, name: str) -> Disc:
    """The disc about a thing's bounding rectangle."""
    points = scene.surface(name)[:, :2]
    center = (points.min(axis=0) + points.max(axis=0)) / 2
    return Disc(center, float(np.linalg.norm(points - center, axis=1).max()))


def receptacles(scene: Scene) -> set[str]:
    """Movable things that others are put into or onto: they stay."""
    targets = [predicate[2] for predicate in scene.goals if len(predicate) > 2]
    return {name for name in scene.movable if any(target.startswith(name) for target in targets)}


def shifts(scene: Scene, rng: np.random.Generator) -> dict[str, Vector]:
    """How far ``[2]`` [m] each movable thing but the receptacles moves, so that all stand apart at places uniform in
    their old places' rectangle, larger by ``MARGIN``."""
    staying = receptacles(scene)
    fixed = [disc_of(scene, name) for name in [*scene.fixtures, *sorted(staying)]]
    moving = {name: disc_of(scene, name) for name in scene.movable if name not in staying}
    places = arrange(moving, fixed, rng.uniform)
    return {name: place - moving[name].center for name, place in places.items()}


def arrange(
    moving: Mapping[str, Disc], fixed: list[Disc], uniform: Callable[[Vector, Vector], Vector]
) -> dict[str, Vector]:
    """New centers ``[2]``, none nearer than ``GAP`` to another's or a fixed disc. uniform: draws between two corners.

    Raises:
        UsageError: there is no room.
    """
    centers = np.array([disc.center for disc in moving.values()])
    low, high = centers.min(axis=0) - MARGIN, centers.max(axis=0) + MARGIN
    for _ in range(ROUNDS):
        placed = list(fixed)
        for disc in moving.values():
            free = (place for _ in range(TRIES) if _is_free(place := uniform(low, high), disc.radius, placed))
            center = next(free, None)
            if center is None:
                break
            placed.append(Disc(center, disc.radius))
        else:
            return {name: disc.center for name, disc in zip(moving, placed[len(fixed) :], strict=True)}
    raise UsageError(f"--scatter: no room for {len(moving)} things between {low.round(2)} and {high.round(2)} [m]")


def _is_free(place: Vector, radius: float, placed: list[Disc]) -> bool:
    return all(np.linalg.norm(place - other.center) >= radius + other.radius + GAP for other in placed)
