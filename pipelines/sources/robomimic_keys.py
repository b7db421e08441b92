"""Which observations of a robomimic file (`pipelines.sources.robomimic`) are cameras and robot state, and what its
actions are: robosuite's names, or ``--spec`` (`pipelines.sources.fields`).

Legend: T rows of a demonstration, A numbers of an action, H, W rows and columns of a picture.
"""

import contextlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import h5py

from pipelines.sources import hdf5
from pipelines.sources.fields import Fields, pick
from pipelines.sources.libero_demo import IMAGE_SIDE, MAX_ROWS
from pipelines.sources.texts import clean_instruction
from stores.errors import SourceError
from stores.spec import BINARY, CONTINUOUS, ActionField, Camera, ObsSpec, StateField

PICTURE: Final = "_image"
UNITS: Final = {"joint_pos": "rad", "joint_vel": "rad/s", "gripper_qpos": "m", "eef_pos": "m", "eef_quat": "quaternion"}
STATES: Final = (("joint_pos", "gripper_qpos"), ("eef_pos", "eef_quat", "gripper_qpos"))
"""Observations of a robot that are its state; the first of these that a file has."""
ARM: Final = 7
"""Numbers of an action of robosuite's OSC_POSE: position, rotation, gripper."""
DEFAULT_HZ: Final = 20
FORMS: Final = (lambda name: name + PICTURE, lambda name: f"robot0_{name}", lambda name: f"robot0_{name}{PICTURE}")


@dataclass(frozen=True)
class Keys:
    """Where a demonstration's observations are. cameras: key by name; state: keys in order; spec: of a frame."""

    spec: ObsSpec
    cameras: dict[str, str]
    state: tuple[str, ...]

    @property
    def fingers(self) -> str | None:
        """The key of the one gripper's two fingers, where there is one gripper and it is the last of the action."""
        keys = [key for key in self.state if key.endswith("gripper_qpos")]
        return keys[0] if len(keys) == 1 and self.spec.binary == (self.spec.action_dim - 1,) else None


def cameras_of(demo: h5py.Group, keys: Keys) -> dict[str, hdf5.Rows]:
    """Camera -> checked dataset uint8 [T, H, W, 3]. Raises SourceError."""
    found: dict[str, hdf5.Rows] = {}
    for camera, key in keys.cameras.items():
        data = hdf5.dataset(demo, f"obs/{key}", "uint8", (None, None, None, 3), MAX_ROWS * IMAGE_SIDE[1] ** 2 * 3)
        if not all(IMAGE_SIDE[0] <= side <= IMAGE_SIDE[1] for side in data.shape[1:3]) or data.shape[0] > MAX_ROWS:
            raise SourceError(f"key 'obs/{key}': expected at most {MAX_ROWS} pictures with sides of {IMAGE_SIDE[0]} to "
                              f"{IMAGE_SIDE[1]}, got {list(data.shape)}")  # fmt: skip
        found[camera] = data
    return found


def environment(data: h5py.Group) -> dict[str, Any]:
    """``env_args`` of ``/data``; empty where there is none. Raises SourceError where it is no JSON object."""
    text = hdf5.text(data, "env_args")
    try:
        found = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"env_args: expected JSON, got {error}") from error
    if not isinstance(found, dict):
        raise SourceError(f"env_args: expected an object, got {text!r:.80}")
    return found


def instruction_of(demo: h5py.Group, fields: Fields, env: Mapping[str, Any]) -> tuple[str, bool]:
    """The text, and whether it is one that somebody wrote: ``--spec``, ``ep_meta`` of the demonstration, ``env_lang``;
    else the words of ``env_name``. Raises SourceError.
    """
    if fields.instruction:
        return clean_instruction(fields.instruction, "--spec, instruction"), True
    meta = hdf5.text(demo, "ep_meta")
    with contextlib.suppress(ValueError, RecursionError):
        told = json.loads(meta or "{}")
        if isinstance(told, dict) and told.get("lang"):
            return clean_instruction(told["lang"], "ep_meta, lang"), True
    for key in ("env_lang", "lang"):
        if env.get(key):
            return clean_instruction(env[key], f"env_args, {key}"), True
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|_+", " ", str(env.get("env_name") or "")).lower()
    if not words.strip():
        raise SourceError("no instruction: env_args has no env_name, ep_meta no lang; say it with --spec")
    return clean_instruction(words, "env_name"), False


def keys_of(data: h5py.Group, demo: str, told: Fields, env: Mapping[str, Any]) -> tuple[Keys, list[str]]:
    """Which observations are which, from the demonstration called `demo`, and what was assumed. Raises SourceError."""
    obs = hdf5.group(data, f"{demo}/obs")
    there = {name: hdf5.child(obs, name) for name in sorted(map(str, obs))}
    shapes = {name: item.shape for name, item in there.items() if isinstance(item, hdf5.Rows)}
    pictures = {name: shape for name, shape in shapes.items() if len(shape) == 4 and shape[-1] == 3}
    numbers = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    cameras = {entry.name: pick(entry.key, pictures, FORMS, "cameras") for entry in told.cameras} or {
        re.sub("^robot0_", "", name.removesuffix(PICTURE)): name for name in pictures
    }
    if not cameras:
        raise SourceError(f"obs: expected pictures [T, H, W, 3], got {', '.join(there)}; render them with robomimic's "
                          "dataset_states_to_obs.py")  # fmt: skip
    notes = []
    state = tuple(pick(entry.key, numbers, FORMS, "robot_state") for entry in told.robot_state) or _usual(numbers)
    if not state:
        raise SourceError(f"obs: expected robot0_joint_pos or robot0_eef_pos, got {', '.join(there)}; say it by --spec")
    unused = [name for name in there if name not in state and name not in cameras.values()]
    if unused:
        notes.append(f"obs keys {', '.join(unused)} are not used (--spec says otherwise)")
    actions = hdf5.child(data, f"{demo}/actions")
    if not isinstance(actions, hdf5.Rows) or len(actions.shape) != 2:
        raise SourceError("actions: expected [T, A]")
    action = told.action or _action(int(actions.shape[1]), notes)
    given = {entry.key: entry for entry in told.robot_state}
    fields = []
    for number, key in enumerate(state):
        entry = told.robot_state[number] if given else None
        unit = next((unit for name, unit in UNITS.items() if key.endswith(name)), "")
        name = entry.name if entry else re.sub("^robot0_", "", key)
        fields.append(StateField(name, int(numbers[key][1]), (entry.unit if entry else "") or unit))
    rate = told.control_hz or env.get("env_kwargs", {}).get("control_freq")
    if rate is None:
        notes.append(f"env_args says no control_freq; {DEFAULT_HZ} Hz taken (--spec says otherwise)")
    spec = ObsSpec(
        tuple(Camera(name, *map(int, pictures[key][1:3])) for name, key in cameras.items()),
        tuple(fields),
        action,
        rate if isinstance(rate, int | float) and math.isfinite(rate) and rate > 0 else DEFAULT_HZ,
    )
    return Keys(spec, cameras, state), notes


def _usual(numbers: Mapping[str, Any]) -> tuple[str, ...]:
    """The state of every robot, in robosuite's names."""
    robots = sorted({name.split("_")[0] for name in numbers if re.match(r"robot\d+_", name)})
    for wanted in STATES:
        found = [f"{robot}_{part}" for robot in robots for part in wanted if f"{robot}_{part}" in numbers]
        if any(key.endswith(wanted[0]) for key in found):
            return tuple(found)
    return ()


def _action(width: int, notes: list[str]) -> tuple[ActionField, ...]:
    """OSC_POSE with a gripper, an arm or several; else numbers without names."""
    if width == 0 or width % ARM:
        notes.append(f"actions: {width} numbers, all taken as continuous (--spec says otherwise)")
        return (ActionField("action", width, CONTINUOUS, ""),)
    arms = width // ARM
    notes.append("actions taken as OSC_POSE: position, rotation, gripper (--spec says otherwise)")
    fields: list[ActionField] = []
    for arm in range(arms):
        end = "" if arms == 1 else f"_{arm}"
        unit = "delta, [-1, 1] controller units"
        fields += [
            ActionField(f"position{end}", 3, CONTINUOUS, unit, tuple(f"{d}{end}" for d in ("x", "y", "z"))),
            ActionField(
                f"rotation{end}", 3, CONTINUOUS, f"axis-angle {unit}", tuple(f"{d}{end}" for d in ("rx", "ry", "rz"))
            ),
            ActionField(f"gripper{end}", 1, BINARY, "-1 open, +1 close"),
        ]
    return tuple(fields)
