"""The frozen vision backbone that a configuration asks for, and what of it a checkpoint records."""

from typing import Any

import torch

from statevla.config import ModelConfig
from statevla.encoders.siglip import SiglipBackbone, load_siglip
from stores.errors import StaleKey


def load_backbone(config: ModelConfig, device: torch.device | str = "cpu") -> SiglipBackbone | None:
    """None for ``conv``, which needs none. Raises UsageError when the weights cannot be had."""
    return None if config.vision == "conv" else load_siglip(config.vision_model).to(device)


def identity(backbone: SiglipBackbone | None) -> dict[str, Any] | None:
    """Name and revision, for a checkpoint."""
    return None if backbone is None else {"model": backbone.name, "revision": backbone.revision}


def require_identity(backbone: SiglipBackbone | None, recorded: dict[str, Any] | None, where: str) -> None:
    """Raise StaleKey when the backbone at hand is not the one that a checkpoint was trained with."""
    here = identity(backbone)
    if here is None and recorded is None:
        return
    if here is None or recorded is None or here["revision"] != recorded["revision"]:
        raise StaleKey(f"{where}: trained with the vision backbone {recorded}, here is {here}; use the same weights")
