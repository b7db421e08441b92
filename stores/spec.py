"""ObsSpec: what a frame of a store is and what a policy sees and does, as data. Nothing else fixes a robot.

It travels in every store, checkpoint and bundle. Two that differ refuse each other, naming the field.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

from stores.errors import ObsSpecMismatch, UsageError

CONTINUOUS: Final = "continuous"
BINARY: Final = "binary"
KINDS: Final = (CONTINUOUS, BINARY)
ORIENTATIONS: Final = ("upright", "opengl")
"""As a person would see the scene; or its rows from the bottom up."""
SIDE_LIMIT: Final = 4096
WIDTH_LIMIT: Final = 4096


@dataclass(frozen=True)
class Camera:
    """uint8 RGB frames [height, width, 3], at the source's own size; models resize on their own device."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class StateField:
    """`width` numbers of the robot's state, in `unit`."""

    name: str
    width: int
    unit: str


@dataclass(frozen=True)
class ActionField:
    """`width` numbers of an action.

    kind: ``continuous`` is standardized and regressed; ``binary`` (-1 or +1) is never normalized, and classified.
    unit: in words. dims: a name for each number; default: the field's name, numbered where there are several.
    """

    name: str
    width: int
    kind: str
    unit: str
    dims: tuple[str, ...] = ()


@dataclass(frozen=True)
class ObsSpec:
    """cameras: in the order of arrays, tokens and shards. robot_state, action: fields end to end. control_hz: frames a
    second. language_width: numbers of an instruction's embedding. orientation: how pictures are turned.

    Raises UsageError naming the field when it makes no sense.
    """

    cameras: tuple[Camera, ...]
    robot_state: tuple[StateField, ...]
    action: tuple[ActionField, ...]
    control_hz: float
    language_width: int = 512
    orientation: str = "upright"

    def __post_init__(self) -> None:
        for field in ("cameras", "robot_state", "action"):
            names = [item.name for item in getattr(self, field)]
            if not names or len(set(names)) != len(names):
                raise UsageError(f"obs spec, {field}: expected one or more distinct names, got {names}")
            for name in names:
                if not name.isidentifier() or not name.isascii():
                    raise UsageError(f"obs spec, {field}: expected names of letters, digits and '_', got {name!r}")
        for camera in self.cameras:
            if not (0 < camera.height <= SIDE_LIMIT and 0 < camera.width <= SIDE_LIMIT):
                raise UsageError(f"obs spec, camera {camera.name}: expected sides of 1 to {SIDE_LIMIT}, got {camera}")
        numbers: tuple[StateField | ActionField, ...] = (*self.robot_state, *self.action)
        for item in numbers:
            if not 0 < item.width <= WIDTH_LIMIT:
                raise UsageError(f"obs spec, {item.name}: expected a width of 1 to {WIDTH_LIMIT}, got {item.width}")
        for part in self.action:
            if part.kind not in KINDS:
                raise UsageError(f"obs spec, action {part.name}: kind {part.kind!r}, expected one of {KINDS}")
            if part.dims and len(part.dims) != part.width:
                raise UsageError(f"obs spec, action {part.name}: {part.width} wide, but {len(part.dims)} dims")
        if len(set(self.action_names)) != self.action_dim:
            raise UsageError(f"obs spec, action: expected distinct names of dimensions, got {self.action_names}")
        if not 0 < self.control_hz < 10_000 or not 0 < self.language_width <= WIDTH_LIMIT:
            raise UsageError(
                "obs spec: expected control_hz and language_width above 0, "
                f"got {self.control_hz}, {self.language_width}"
            )
        if self.orientation not in ORIENTATIONS:
            raise UsageError(f"obs spec, orientation: expected one of {ORIENTATIONS}, got {self.orientation!r}")

    @cached_property
    def camera_names(self) -> tuple[str, ...]:
        """Names of the cameras, in order."""
        return tuple(camera.name for camera in self.cameras)

    @cached_property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each camera."""
        return tuple((camera.height, camera.width) for camera in self.cameras)

    @cached_property
    def robot_state_dim(self) -> int:
        """Numbers of a robot state."""
        return sum(field.width for field in self.robot_state)

    @cached_property
    def action_dim(self) -> int:
        """Numbers of an action."""
        return sum(field.width for field in self.action)

    @cached_property
    def action_names(self) -> tuple[str, ...]:
        """A name for each number of an action."""
        return tuple(name for field in self.action for name in _dims(field))

    @cached_property
    def state_names(self) -> tuple[str, ...]:
        """A name for each number of a robot state."""
        return tuple(name for field in self.robot_state for name in _numbered(field.name, field.width))

    @cached_property
    def continuous(self) -> tuple[int, ...]:
        """Dimensions of an action that are standardized and regressed."""
        return self._dims_of(CONTINUOUS)

    @cached_property
    def binary(self) -> tuple[int, ...]:
        """Dimensions of an action that are classified."""
        return self._dims_of(BINARY)

    def _dims_of(self, kind: str) -> tuple[int, ...]:
        kinds = [field.kind for field in self.action for _ in range(field.width)]
        return tuple(number for number, found in enumerate(kinds) if found == kind)

    def slice_of(self, name: str) -> slice:
        """Where the action's or the robot state's field `name` is; of a name that both have, the action's. Raises
        UsageError when there is none.
        """
        return _place(self.action, name) or self.state_slice_of(name)

    def state_slice_of(self, name: str) -> slice:
        """Where the robot state's field `name` is. Raises UsageError when there is none."""
        place = _place(self.robot_state, name)
        if place is None:
            raise UsageError(f"obs spec: no field {name!r}")
        return place

    def sized(self, sizes: tuple[tuple[int, int], ...]) -> "ObsSpec":
        """The same with other (height, width) of the cameras."""
        cameras = [
            Camera(camera.name, height, width) for camera, (height, width) in zip(self.cameras, sizes, strict=True)
        ]
        return dataclasses.replace(self, cameras=tuple(cameras))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        fields = {name: _plain(value) for name, value in asdict(self).items()}
        return {**fields, "control_hz": int(self.control_hz) if self.control_hz % 1 == 0 else self.control_hz}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "obs spec") -> "ObsSpec":
        """Inverse of `to_dict`. Raises ObsSpecMismatch naming `where` on a missing or unknown field or a wrong type."""
        fields = _checked(data, cls, where)
        kinds: dict[str, type[Any]] = {"cameras": Camera, "robot_state": StateField, "action": ActionField}
        for name, kind in kinds.items():
            if not isinstance(fields[name], list | tuple):
                raise ObsSpecMismatch(f"{where}, {name}: expected a list, got {fields[name]!r}")
            items = [_checked(item, kind, f"{where}, {name}[{number}]") for number, item in enumerate(fields[name])]
            fields[name] = tuple(
                kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in i.items()}) for i in items
            )
        return cls(**fields)

    def differences(self, other: "ObsSpec") -> Iterator[tuple[str, Any, Any]]:
        """(field, of self, of other) wherever the two differ; a field of a field as ``cameras[0].height``."""
        return _differences(self.to_dict(), other.to_dict(), "")

    def require_same(self, other: "ObsSpec", here: str, there: str) -> None:
        """Raise ObsSpecMismatch naming the first field on which `here` (self) and `there` (other) disagree."""
        for field, mine, theirs in self.differences(other):
            raise ObsSpecMismatch(
                f"observation field {field!r}: {here} has {mine!r}, {there} has {theirs!r}; "
                "a policy runs only on the observations that it was trained on"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "str": (str,), "int": (int,), "float": (int, float), "tuple": (list, tuple),
}  # fmt: skip


def _checked(data: Any, kind: type[Any], where: str) -> dict[str, Any]:
    """The fields of a dataclass out of JSON or YAML."""
    fields = {item.name: item for item in dataclasses.fields(kind)}
    needed = {name for name, item in fields.items() if item.default is dataclasses.MISSING}
    if not isinstance(data, Mapping) or not needed <= set(data) <= set(fields):
        came = sorted(map(str, data)) if isinstance(data, Mapping) else repr(data)
        raise ObsSpecMismatch(f"{where}: expected fields {sorted(fields)}, got {came}")
    for name, value in data.items():
        allowed = _TYPES[str(getattr(fields[name].type, "__name__", fields[name].type)).split("[")[0]]
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise ObsSpecMismatch(
                f"{where}, {name}: expected {'number' if float in allowed else allowed[0].__name__}, got {value!r}"
            )
    return dict(data)


def _dims(field: ActionField) -> tuple[str, ...]:
    return field.dims or _numbered(field.name, field.width)


def _place(fields: Iterable[StateField | ActionField], name: str) -> slice | None:
    start = 0
    for field in fields:
        if field.name == name:
            return slice(start, start + field.width)
        start += field.width
    return None


def _numbered(name: str, width: int) -> tuple[str, ...]:
    return (name,) if width == 1 else tuple(f"{name}_{number}" for number in range(width))


def _differences(mine: Any, theirs: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(mine, dict) and isinstance(theirs, dict) and set(mine) == set(theirs):
        for name in mine:
            yield from _differences(mine[name], theirs[name], f"{place}.{name}" if place else name)
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            yield from _differences(one, other, f"{place}[{number}]")
    elif mine != theirs:
        yield place, mine, theirs


def libero_spec(height: int = 128, width: int | None = None) -> ObsSpec:
    """LIBERO's, for pictures of that size (square without `width`): a Franka arm under OSC_POSE at 20 Hz."""
    side = height if width is None else width
    return ObsSpec(
        cameras=(Camera("agentview", height, side), Camera("eye_in_hand", height, side)),
        robot_state=(StateField("joint_pos", 7, "rad"), StateField("gripper_qpos", 2, "m")),
        action=(
            ActionField("position", 3, CONTINUOUS, "OSC_POSE delta, [-1, 1] controller units", ("x", "y", "z")),
            ActionField(
                "rotation", 3, CONTINUOUS, "OSC_POSE delta axis-angle, [-1, 1] controller units", ("rx", "ry", "rz")
            ),
            ActionField("gripper", 1, BINARY, "-1 open, +1 close"),
        ),
        control_hz=20,
    )


LIBERO: Final = libero_spec()
"""The default everywhere."""
