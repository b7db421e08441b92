"""What a scripted expert may know that a policy may not: where every object is.

Legend: P points, 3 world coordinates [m], z up.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

POINTS_A_SIDE = 5


@runtime_checkable
class Scene(Protocol):
    """Privileged view of a scene. Tests implement it with boxes."""

    @property
    def movable(self) -> list[str]:
        """Names of the objects that can be moved."""

    @property
    def of_interest(self) -> list[str]:
        """Names that the task is about, in the task's order: first what to move, then where to."""

    def surface(self, name: str) -> NDArray[np.float64]:
        """Points ``[P, 3]`` that fill an object's collision shape."""

    def position(self, name: str) -> NDArray[np.float64]:
        """Origin ``[3]`` of an object's body."""


@dataclass(frozen=True)
class MujocoScene:
    """:class:`Scene` of a running robosuite simulation."""

    sim: Any
    movable: list[str]
    of_interest: list[str]

    def surface(self, name: str) -> NDArray[np.float64]:
        """Points ``[P, 3]`` filling the boxes that an object collides with, as they are now.

        Raises:
            ValueError: the object has no collision geometry.
        """
        model, data = self.sim.model, self.sim.data
        root = model.body_name2id(f"{name}_main")
        boxes = [
            box_points(data.geom_xpos[g], data.geom_xmat[g].reshape(3, 3), model.geom_size[g])
            for g in range(model.ngeom)
            if model.body_rootid[model.geom_bodyid[g]] == root and model.geom_contype[g]
        ]
        if not boxes:
            raise ValueError(f"object {name!r} has no collision geometry; an expert cannot plan around it")
        return np.concatenate(boxes)

    def position(self, name: str) -> NDArray[np.float64]:
        """Origin ``[3]`` of the object's body, as it is now."""
        return np.array(self.sim.data.get_body_xpos(f"{name}_main"))


def box_points(
    center: NDArray[np.float64], rotation: NDArray[np.float64], half_size: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A regular grid ``[POINTS_A_SIDE ** 3, 3]`` in a box, its corners included."""
    side = np.linspace(-1.0, 1.0, POINTS_A_SIDE)
    grid = np.stack(np.meshgrid(side, side, side, indexing="ij"), -1).reshape(-1, 3)
    return center + (grid * half_size) @ rotation.T
