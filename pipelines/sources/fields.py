"""Which entries of a source are cameras, robot state and action, where a file's own names do not say: ``--spec FILE``.

A small YAML (or JSON) file, every part of it optional; what it leaves out, the format decides:

    cameras: {front: agentview_image}                    # name in the store: key in the file
    robot_state: {joints: {key: robot0_joint_pos, unit: rad}, gripper: robot0_gripper_qpos}
    action: [{name: arm, width: 6, kind: continuous}, {name: gripper, width: 1, kind: binary}]
    control_hz: 20
    instruction: lift the cube

A file with the keys of a manifest's ``obs_spec`` (`statevla.observation.read_spec`) is one too: there, names are keys.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from statevla.observation import read_spec
from stores.errors import SourceError, UsageError
from stores.spec import KINDS, ActionField, Camera, ObsSpec, StateField

PARTS: Final = ("cameras", "robot_state", "action", "control_hz", "instruction")


@dataclass(frozen=True)
class Entry:
    """name: in the store. key: in the file. unit: of a robot state's numbers, in words."""

    name: str
    key: str
    unit: str = ""


@dataclass(frozen=True)
class Fields:
    """What the user says; empty and None: what the format decides."""

    cameras: tuple[Entry, ...] = ()
    robot_state: tuple[Entry, ...] = ()
    action: tuple[ActionField, ...] = ()
    control_hz: float | None = None
    instruction: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, as `from_dict` takes it."""
        parts = {
            "cameras": {item.name: item.key for item in self.cameras},
            "robot_state": {item.name: {"key": item.key, "unit": item.unit} for item in self.robot_state},
            "action": [{**asdict(item), "dims": list(item.dims)} for item in self.action],
            "control_hz": self.control_hz,
            "instruction": self.instruction,
        }
        return {name: part for name, part in parts.items() if part}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "--spec") -> "Fields":
        """Raises UsageError naming `where`, the part, what was expected and what came."""
        if not isinstance(data, Mapping) or not set(data) <= set(PARTS):
            came = sorted(map(str, data)) if isinstance(data, Mapping) else repr(data)
            raise UsageError(f"{where}: expected some of {', '.join(PARTS)}, got {came}")
        instruction, rate = data.get("instruction"), data.get("control_hz")
        if instruction is not None and (not isinstance(instruction, str) or not instruction.strip()):
            raise UsageError(f"{where}, instruction: expected text, got {instruction!r}")
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 10_000):
            raise UsageError(f"{where}, control_hz: expected a number above 0, got {rate!r}")
        return cls(
            _entries(data.get("cameras"), f"{where}, cameras"),
            _entries(data.get("robot_state"), f"{where}, robot_state"),
            _action(data.get("action"), f"{where}, action"),
            rate,
            instruction,
        )

    @classmethod
    def of_spec(cls, spec: ObsSpec) -> "Fields":
        """The same of a whole ObsSpec: its names are the file's keys."""
        return cls(
            tuple(Entry(camera.name, camera.name) for camera in spec.cameras),
            tuple(Entry(field.name, field.name, field.unit) for field in spec.robot_state),
            spec.action,
            spec.control_hz,
        )


def _entries(data: Any, where: str) -> tuple[Entry, ...]:
    if data is None:
        return ()
    if not isinstance(data, Mapping) or not data:
        raise UsageError(f"{where}: expected names in the store with their keys in the file, got {data!r}")
    found = []
    for name, item in data.items():
        fields = {"key": item} if isinstance(item, str) else item
        texts = isinstance(fields, Mapping) and all(isinstance(value, str) for value in fields.values())
        if not isinstance(name, str) or not texts or "key" not in fields or not set(fields) <= {"key", "unit"}:
            raise UsageError(f"{where}, {name}: expected a key of the file, or key and unit, got {item!r}")
        found.append(Entry(name, **fields))
    return tuple(found)


def _action(data: Any, where: str) -> tuple[ActionField, ...]:
    if data is None:
        return ()
    if not isinstance(data, list) or not data:
        raise UsageError(f"{where}: expected a list of name, width and kind, got {data!r}")
    found = []
    for item in data:
        known = {"name", "width", "kind", "unit", "dims"}
        if not isinstance(item, Mapping) or not {"name", "width", "kind"} <= set(item) <= known:
            raise UsageError(f"{where}: expected name, width, kind (and unit, dims), got {item!r}")
        width = item["width"]
        if not isinstance(item["name"], str) or isinstance(width, bool) or not isinstance(width, int):
            raise UsageError(f"{where}: expected a name and a whole width, got {item!r}")
        if item["kind"] not in KINDS:
            raise UsageError(f"{where}, {item['name']}: expected kind {' or '.join(KINDS)}, got {item['kind']!r}")
        dims = item.get("dims") or ()
        if not isinstance(dims, list | tuple) or not all(isinstance(dim, str) for dim in dims):
            raise UsageError(f"{where}, {item['name']}, dims: expected names, got {dims!r}")
        found.append(ActionField(item["name"], width, item["kind"], str(item.get("unit", "")), tuple(dims)))
    return tuple(found)


def read_fields(path: Path) -> ObsSpec | Fields:
    """What a ``--spec`` file says. Raises UsageError naming file, part, what was expected and what came."""
    if not path.is_file():
        raise UsageError(f"{path}: no such obs spec")
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not plain YAML: {' '.join(str(error).split())}") from error
    if isinstance(data, Mapping) and not isinstance(data.get("cameras"), list):
        return Fields.from_dict(data, str(path))
    return read_spec(path)


def told_fields(fields: Fields | None, spec: ObsSpec | None) -> Fields:
    """What was told in either form; nothing: empty ones."""
    return fields or (Fields() if spec is None else Fields.of_spec(spec))


def spec_of(
    cameras: tuple[Camera, ...], robot_state: tuple[StateField, ...], action: tuple[ActionField, ...], control_hz: float
) -> ObsSpec:
    """The ObsSpec that a file leads to. Raises SourceError where there is none: other files may be well."""
    try:
        return ObsSpec(cameras, robot_state, action, control_hz)
    except UsageError as error:
        raise SourceError(str(error)) from error


def pick(wanted: str, there: Mapping[str, Any], forms: tuple[Callable[[str], str], ...], where: str) -> str:
    """The key among `there` that `wanted` names, as it stands or in one of `forms`. Raises SourceError naming them."""
    for key in (wanted, *(form(wanted) for form in forms)):
        if key in there:
            return key
    raise SourceError(f"--spec, {where} {wanted!r}: expected one of {', '.join(sorted(there)) or 'none'}")
