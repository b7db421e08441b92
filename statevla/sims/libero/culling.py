"""Frustum culling: what a camera cannot see is not drawn. The same pictures, in 0.73 to 0.86 of the time.

Software rendering of LIBERO's scenes is bound to the corners of some 300,000 triangles, and the hand's camera sees a
third of them. MuJoCo draws all, and once more for a mirror (the stove's plate) that may be out of view.

Legend: n points.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

HIDDEN: Final = 5
"""A group of geoms that robosuite's pictures leave out."""

CORNERS: Final = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))

MARGIN: Final = 1e-3
"""[m] by which things must be out of view: OpenGL rounds to float32."""


class Culling:
    """Hides, while a camera draws, the geoms whose bounding spheres lie outside of its pyramid of view.

    ``simulation`` is robosuite's, with an offscreen context; pictures are square.
    """

    def __init__(self, simulation: Any) -> None:
        import mujoco

        self._simulation = simulation
        model = simulation.model
        self._groups = np.array(model.geom_group)
        self._reach = np.where(model.geom_rbound > 0, model.geom_rbound, np.inf)  # a plane's sphere is 0
        reflectance = np.append(model.mat_reflectance, 0.0)  # -1, no material, is the last
        self._boxes = model.geom_type == int(mujoco.mjtGeom.mjGEOM_BOX)
        planes = model.geom_type == int(mujoco.mjtGeom.mjGEOM_PLANE)
        self._mirrors = (reflectance[model.geom_matid] > 0) & (self._boxes | planes)  # nothing else mirrors in MuJoCo
        self._reflection = int(mujoco.mjtRndFlag.mjRND_REFLECTION)

    @contextlib.contextmanager
    def only_seen_by(self, camera: str) -> Iterator[None]:
        """Within it, what ``camera`` cannot see is hidden. Where it sees a mirror, nothing is: a mirror shows what
        stands elsewhere."""
        shown = self._simulation._render_context_offscreen
        if shown.vopt.geomgroup[HIDDEN] or self._sees_a_mirror(camera, shown.vopt.geomgroup[self._groups] > 0):
            yield
            return
        groups, flags = self._simulation.model.geom_group, shown.scn.flags
        reflection = flags[self._reflection]
        near = self._outside(camera, self._simulation.data.geom_xpos).max(axis=-1) < self._reach
        try:
            groups[:] = np.where(near, self._groups, HIDDEN)
            flags[self._reflection] = 0
            yield
        finally:
            groups[:] = self._groups
            flags[self._reflection] = reflection

    def _sees_a_mirror(self, camera: str, shown: NDArray[np.bool_]) -> bool:
        model, data = self._simulation.model, self._simulation.data
        for mirror in np.flatnonzero(self._mirrors & shown):
            corners = (
                data.geom_xpos[mirror] + (model.geom_size[mirror] * CORNERS) @ data.geom_xmat[mirror].reshape(3, 3).T
            )
            beyond_a_side = (self._outside(camera, corners).min(axis=0) > 0).any()
            if not (self._boxes[mirror] and beyond_a_side):  # a plane has no end
                return True
        return False

    def _outside(self, camera: str, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[n, 5]``, m: how far ``[n, 3]`` points are beyond each side of the pyramid of view, and behind its tip."""
        model, data = self._simulation.model, self._simulation.data
        number = model.camera_name2id(camera)
        half = np.deg2rad(model.cam_fovy[number]) / 2
        right, up, back = ((points - data.cam_xpos[number]) @ data.cam_xmat[number].reshape(3, 3)).T
        beyond = [side * np.cos(half) + back * np.sin(half) for side in (right, -right, up, -up)]
        return np.stack([*beyond, back], axis=-1) - MARGIN  # cameras look along -z
