"""A frozen DINOv2 vision tower (Oquab et al. 2023), with or without registers; at 224 pixels 256 patches of 14 × 14."""

from typing import Any, Final

import torch
from torch import nn

from statevla.encoders.tower import FrozenTower, load_tower
from stores.errors import UsageError

DEFAULT_MODEL: Final = "facebook/dinov2-base"


def load_dinov2(model: str = DEFAULT_MODEL) -> FrozenTower:
    """Load the tower and its preprocessing by `from_pretrained` of a hub name or a local folder, frozen, float32.

    Features are the patches after the last norm; CLS and registers are left out. The tower fits its position embedding
    to the size that its preprocessing crops to. Raises UsageError as `load_siglip` does.
    """
    from transformers import AutoModel

    def load(local: bool) -> tuple[nn.Module, dict[str, Any]]:
        found: tuple[nn.Module, dict[str, Any]] = AutoModel.from_pretrained(
            model, dtype=torch.float32, use_safetensors=True, output_loading_info=True, local_files_only=local
        )
        return found

    tower, preprocessing, revision = load_tower("dinov2", model, load)
    config: Any = tower.config
    if not config.model_type.startswith("dinov2"):
        raise UsageError(f"{model}: expected a DINOv2 tower, got {config.model_type}")
    if preprocessing.side % config.patch_size:
        raise UsageError(f"{model}: pictures of {preprocessing.side} pixels are not patches of {config.patch_size}")
    return FrozenTower(tower, preprocessing, model, revision, prefix=1 + getattr(config, "num_register_tokens", 0))
