"""Which features of a LeRobotDataset are cameras, robot state and action, as an ObsSpec: by its own names, by what an
export of this toolkit wrote beside them, or by ``--spec``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipelines.sources.fields import Entry, Fields, pick, spec_of
from pipelines.sources.lerobot.metadata import OWN, Feature, Info, read_json
from pipelines.sources.texts import identifier
from stores.errors import ObsSpecMismatch, SourceError, UsageError
from stores.spec import CONTINUOUS, ActionField, Camera, ObsSpec, StateField

ACTION: Final = "action"
STATE: Final = "observation.state"
PREFIXES: Final = ("observation.images.", "observation.image.", "observation.")
FORMS: Final = tuple((lambda name, prefix=prefix: prefix + name) for prefix in PREFIXES)
OWN_FORMAT: Final = 1


@dataclass(frozen=True)
class Layout:
    """spec: of a frame. cameras: feature's key by the spec's name. state: (key, width) in order. notes: assumed.
    own: as an export of this toolkit wrote it.
    """

    spec: ObsSpec
    cameras: dict[str, str]
    state: tuple[tuple[str, int], ...]
    action: tuple[str, int]
    notes: tuple[str, ...] = ()
    own: bool = False


def layout_of(root: Path, info: Info, told: Fields) -> Layout:
    """Raises SourceError naming the feature that is missing or of no use."""
    features = info.features
    pictures = {key: item for key, item in features.items() if item.picture}
    vectors = {key: item for key, item in features.items() if item.vector and key.startswith("observation.")}
    if not pictures:
        raise SourceError(f"meta/info.json, features: expected a video or image, got {', '.join(features)}")
    if ACTION not in features or not features[ACTION].vector:
        raise SourceError(f"meta/info.json, features: expected {_expected(features, ACTION)}")
    cameras = _cameras(pictures, told.cameras)
    notes: list[str] = []
    state = [pick(entry.key, vectors, FORMS, "robot_state") for entry in told.robot_state]
    if not state:
        state = [STATE] if STATE in vectors else sorted(vectors)
        if not state:
            raise SourceError(f"meta/info.json, features: expected {_expected(features, STATE)}")
        if STATE not in vectors:  # an environment_state may hold what no robot senses
            notes.append(f"no {STATE}: robot state taken from {', '.join(state)} (--spec says otherwise)")
    unused = [key for key in (*vectors, *pictures) if key not in state and key not in cameras.values()]
    if unused:
        notes.append(f"features {', '.join(unused)} are not used (--spec says otherwise)")
    action = features[ACTION]
    spec = _own_spec(root, cameras, sum(features[key].shape[0] for key in state), action.shape[0], info.fps, notes)
    own = spec is not None and told == Fields()
    if spec is None or not own:
        if not told.action:
            notes.append("action: every dimension taken as continuous (--spec says otherwise)")
        spec = spec_of(
            cameras=tuple(Camera(name, *features[key].size) for name, key in cameras.items()),
            robot_state=_state([features[key] for key in state], told.robot_state),
            action=told.action or (ActionField(ACTION, action.shape[0], CONTINUOUS, "", _dims(action.names)),),
            control_hz=told.control_hz or info.fps,
        )
    if spec.action_dim != action.shape[0]:
        raise SourceError(f"--spec, action: {spec.action_dim} numbers, the dataset's action has {action.shape[0]}")
    sizes = tuple((key, features[key].shape[0]) for key in state)
    return Layout(spec, cameras, sizes, (ACTION, action.shape[0]), tuple(notes), own)


def _expected(features: Mapping[str, Feature], key: str) -> str:
    item = features.get(key)
    came = ", ".join(features) if item is None else f"{item.dtype} {list(item.shape)}"
    return f"{key} as a list of float numbers, got {came}"


def _cameras(pictures: dict[str, Feature], told: Sequence[Entry]) -> dict[str, str]:
    if told:
        return {entry.name: pick(entry.key, pictures, FORMS, "cameras") for entry in told}
    found: dict[str, str] = {}
    for key in pictures:
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), "")
        name = identifier(key.removeprefix(prefix))
        if name in found:
            raise SourceError(f"features {found[name]} and {key} would both be called {name}; name them with --spec")
        found[name] = key
    return found


def _state(features: Sequence[Feature], told: Sequence[Entry]) -> tuple[StateField, ...]:
    """A field for each number that has a name; else one for a feature."""
    if told:
        return tuple(
            StateField(entry.name, item.shape[0], entry.unit) for entry, item in zip(told, features, strict=True)
        )
    fields: list[StateField] = []
    for item in features:
        names = _dims(item.names)
        whole = StateField(identifier(item.key.removeprefix("observation.")), item.shape[0], "")
        fields += [StateField(name, 1, "") for name in names] or [whole]
    if len({field.name for field in fields}) == len(fields):
        return tuple(fields)
    return tuple(StateField(identifier(item.key), item.shape[0], "") for item in features)


def _dims(names: Sequence[str]) -> tuple[str, ...]:
    """Names of numbers, where they stay distinct as identifiers."""
    plain = tuple(identifier(name) for name in names)
    return plain if len(set(plain)) == len(plain) else ()


def _own_spec(
    root: Path, cameras: dict[str, str], state: int, action: int, fps: float, notes: list[str]
) -> ObsSpec | None:
    """The ObsSpec that an export of this toolkit wrote, where the dataset still is what it says."""
    if not (root / OWN).exists():
        return None
    try:
        data: Any = read_json(root, OWN)
        if not isinstance(data, dict) or data.get("format") != OWN_FORMAT:
            raise SourceError(f"{OWN}: expected format {OWN_FORMAT}")
        spec = ObsSpec.from_dict(data["obs_spec"], OWN)
    except (SourceError, ObsSpecMismatch, UsageError, KeyError) as error:
        notes.append(f"{OWN} is not used: {error}")
        return None
    have = (tuple(cameras), state, action, fps)
    if (spec.camera_names, spec.robot_state_dim, spec.action_dim, spec.control_hz) != have:
        notes.append(f"{OWN} is not used: the dataset has {have} (cameras, robot state, action, fps)")
        return None
    return spec
