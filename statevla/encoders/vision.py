"""The frozen vision backbone that a configuration asks for, and what of it a checkpoint records."""

from typing import Any

import torch

from statevla.config import ModelConfig
from statevla.encoders.backbone import FrozenVision
from statevla.encoders.table import VISION
from stores.errors import StaleKey, UsageError

CONV = "conv"
"""``model.vision`` of patch convolutions, which are trained and need no backbone."""


def load_backbone(config: ModelConfig, device: torch.device | str = "cpu") -> FrozenVision | None:
    """None for ``conv``, which needs none. Raises UsageError for an unknown one and when the weights cannot be had."""
    if config.vision == CONV:
        return None
    if config.vision not in VISION:
        raise UsageError(f"model.vision: expected one of {', '.join([CONV, *VISION])}, got {config.vision!r}")
    return VISION[config.vision](config.vision_model).to(device)


def identity(backbone: FrozenVision | None) -> dict[str, Any] | None:
    """Name and revision, for a checkpoint."""
    return None if backbone is None else {"model": backbone.name, "revision": backbone.revision}


def require_identity(backbone: FrozenVision | None, recorded: dict[str, Any] | None, where: str) -> None:
    """Raise StaleKey when the backbone at hand is not the one that a checkpoint was trained with."""
    here = identity(backbone)
    if here is None and recorded is None:
        return
    if here is None or recorded is None or here["revision"] != recorded["revision"]:
        raise StaleKey(f"{where}: trained with the vision backbone {recorded}, here is {here}; use the same weights")
