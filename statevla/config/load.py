"""Preset, YAML file and ``--set`` to one `Config`: the same dotted keys everywhere, an unknown key is an error."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from statevla.config.presets import PRESETS
from statevla.config.schema import Config, SystemOptions
from stores.errors import StoreCorrupt, UsageError

Sections = Mapping[str, type[SystemOptions]]
"""Options of further systems by the name of their section."""

NO_SECTIONS: Final[Sections] = {}
RATE: Final = "learning_rate"
COMMON_RATE: Final = "training.learning_rate"


@dataclass(frozen=True)
class Request:
    """What a user asks for: a preset, and dotted keys with their values. preset: None where none was named.

    said: which of them an override says. filed: which a file says that is no recipe.
    """

    preset: str | None
    changes: dict[str, Any]
    said: frozenset[str] = frozenset()
    filed: frozenset[str] = frozenset()

    def config(self, sections: Sections = NO_SECTIONS) -> Config:
        """The configuration. Raises UsageError with the nearest key or preset."""
        name = self.preset or "base"
        if name not in PRESETS:
            raise UsageError(f"preset {name!r}: expected one of {', '.join(PRESETS)}")
        return replace(with_sections(PRESETS[name], sections, name), self.changes)


def load_config(
    preset: str = "base", file: Path | None = None, overrides: tuple[str, ...] = (), sections: Sections = NO_SECTIONS
) -> Config:
    """Preset, then the YAML file's keys, then ``a.b=c`` overrides. Raises UsageError with the nearest key."""
    changes = {} if file is None else read_keys(file)
    return Request(preset, {**changes, **parse_overrides(overrides)}).config(sections)


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file that is a mapping, plain. Raises UsageError."""
    if not file.is_file():
        raise UsageError(f"{file}: no such configuration file")
    tree = parse(file.read_text(), str(file))
    if not isinstance(tree, dict):
        raise UsageError(f"{file}: expected a mapping of data, model and training, got {type(tree).__name__}")
    return tree


def read_keys(file: Path) -> dict[str, Any]:
    """Dotted keys of a YAML file."""
    return flatten(read_yaml(file))


def parse_overrides(overrides: tuple[str, ...]) -> dict[str, Any]:
    """``("a.b=1",)`` -> ``{"a.b": 1}``. Raises UsageError."""
    changes = {}
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator:
            raise UsageError(f"--set {item!r}: expected KEY=VALUE, for example training.batch_size=32")
        changes[key] = parse(value, f"--set {item!r}")
    return changes


def parse(text: str, where: str) -> Any:
    """Plain YAML. Raises UsageError."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not plain YAML: {error}") from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def with_sections(config: Config, sections: Sections, preset: str = "base") -> Config:
    """`config` with the options of further systems, those that it has not yet as the preset has them."""
    missing = {
        name: options(**options.PRESETS.get(preset, {}))
        for name, options in sections.items()
        if name not in config.sections
    }
    return dataclasses.replace(config, sections={**config.sections, **missing}) if missing else config


def only_sections(config: Config, names: tuple[str, ...]) -> Config:
    """`config` without the sections of systems that are not in `names`: what a run's checkpoints record."""
    kept = {name: options for name, options in config.sections.items() if name in names}
    return dataclasses.replace(config, sections=kept)


def from_dict(tree: Mapping[str, Any], sections: Sections = NO_SECTIONS, where: str = "configuration") -> Config:
    """Inverse of `Config.to_dict`, for checkpoints: every key must be there and known, or StoreCorrupt names it."""
    given = flatten(tree)
    default = with_sections(Config(), sections)
    known = flatten(default.to_dict())
    missing, extra = sorted(set(known) - set(given)), sorted(set(given) - set(known))
    if missing or extra:
        raise StoreCorrupt(
            f"{where}: the configuration lacks {missing or 'nothing'} and has the unknown keys {extra or 'none'}; "
            "use the version of statevla that wrote it"
        )
    return replace(default, given)


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy with dotted keys changed. Raises UsageError on an unknown key or a value of the wrong type.

    ``training.learning_rate`` is also the rate of every system whose own is not among `changes`.
    """
    known = flatten(config.to_dict())
    for key in changes:
        if key not in known:
            raise UsageError(f"unknown configuration key {key!r}{_hint(key, known)}")
    wanted = dict(changes)
    if COMMON_RATE in changes:
        own = [key for key in known if key.endswith(f".{RATE}") and key not in changes]
        wanted.update(dict.fromkeys(own, changes[COMMON_RATE]))
    parts = {name: _rebuild(part, wanted, f"{name}.") for name, part in config.parts().items()}
    sections = {name: parts.pop(name) for name in config.sections}
    return Config(**parts, sections=sections)


EARLIER_NAMES: Final = {
    "model.width": "model.embed_dim",
    "model.depth": "model.encoder_depth",
    "model.chunk": "model.action_seq_len",
    "model.policy_depth": "model.policy_layers",
    "model.predictor_width": "training.phase1.temporal_predictor_hidden_dim",
    "training.grad_clip": "training.gradient_clip",
    "training.save_every_epochs": "training.save_interval",
    "training.log_every_steps": "training.log_interval",
    "training.phase1.epochs": "training.phase1.num_epochs",
    "training.phase1.lr": "training.phase1.learning_rate",
    "training.phase1.ema_start": "training.ema_momentum",
    "training.phase2.epochs": "training.phase2.num_epochs",
    "training.phase2.lr": "training.phase2.learning_rate",
}
"""Names that keys had in checkpoints of formats 1 and 2 and in the scripts of that time: for hints only."""


def _hint(key: str, known: Mapping[str, Any]) -> str:
    section, _, name = key.rpartition(".")
    owners = [other.rpartition(".")[0] for other in known if other.rpartition(".")[2] == name]
    if owners:
        return f": {name} is an option of {owners[0]}, not of {section or 'the top'}; did you mean {owners[0]}.{name}?"
    if key in EARLIER_NAMES:
        return f"; it is {EARLIER_NAMES[key]!r} now"
    near = [other for other in known if _initials(other) == key]  # lr, wd: nearer than what is spelled alike
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def _initials(key: str) -> str:
    """training.learning_rate -> training.lr"""
    section, _, name = key.rpartition(".")
    return f"{section}.{''.join(word[:1] for word in name.split('_'))}"


def _rebuild(node: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(type(node))
    values: dict[str, Any] = {}
    for item in dataclasses.fields(node):
        key, old = prefix + item.name, getattr(node, item.name)
        if dataclasses.is_dataclass(old):
            values[item.name] = _rebuild(old, changes, key + ".")
        elif key in changes:
            values[item.name] = _coerce(key, changes[key], hints[item.name])
        else:
            values[item.name] = old
    return type(node)(**values)


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """Accept exactly the annotated type; YAML's ``1e-4`` (a string) and integers count as floats."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) in allowed:
        return value
    names = " or ".join(getattr(a, "__name__", str(a)) for a in allowed)
    raise UsageError(f"{key}: expected {names}, got {value!r}")
