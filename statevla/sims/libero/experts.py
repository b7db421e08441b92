"""Which suites have a scripted expert.

An entry is a function ``(scene, pose, rng) -> Expert``. It is called once an episode, after the objects have settled,
inside the simulator's process; everything random comes from ``rng``.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from statevla.sims.libero.pick_place import Expert, PickPlace, Pose
from statevla.sims.libero.scene import Scene

ExpertFactory = Callable[[Scene, Pose, np.random.Generator], Expert]


def _into_basket(scene: Scene, pose: Pose, rng: np.random.Generator) -> Expert:
    return PickPlace(scene, "basket_1", rng)


EXPERTS: Final[Mapping[str, ExpertFactory]] = {"libero_object": _into_basket}
