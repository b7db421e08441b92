"""Frozen configuration: presets in Python, YAML and ``--set`` with the same keys, unknown key = error.

Keys keep the names of the StateVLA documents: ``data.*``, ``model.*``, ``training.*``, ``training.phase1.*``,
``training.phase2.*``.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from stores.errors import UsageError
from stores.schema import CHUNK


@dataclass(frozen=True)
class DataConfig:
    """What to stream and how. `lanes` and `block_segments` fix the sample order (see `statevla/data/order.py`)."""

    store: str | None = None
    lanes: int = 8
    block_segments: int = 32
    loader_threads: int = 2
    cache_gib: float = 2.0
    """Keep a split's decoded frames in memory when they all fit in this many GiB; 0: always stream."""
    shuffle_instructions: bool = False
    """Control experiment: pair every episode with another task's instruction."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of every part; defaults are the design's base model."""

    vision: str = "conv"
    vision_model: str = "google/siglip-base-patch16-224"
    vision_width: int = 768
    """Feature width of `vision_model`."""
    image_size: int = 224
    patch_size: int = 16
    embed_dim: int = 256
    encoder_depth: int = 12
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    predictor_width: int = 512
    action_seq_len: int = CHUNK
    policy_layers: int = 3
    policy_d_state: int = 64
    policy_mlp: int = 0
    """Hidden width of a gated MLP in each policy block; 0 for none."""
    policy_context: str = "z"
    """What the policy sees: ``z``, or ``z+tokens`` (the frozen encoder's token outputs too)."""
    gripper_width: int = 256
    euler_steps: int = 4
    mamba_backend: str = "auto"

    @property
    def patches(self) -> int:
        """Patch tokens of one camera."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class Phase1Config:
    """Temporal JEPA."""

    num_epochs: int = 1000
    learning_rate: float = 1e-4
    variance_weight: float = 1.0
    covariance_weight: float = 0.04
    ema_momentum: float = 0.996
    inverse_dynamics_weight: float = 0.0
    """Of an option: foretell actions from this state and the target's next one. 0 leaves it out."""
    inverse_dynamics_horizon: int = 1
    """How many actions: 1 for the one between the two states, up to ``model.action_seq_len``."""


@dataclass(frozen=True)
class Phase2Config:
    """Flow-matching policy on the frozen state."""

    num_epochs: int = 1000
    learning_rate: float = 5e-5
    gripper_weight: float = 1.0


@dataclass(frozen=True)
class TrainingConfig:
    """The loop. `max_steps` bounds a run (None: epochs decide)."""

    seed: int = 0
    batch_size: int = 64
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0
    max_steps: int | None = None
    save_interval: int = 100
    log_interval: int = 10
    validate_every_steps: int | None = None
    """None: at the end of every epoch."""
    device: str = "auto"
    precision: str = "auto"
    """``fp32``, ``bf16``, or auto: bf16 autocast on CUDA, fp32 elsewhere."""
    torch_threads: int | None = None
    phase1: Phase1Config = field(default_factory=Phase1Config)
    phase2: Phase2Config = field(default_factory=Phase2Config)


@dataclass(frozen=True)
class Config:
    """Everything a training run needs; equal configs give equal runs."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        check(self)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict with the YAML keys."""
        return dataclasses.asdict(self)


CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "model.vision": ("conv", "siglip"),
    "model.policy_context": ("z", "z+tokens"),
    "model.mamba_backend": ("auto", "cuda", "triton", "cpu", "loop", "reference"),
    "training.schedule": ("constant", "cosine"),
    "training.precision": ("auto", "fp32", "bf16"),
}

ZERO_IS_FINE: Final = {
    "data.cache_gib",
    "model.policy_mlp",
    "training.seed",
    "training.weight_decay",
    "training.warmup_steps",
    "training.phase1.variance_weight",
    "training.phase1.covariance_weight",
    "training.phase1.inverse_dynamics_weight",
    "training.phase1.ema_momentum",
    "training.phase2.gripper_weight",
}


def check(config: Config) -> None:
    """Raise UsageError naming the key when a value is outside its range."""
    values = flatten(config.to_dict())
    for key, allowed in CHOICES.items():
        if values[key] not in allowed:
            raise UsageError(f"{key}: expected one of {', '.join(allowed)}, got {values[key]!r}")
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value < 0 or (value == 0 and key not in ZERO_IS_FINE):
            raise UsageError(
                f"{key}: expected a {'non-negative' if key in ZERO_IS_FINE else 'positive'} number, got {value}"
            )
    model = config.model
    if model.image_size % model.patch_size:
        raise UsageError(
            f"model.image_size: {model.image_size} is not a multiple of model.patch_size {model.patch_size}"
        )
    horizon = config.training.phase1.inverse_dynamics_horizon
    if horizon > model.action_seq_len:
        raise UsageError(
            f"training.phase1.inverse_dynamics_horizon: {horizon} is more than "
            f"model.action_seq_len {model.action_seq_len}"
        )
    if model.embed_dim % 4:
        raise UsageError(f"model.width: {model.embed_dim} is not a multiple of 4")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


PRESETS: Final[dict[str, Config]] = {
    "base": Config(),
    "original": Config(model=ModelConfig(policy_mlp=256)),
    "small": Config(
        model=ModelConfig(
            image_size=128, embed_dim=192, encoder_depth=6, predictor_width=384, policy_d_state=32, gripper_width=192
        )
    ),
    "tiny": Config(
        model=ModelConfig(
            image_size=32,
            patch_size=8,
            embed_dim=64,
            encoder_depth=2,
            predictor_width=256,
            policy_layers=2,
            policy_d_state=16,
            gripper_width=64,
        )
    ),
}


def load_config(preset: str = "base", file: Path | None = None, overrides: tuple[str, ...] = ()) -> Config:
    """Preset, then the YAML file's keys, then ``a.b=c`` overrides. Raises UsageError with the nearest key."""
    if preset not in PRESETS:
        raise UsageError(f"preset {preset!r}: expected one of {', '.join(PRESETS)}")
    changes: dict[str, Any] = {}
    if file is not None:
        if not file.is_file():
            raise UsageError(f"{file}: no such configuration file")
        tree = _parse(file.read_text(), str(file))
        if not isinstance(tree, dict):
            raise UsageError(f"{file}: expected a mapping of data, model and training, got {type(tree).__name__}")
        changes.update(flatten(tree))
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator:
            raise UsageError(f"--set {item!r}: expected KEY=VALUE, for example training.batch_size=32")
        changes[key] = _parse(value, f"--set {item!r}")
    return replace(PRESETS[preset], changes)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not plain YAML: {error}") from error


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Inverse of `Config.to_dict`, for checkpoints; every key must be known."""
    return replace(Config(), flatten(tree))


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy with dotted keys changed. Raises UsageError on an unknown key or a value of the wrong type."""
    known = flatten(config.to_dict())
    for key in changes:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"unknown configuration key {key!r}{hint}")
    return typing.cast(Config, _rebuild(config, changes, ""))


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
