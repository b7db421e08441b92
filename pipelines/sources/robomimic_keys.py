"""Which observations of a robomimic file (`pipelines.sources.robomimic`) are cameras and robot state, and what its
actions are: robosuite's names, or ``--spec`` (`pipelines.sources.fields`).

Legend: T rows of a demonstration, A numbers of an action, H, W rows and columns of a picture.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import h5py

from pipelines.sources import hdf5, pulse
from pipelines.sources.fields import Fields, pick, spec_of
from pipelines.sources.libero_demo import IMAGE_SIDE, MAX_ROWS
from pipelines.sources.texts import clean_instruction, identifier, require_printable
from stores.errors import SourceError
from stores.spec import BINARY, CONTINUOUS, ActionField, Camera, ObsSpec, StateField

PICTURE: Final = "_image"
UNITS: Final = {"joint_pos": "rad", "joint_vel": "rad/s", "gripper_qpos": "m", "eef_pos": "m", "eef_quat": "quaternion"}
USUAL: Final = (("joint_pos", "gripper_qpos"), ("eef_pos", "eef_quat", "gripper_qpos"))
"""Observations of a robot that are its state; the first of these that a file has."""
STATES: Final = "states"
JOINTS: Final = "obs/robot0_joint_pos"
"""What shows the alignment."""
RENDER: Final = "render them with robomimic's dataset_states_to_obs.py"
ARM: Final = 7
"""Numbers of an action of robosuite's OSC_POSE: position, rotation, gripper."""
DEFAULT_HZ: Final = 20
RATE_LIMIT: Final = 10_000
FORMS: Final = (lambda name: name + PICTURE, lambda name: f"robot0_{name}", lambda name: f"robot0_{name}{PICTURE}")


@dataclass(frozen=True)
class Keys:
    """Where a demonstration's observations are. cameras: key by name; state: keys in order; spec: of a frame. shows:
    whether there is what shows the alignment (`STATES`, `JOINTS`).
    """

    spec: ObsSpec
    cameras: dict[str, str]
    state: tuple[str, ...]
    shows: bool

    @property
    def fingers(self) -> str | None:
        """The key of the one gripper's two fingers, where there is one gripper and it is the last of the action."""
        keys = [key for key in self.state if key.endswith("gripper_qpos")]
        return keys[0] if len(keys) == 1 and ends_with_gripper(self.spec) else None

    def name_of(self, key: str) -> str:
        """The robot state's field that `key` is."""
        return self.spec.robot_state[self.state.index(key)].name


def ends_with_gripper(spec: ObsSpec) -> bool:
    """Whether the last number of an action is a gripper's command, and no other one is."""
    return spec.binary == (spec.action_dim - 1,)


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
    """``env_args`` of ``/data``; empty where there is none. Raises SourceError where it is no JSON object, or names no
    environment by a text.
    """
    found = _object(hdf5.text(data, "env_args"), "env_args")
    if found.get("env_name"):
        require_printable(found["env_name"], "env_args, env_name")
    return found


def _object(text: str | None, where: str) -> dict[str, Any]:
    """A JSON object; empty where there is no text. Raises SourceError."""
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: expected JSON, got {error}") from error
    if not isinstance(found, dict):
        raise SourceError(f"{where}: expected an object, got {text!r:.80}")
    return found


def instruction_of(demo: h5py.Group, fields: Fields, env: Mapping[str, Any]) -> tuple[str, bool]:
    """The text, and whether it is one that somebody wrote: ``--spec``, ``ep_meta`` of the demonstration, ``env_lang``;
    else the words of ``env_name``. Raises SourceError.
    """
    if fields.instruction:
        return clean_instruction(fields.instruction, "--spec, instruction"), True
    told = _object(hdf5.text(demo, "ep_meta"), "ep_meta")
    if told.get("lang"):
        return clean_instruction(told["lang"], "ep_meta, lang"), True
    for key in ("env_lang", "lang"):
        if env.get(key):
            return clean_instruction(env[key], f"env_args, {key}"), True
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|_+", " ", str(env.get("env_name") or "")).lower()
    if not words.strip():
        raise SourceError("no instruction: env_args has no env_name, ep_meta no lang; say it with --spec")
    return clean_instruction(words, "env_name"), False


Shape = tuple[frozenset[bytes], frozenset[bytes]]
"""Names of what a demonstration has, and of its observations."""


def shapes_of(data: h5py.Group, places: Mapping[str, int] | None = None) -> Iterator[Shape]:
    """Of each demonstration, by name in `places` (its number, for `pulse`), or of all; empty of one that cannot be
    listed.
    """
    for name in [name for name in data if isinstance(name, str)] if places is None else places:
        if places is not None:
            pulse.at(places[name])
        own: list[bytes] = []
        seen: list[bytes] = []
        with contextlib.suppress(SourceError), hdf5.reporting(name):
            demo = hdf5.group(data, name)
            demo.id.links.iterate(own.append)
            obs = hdf5.group(demo, "obs")
            obs.id.links.iterate(seen.append)
        yield frozenset(own), frozenset(seen)


def find_keys(
    data: h5py.Group, places: Mapping[str, int], told: Fields, env: Mapping[str, Any]
) -> tuple[str, Keys, list[str]]:
    """The demonstration that says for the file which observations are which, its keys, and what was assumed.

    It is the first that can be read of those that have what most have: a damaged name is none of these. Raises the
    SourceError of the first where none can.
    """
    shapes = dict(zip(places, shapes_of(data, places), strict=True))
    common = Counter(shapes.values())
    refused: SourceError | None = None
    if not told.control_hz:
        _rate(env, [])  # the file's fault, not that of a demonstration
    for name in sorted(places, key=lambda name: (-common[shapes[name]], places[name])):
        pulse.at(places[name])
        try:
            with hdf5.reporting(name):
                return name, *keys_of(data, name, told, env)
        except SourceError as error:
            refused = refused or error
    raise refused or SourceError("/data holds no demonstration that can be read")


def keys_of(data: h5py.Group, demo: str, told: Fields, env: Mapping[str, Any]) -> tuple[Keys, list[str]]:
    """Which observations are which, from the demonstration called `demo`, and what was assumed. Raises SourceError."""
    group = hdf5.group(data, demo)
    own = hdf5.names_of(group, demo)
    if "obs" not in own:  # as robomimic's own downloads are before they are rendered
        raise SourceError(f"expected obs with pictures [T, H, W, 3], got {', '.join(own)}; {RENDER}")
    obs = hdf5.group(group, "obs")
    there = {name: hdf5.child(obs, name) for name in hdf5.names_of(obs, "obs")}
    shapes = {name: item.shape for name, item in there.items() if isinstance(item, hdf5.Rows)}
    pictures = {name: shape for name, shape in shapes.items() if len(shape) == 4 and shape[-1] == 3}
    numbers = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    cameras = {entry.name: pick(entry.key, pictures, FORMS, "cameras") for entry in told.cameras} or _named(pictures)
    if not cameras:
        raise SourceError(f"obs: expected pictures [T, H, W, 3], got {', '.join(there)}; {RENDER}")
    notes = []
    state = tuple(pick(entry.key, numbers, FORMS, "robot_state") for entry in told.robot_state) or _usual(numbers)
    if not state:
        raise SourceError(f"obs: expected robot0_joint_pos or robot0_eef_pos, got {', '.join(there)}; say it by --spec")
    unused = [name for name in there if name not in state and name not in cameras.values()]
    if unused:
        notes.append(f"obs keys {', '.join(unused)} are not used (--spec says otherwise)")
    actions = hdf5.child(group, "actions")
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
    spec = spec_of(
        tuple(Camera(name, *map(int, pictures[key][1:3])) for name, key in cameras.items()),
        tuple(fields),
        action,
        told.control_hz or _rate(env, notes),
    )
    shows = group.id.links.exists(STATES.encode()) and JOINTS.removeprefix("obs/") in there
    return Keys(spec, cameras, state, shows), notes


def _named(pictures: Mapping[str, Any]) -> dict[str, str]:
    """Keys of cameras by the names that they get in a store. Raises SourceError where two would have the same."""
    found: dict[str, str] = {}
    for key in pictures:
        name = identifier(re.sub("^robot0_", "", key.removesuffix(PICTURE)))
        if name in found:
            raise SourceError(f"obs: {found[name]} and {key} would both be called {name}; name them with --spec")
        found[name] = key
    return found


def _rate(env: Mapping[str, Any], notes: list[str]) -> float:
    """Steps a second, as ``env_args`` says. Raises SourceError where it says what is no rate."""
    told = env.get("env_kwargs")
    if not isinstance(told, dict | None):
        raise SourceError(f"env_args, env_kwargs: expected an object, got {told!r:.80}")
    rate = (told or {}).get("control_freq")
    if rate is None:
        notes.append(f"env_args says no control_freq; {DEFAULT_HZ} Hz taken (--spec says otherwise)")
        return DEFAULT_HZ
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < RATE_LIMIT:
        raise SourceError(f"env_args, env_kwargs, control_freq: expected a number above 0, got {rate!r:.80}")
    return rate


def _usual(numbers: Mapping[str, Any]) -> tuple[str, ...]:
    """The state of every robot, in robosuite's names."""
    robots = sorted({name.split("_")[0] for name in numbers if re.match(r"robot\d+_", name)})
    for wanted in USUAL:
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
