"""Frozen configuration: presets in Python, YAML and ``--set`` with the same keys, unknown key = error."""

from statevla.config.load import flatten, from_dict, load_config, replace
from statevla.config.presets import PRESETS
from statevla.config.schema import Config, DataConfig, ModelConfig, Phase1Config, Phase2Config, TrainingConfig

__all__ = [
    "PRESETS",
    "Config",
    "DataConfig",
    "ModelConfig",
    "Phase1Config",
    "Phase2Config",
    "TrainingConfig",
    "flatten",
    "from_dict",
    "load_config",
    "replace",
]
