"""The one place where an HDF5 frame or a simulator observation becomes a canonical observation.

Training and evaluation both pass through here, so a camera that is upside-down, swapped or rescaled in one of them
only is not possible.

Legend: T frames, C cameras (agentview, eye_in_hand), H height, W width.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.errors import ObsSpecMismatch, SourceError
from stores.schema import ACTION_DIM, CAMERAS, CONTROL_HZ, ROBOT_STATE_DIM

JOINTS: Final = 7
FINGERS: Final = 2

SIMULATOR_IMAGE_KEYS: Final = {"agentview": "agentview_image", "eye_in_hand": "robot0_eye_in_hand_image"}
HDF5_IMAGE_KEYS: Final = {"agentview": "agentview_rgb", "eye_in_hand": "eye_in_hand_rgb"}
IMAGE_CONVENTIONS: Final = ("opengl", "opencv", "upright")
"""OpenGL's first row is the bottom one; the others are upright as they are."""


@dataclass(frozen=True)
class ObsSpec:
    """What a policy was trained to see and do; travels in every store, checkpoint and bundle.

    ``image_size`` is the source's own (height, width) in pixels; models resize on their own device.
    """

    image_size: tuple[int, int]
    cameras: tuple[str, ...] = CAMERAS
    orientation: str = "upright"
    robot_state: str = "joint_pos[7] rad, gripper_qpos[2] m"
    robot_state_dim: int = ROBOT_STATE_DIM
    action: str = "OSC_POSE delta xyz[3], delta axis-angle[3] in [-1,1]; gripper -1 open, +1 close"
    action_dim: int = ACTION_DIM
    control_hz: int = CONTROL_HZ

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form (tuples as lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ObsSpec":
        """Inverse of `to_dict`. Raises ObsSpecMismatch on a missing or unknown field."""
        wanted = set(cls.__dataclass_fields__)
        if set(data) != wanted:
            raise ObsSpecMismatch(f"ObsSpec fields: expected {sorted(wanted)}, got {sorted(data)}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**fields)

    def require_same(self, other: "ObsSpec", here: str, there: str) -> None:
        """Raise ObsSpecMismatch naming the first field on which `here` (self) and `there` (other) disagree."""
        for name in self.__dataclass_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ObsSpecMismatch(
                    f"observation field {name!r}: {here} has {mine!r}, {there} has {theirs!r}; "
                    "a policy runs only on the observations that it was trained on"
                )


@dataclass(frozen=True)
class Observation:
    """One canonical observation.

    images: uint8 [C, H, W, 3] RGB, upright, cameras in `CAMERAS` order.
    robot_state: float32 [9], 7 joint positions [rad] then 2 finger positions [m].
    instruction: the task's text, as in the store's language cache.
    """

    images: NDArray[np.uint8]
    robot_state: NDArray[np.float32]
    instruction: str


def upright(images: NDArray[np.uint8], convention: str) -> NDArray[np.uint8]:
    """Turn frames [..., H, W, 3] as a person would see them. OpenGL frames are upside-down: flip rows only.

    A 180 degree turn, which much published code applies, would mirror the scene left to right.
    """
    if convention not in IMAGE_CONVENTIONS:
        raise SourceError(f"image convention: expected one of {IMAGE_CONVENTIONS}, got {convention!r}")
    return images[..., ::-1, :, :] if convention == "opengl" else images


def stack_cameras(frames: Mapping[str, NDArray[Any]], convention: str) -> NDArray[np.uint8]:
    """Frames by camera name, each [..., H, W, 3] -> upright uint8 [..., C, H, W, 3], contiguous.

    Raises SourceError when a camera is missing, is not uint8 RGB, or differs in shape from the first.
    """
    first = None
    for camera in CAMERAS:
        if camera not in frames:
            raise SourceError(f"camera {camera!r} is missing; got {sorted(frames)}")
        frame = frames[camera]
        if frame.dtype != np.uint8 or frame.ndim < 3 or frame.shape[-1] != 3:
            raise SourceError(f"camera {camera!r}: expected uint8 [..., H, W, 3], got {frame.dtype} {frame.shape}")
        first = frame.shape if first is None else first
        if frame.shape != first:
            raise SourceError(f"camera {camera!r}: shape {frame.shape} differs from {CAMERAS[0]!r}'s {first}")
    return np.ascontiguousarray(np.stack([upright(frames[c], convention) for c in CAMERAS], axis=-4))


def robot_state(joint_positions: NDArray[Any], gripper_positions: NDArray[Any]) -> NDArray[np.float32]:
    """Joint positions [..., 7] rad and finger positions [..., 2] m -> float32 [..., 9]. Raises SourceError."""
    if joint_positions.shape[-1:] != (JOINTS,):
        raise SourceError(f"joint positions: expected [..., {JOINTS}], got {joint_positions.shape}")
    if gripper_positions.shape != (*joint_positions.shape[:-1], FINGERS):
        raise SourceError(
            f"gripper positions: expected {(*joint_positions.shape[:-1], FINGERS)}, got {gripper_positions.shape}"
        )
    state = np.concatenate([joint_positions, gripper_positions], axis=-1).astype(np.float32)
    if not np.isfinite(state).all():
        raise SourceError("robot state: expected finite numbers, got NaN or infinity")
    return state


def from_simulator(observed: Mapping[str, Any], instruction: str, convention: str = "opengl") -> Observation:
    """A robosuite-style observation dict (LIBERO or tabletop) -> canonical observation.

    Raises ObsSpecMismatch when the simulator does not deliver a key that training used.
    """
    needed = [*SIMULATOR_IMAGE_KEYS.values(), "robot0_joint_pos", "robot0_gripper_qpos"]
    missing = [key for key in needed if key not in observed]
    if missing:
        raise ObsSpecMismatch(f"simulator observation lacks {missing}; it has {sorted(observed)}")
    frames = {camera: np.asarray(observed[key]) for camera, key in SIMULATOR_IMAGE_KEYS.items()}
    return Observation(
        images=stack_cameras(frames, convention),
        robot_state=robot_state(np.asarray(observed["robot0_joint_pos"]), np.asarray(observed["robot0_gripper_qpos"])),
        instruction=instruction,
    )


def spec_of(observation: Observation) -> ObsSpec:
    """The spec that an observation satisfies, to compare with a policy's."""
    height, width = observation.images.shape[1:3]
    return ObsSpec(image_size=(int(height), int(width)))
