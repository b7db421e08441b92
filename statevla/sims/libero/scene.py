"""What a scripted expert may know that a policy may not: where everything is, at every moment.

Legend: P points, 3 world coordinates [m], z up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from statevla.sims.libero.suites import is_ground

Points = NDArray[np.float64]

SPACING = 0.012
"""Most [m] between neighbouring points of a shape: no finger fits between."""
FEWEST, MOST = 3, 40
"""Points along one side of a shape."""


class Site(NamedTuple):
    """A named place of the model: ``position [3]``, ``rotation [3, 3]``, ``half_size [3]`` in its own axes [m]."""

    position: Points
    rotation: Points
    half_size: Points


@runtime_checkable
class Scene(Protocol):
    """Privileged, live view of a scene. Tests implement it with boxes."""

    @property
    def movable(self) -> Sequence[str]:
        """Names of the objects that can be moved."""

    @property
    def fixtures(self) -> Sequence[str]:
        """Names of what stands still: cabinets, stoves, racks; the table is not one of them."""

    @property
    def of_interest(self) -> Sequence[str]:
        """Names that the task is about, in the task's order: first what to move, then where to."""

    @property
    def goals(self) -> tuple[tuple[str, ...], ...]:
        """The task's goal, a predicate each, such as ``("on", "akita_black_bowl_1", "plate_1")``."""

    @property
    def base(self) -> Points:
        """Origin ``[3]`` of the robot's base."""

    def surface(self, name: str) -> Points:
        """Points ``[P, 3]`` that fill a thing's collision shape, all its parts included."""

    def parts(self, body: str) -> list[Points]:
        """Points of each collision shape that belongs to this one body of the model, not to the bodies below it."""

    def position(self, name: str) -> Points:
        """Origin ``[3]`` of a thing's root body."""

    def rotation(self, name: str) -> Points:
        """Rotation ``[3, 3]`` of a thing's root body."""

    def site(self, name: str) -> Site:
        """A named place, such as a drawer's inside or a stove's burner."""

    def joint(self, name: str) -> float:
        """Position of a one-dimensional joint [m] or [rad]."""


@dataclass(frozen=True)
class MujocoScene:
    """:class:`Scene` of a running robosuite simulation.

    bodies: name of a movable thing or fixture -> name of its root body.
    """

    sim: Any
    movable: Sequence[str]
    fixtures: Sequence[str]
    of_interest: Sequence[str]
    goals: tuple[tuple[str, ...], ...]
    bodies: Mapping[str, str]
    _below: dict[str, list[int]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, environment: Any) -> "MujocoScene":
        """The scene of a LIBERO problem (the environment inside ``ControlEnv``)."""
        movable = list(environment.objects_dict)
        fixtures = [name for name in environment.fixtures_dict if not is_ground(name)]
        bodies = {name: environment.get_object(name).root_body for name in [*movable, *fixtures]}
        goals = tuple(tuple(predicate) for predicate in environment.parsed_problem["goal_state"])
        return cls(environment.sim, movable, fixtures, list(environment.obj_of_interest), goals, bodies)

    @property
    def base(self) -> Points:
        """See :class:`Scene`."""
        return np.array(self.sim.data.get_body_xpos("robot0_base"))

    def surface(self, name: str) -> Points:
        """See :class:`Scene`.

        Raises:
            ValueError: the object has no collision geometry.
        """
        if name not in self._below:
            self._below[name] = self._collision_geoms_below(self.bodies[name])
        if not self._below[name]:
            raise ValueError(f"object {name!r} has no collision geometry; an expert cannot plan around it")
        return np.concatenate([self._geom_points(geom) for geom in self._below[name]])

    def parts(self, body: str) -> list[Points]:
        """See :class:`Scene`."""
        model = self.sim.model
        root = model.body_name2id(body)
        geoms = [g for g in range(model.ngeom) if model.geom_bodyid[g] == root and _collides(model, g)]
        return [self._geom_points(geom) for geom in geoms]

    def position(self, name: str) -> Points:
        """See :class:`Scene`."""
        return np.array(self.sim.data.get_body_xpos(self.bodies[name]))

    def rotation(self, name: str) -> Points:
        """See :class:`Scene`."""
        return np.array(self.sim.data.get_body_xmat(self.bodies[name])).reshape(3, 3)

    def site(self, name: str) -> Site:
        """See :class:`Scene`."""
        model, data = self.sim.model, self.sim.data
        index = model.site_name2id(name)
        return Site(
            np.array(data.site_xpos[index]),
            np.array(data.site_xmat[index]).reshape(3, 3),
            np.array(model.site_size[index]),
        )

    def joint(self, name: str) -> float:
        """See :class:`Scene`."""
        return float(self.sim.data.get_joint_qpos(name))

    def _collision_geoms_below(self, body: str) -> list[int]:
        model = self.sim.model
        root = model.body_name2id(body)
        found = []
        for geom in range(model.ngeom):
            if not _collides(model, geom):
                continue
            owner = model.geom_bodyid[geom]
            while owner not in (0, root):
                owner = model.body_parentid[owner]
            if owner == root:
                found.append(geom)
        return found

    def _geom_points(self, geom: int) -> Points:
        model, data = self.sim.model, self.sim.data
        half = half_size(int(model.geom_type[geom]), np.array(model.geom_size[geom]), float(model.geom_rbound[geom]))
        return box_points(np.array(data.geom_xpos[geom]), np.array(data.geom_xmat[geom]).reshape(3, 3), half)


def _collides(model: Any, geom: int) -> bool:
    return bool(model.geom_contype[geom] or model.geom_conaffinity[geom])


SPHERE, CAPSULE, CYLINDER, MESH = 2, 3, 5, 7  # MuJoCo's mjtGeom
MESH_SHARE = 0.6  # of its bounding sphere's radius that a mesh is taken to fill


def half_size(kind: int, size: Points, bound: float) -> Points:
    """Half sides ``[3]`` of the box that stands for a shape. kind: MuJoCo's ``mjtGeom``; bound: radius around it."""
    if kind == SPHERE:
        return np.full(3, size[0])
    if kind in (CAPSULE, CYLINDER):
        return np.array([size[0], size[0], size[1]])
    if kind == MESH:
        return np.full(3, MESH_SHARE * bound)
    return size


def box_points(center: Points, rotation: Points, half: Points) -> Points:
    """A regular grid in a box, its corners included, neighbours at most ``SPACING`` apart."""
    counts = np.clip((2 * half / SPACING).astype(int) + 2, FEWEST, MOST)
    axes = [np.linspace(-1.0, 1.0, count) for count in counts]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    return center + (grid * half) @ rotation.T
