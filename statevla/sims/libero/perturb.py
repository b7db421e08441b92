"""Other eyes on the same world: camera, light and noise, through the simulator's model.

Nothing that moves is changed, so a demonstration's actions still achieve its task; what a policy sees is not what it
was trained on. Legend: H height, W width.
"""

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from statevla.sims.libero import rotations
from stores.errors import UsageError

CAMERA: Final = "agentview"
"""The camera that is moved; the other one is fixed to the hand."""
BRIGHTEST = 255


@dataclass(frozen=True)
class Perturbation:
    """What is changed, for one episode; the default changes nothing.

    camera_shift: [m] that the scene's camera is moved, in a direction drawn from ``seed``.
    camera_turn: [degrees] that it is turned, about an axis drawn from ``seed``.
    light: factor of all lights' brightness, at least 0.
    light_shift: [m] that lamps are moved sideways, in a direction drawn from ``seed``.
    noise: standard deviation, of 255, of Gaussian noise on every pixel of both cameras.

    Raises:
        UsageError: a number is negative or not finite.
    """

    camera_shift: float = 0.0
    camera_turn: float = 0.0
    light: float = 1.0
    light_shift: float = 0.0
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not np.isfinite(value) or value < 0:
                raise UsageError(f"perturbation: {field.name} is a number of at least 0, got {value}")


NONE: Final = Perturbation()


class Eyes:
    """A model's cameras and lamps as they were, and as a perturbation wants them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._camera = model.camera_name2id(CAMERA)
        self._arrays: dict[str, NDArray[Any]] = {
            name: np.array(getattr(model, name))
            for name in ("cam_pos", "cam_quat", "light_pos", "light_ambient", "light_diffuse", "light_specular")
        }
        head = model.vis.headlight
        self._head = {name: np.array(getattr(head, name)) for name in ("ambient", "diffuse", "specular")}
        self._perturbation = NONE

    def take(self, perturbation: Perturbation) -> None:
        """Puts everything back, then changes what ``perturbation`` says."""
        self._perturbation = perturbation
        model = self._model
        for name, was in self._arrays.items():
            getattr(model, name)[:] = was
        for name, was in self._head.items():
            getattr(model.vis.headlight, name)[:] = was * perturbation.light
        rng = np.random.default_rng([perturbation.seed, 0])
        away, axis, lamps = _direction(rng), _direction(rng), rng.uniform(0, 2 * np.pi)
        model.cam_pos[self._camera] += perturbation.camera_shift * away
        if perturbation.camera_turn:
            turn = rotations.quaternion_of_axis_angle(axis * np.deg2rad(perturbation.camera_turn))
            model.cam_quat[self._camera] = rotations.quaternion_product(turn, model.cam_quat[self._camera])
        for name in ("light_ambient", "light_diffuse", "light_specular"):
            getattr(model, name)[:] *= perturbation.light
        model.light_pos[:, :2] += perturbation.light_shift * np.array([np.cos(lamps), np.sin(lamps)])

    def spoil(self, image: NDArray[np.uint8], camera: int, time: float) -> NDArray[np.uint8]:
        """``image [H, W, 3]`` with this episode's noise: the same at the same moment, however often somebody looks.

        time: of the simulation [s].
        """
        if not self._perturbation.noise:
            return image
        rng = np.random.default_rng([self._perturbation.seed, 1 + camera, round(1e4 * time)])
        noisy = image + rng.normal(0.0, self._perturbation.noise, image.shape)
        return np.clip(np.rint(noisy), 0, BRIGHTEST).astype(np.uint8)


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    vector = rng.normal(size=3)
    return np.asarray(vector / np.linalg.norm(vector))
