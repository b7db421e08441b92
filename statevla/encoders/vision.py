"""The frozen vision backbones by name, the one that a configuration asks for, and what of it a checkpoint records.

A new backbone is one file beside this one and one row here. Loading one imports what it needs, and not before.
"""

from collections.abc import Callable
from typing import Any, Final

import torch

from statevla.config import ModelConfig
from statevla.encoders.backbone import FrozenVision
from stores.errors import StaleKey, UsageError

CONV = "conv"
"""``model.vision`` of patch convolutions, which are trained and need no backbone."""


def load_siglip_backbone(model: str | None) -> FrozenVision:
    """SigLIP's vision tower (see `statevla/encoders/siglip.py`)."""
    from statevla.encoders.siglip import DEFAULT_MODEL, load_siglip

    return load_siglip(model or DEFAULT_MODEL)


def load_dinov2_backbone(model: str | None) -> FrozenVision:
    """DINOv2's vision tower (see `statevla/encoders/dinov2.py`)."""
    from statevla.encoders.dinov2 import DEFAULT_MODEL, load_dinov2

    return load_dinov2(model or DEFAULT_MODEL)


VISION: Final[dict[str, Callable[[str | None], FrozenVision]]] = {
    "siglip": load_siglip_backbone,
    "dinov2": load_dinov2_backbone,
}
"""By the name that ``model.vision`` and ``--encoder`` take, beside ``conv``; of the weights' name or folder. A model's
``model_type`` begins with the name of its row."""


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
