"""The one place where an HDF5 frame or a simulator observation becomes a canonical observation.

Training and evaluation both pass through here, so a camera that is upside-down, swapped or rescaled in one of them
only is not possible.

What is canonical is an `ObsSpec` (`stores.spec`, because stores need it too); LIBERO's is the default.

Legend: T frames, H height, W width.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from stores.errors import ObsSpecMismatch, SourceError, UsageError
from stores.spec import LIBERO as LIBERO
from stores.spec import ObsSpec as ObsSpec
from stores.spec import libero_spec as libero_spec

JOINTS: Final = 7
FINGERS: Final = 2

SIMULATOR_IMAGE_KEYS: Final = {"agentview": "agentview_image", "eye_in_hand": "robot0_eye_in_hand_image"}
HDF5_IMAGE_KEYS: Final = {"agentview": "agentview_rgb", "eye_in_hand": "eye_in_hand_rgb"}
IMAGE_CONVENTIONS: Final = ("opengl", "opencv", "upright")
"""OpenGL's first row is the bottom one; the others are upright as they are."""


@dataclass(frozen=True)
class Observation:
    """One canonical observation.

    images: uint8 [H, W, 3] RGB, upright, one a camera in the spec's order. robot_state: float32, the spec's fields end
    to end (LIBERO: 7 joint positions [rad] then 2 finger positions [m]).
    instruction: the task's text, as in the store's language cache.
    """

    images: tuple[NDArray[np.uint8], ...]
    robot_state: NDArray[np.float32]
    instruction: str


def upright(images: NDArray[np.uint8], convention: str) -> NDArray[np.uint8]:
    """Turn frames [..., H, W, 3] as a person would see them. OpenGL frames are upside-down: flip rows only.

    A 180 degree turn, which much published code applies, would mirror the scene left to right.
    """
    if convention not in IMAGE_CONVENTIONS:
        raise SourceError(f"image convention: expected one of {IMAGE_CONVENTIONS}, got {convention!r}")
    return images[..., ::-1, :, :] if convention == "opengl" else images


def upright_cameras(frames: Mapping[str, NDArray[Any]], convention: str) -> tuple[NDArray[np.uint8], ...]:
    """Frames by LIBERO's camera names, each [..., H, W, 3] -> upright uint8 [..., H, W, 3] in order, contiguous.

    Raises SourceError when a camera is missing or is not uint8 RGB.
    """
    found = []
    for camera in LIBERO.camera_names:
        if camera not in frames:
            raise SourceError(f"camera {camera!r} is missing; got {sorted(frames)}")
        frame = frames[camera]
        if frame.dtype != np.uint8 or frame.ndim < 3 or frame.shape[-1] != 3:
            raise SourceError(f"camera {camera!r}: expected uint8 [..., H, W, 3], got {frame.dtype} {frame.shape}")
        found.append(np.ascontiguousarray(upright(frame, convention)))
    return tuple(found)


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
        images=upright_cameras(frames, convention),
        robot_state=robot_state(np.asarray(observed["robot0_joint_pos"]), np.asarray(observed["robot0_gripper_qpos"])),
        instruction=instruction,
    )


def check_observation(observation: Observation, spec: ObsSpec, here: str = "the policy") -> None:
    """Raise ObsSpecMismatch unless pictures and numbers of `observation` are what `spec`, that of `here`, says."""
    images, state = observation.images, observation.robot_state
    if len(images) != len(spec.cameras):
        raise ObsSpecMismatch(
            f"observation field 'cameras': {here} has {len(spec.cameras)} {list(spec.camera_names)}, "
            f"the observation has {len(images)}"
        )
    for camera, image in zip(spec.cameras, images, strict=True):
        if image.dtype != np.uint8 or image.shape != (camera.height, camera.width, 3):
            raise ObsSpecMismatch(
                f"observation field 'cameras', {camera.name}: {here} has uint8 {[camera.height, camera.width, 3]}, the "
                f"observation has {image.dtype} {list(image.shape)}; a policy runs only on the observations that it "
                "was trained on"
            )
    if state.dtype != np.float32 or state.shape != (spec.robot_state_dim,):
        raise ObsSpecMismatch(
            f"observation field 'robot_state': {here} has float32 [{spec.robot_state_dim}], "
            f"the observation has {state.dtype} {list(state.shape)}"
        )
    if not np.isfinite(state).all():
        raise ObsSpecMismatch(f"robot_state: expected finite numbers, got {state.tolist()}")


def read_spec(path: Path) -> ObsSpec:
    """The spec in a YAML file, with the keys of `ObsSpec.to_dict`. Raises UsageError naming file and field."""
    if not path.is_file():
        raise UsageError(f"{path}: no such obs spec")
    try:
        return ObsSpec.from_dict(yaml.safe_load(path.read_text()), str(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not plain YAML: {error}") from error
    except (ObsSpecMismatch, UsageError) as error:
        prefix = "" if str(error).startswith(str(path)) else f"{path}: "
        raise UsageError(f"{prefix}{error}") from error


def spec_of(observation: Observation, language_width: int = LIBERO.language_width) -> ObsSpec:
    """The spec that a simulator's observation (`from_simulator`) satisfies, to compare with a policy's.

    language_width: of the policy's encoder; a simulator gives text.
    """
    sizes = tuple((int(image.shape[0]), int(image.shape[1])) for image in observation.images)
    return dataclasses.replace(LIBERO.sized(sizes), language_width=language_width)


def require_simulated(spec: ObsSpec, suite: str) -> None:
    """Raises ObsSpecMismatch, before any world is opened, where a suite's worlds have another robot than `spec`."""
    sizes = spec.image_sizes if len(spec.cameras) == len(LIBERO.cameras) else LIBERO.image_sizes
    simulated = dataclasses.replace(LIBERO.sized(sizes), language_width=spec.language_width)
    try:
        simulated.require_same(spec, f"the simulator of {suite}", "the policy")
    except ObsSpecMismatch as error:
        raise ObsSpecMismatch(
            f"{error}. Where no suite has its robot, measure it on its store: statevla eval offline"
        ) from None


def square_side(spec: ObsSpec, world: str) -> int:
    """The side of the square pictures that a simulator must give for `spec`. Raises ObsSpecMismatch when they are not
    square or not all alike.
    """
    sides = {side for size in spec.image_sizes for side in size}
    if len(sides) != 1:
        raise ObsSpecMismatch(
            f"{world} pictures are square and of one size; the policy was trained on {list(spec.image_sizes)} pixels "
            "(height, width)"
        )
    return sides.pop()
