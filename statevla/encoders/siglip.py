"""A frozen SigLIP vision tower (Zhai et al. 2023); ViT-B/16 at 224 pixels gives 196 patches of 768 numbers."""

from typing import Any, Final

import torch
from torch import nn

from statevla.encoders.tower import FrozenTower, load_tower
from stores.errors import UsageError

DEFAULT_MODEL: Final = "google/siglip-base-patch16-224"


def load_siglip(model: str = DEFAULT_MODEL) -> FrozenTower:
    """Load the tower and its preprocessing by `from_pretrained` of a hub name or a local folder, frozen, float32.

    The tower's pooling head, whose output is not used, is left out: in bfloat16 on a CPU it would take most of the
    time. Raises UsageError when the weights cannot be had, are incomplete, or take other pictures than are prepared.
    """
    from transformers import SiglipVisionModel

    def load(local: bool) -> tuple[nn.Module, dict[str, Any]]:
        found: tuple[nn.Module, dict[str, Any]] = SiglipVisionModel.from_pretrained(
            model, dtype=torch.float32, use_safetensors=True, output_loading_info=True, vision_use_head=False,
            local_files_only=local,
        )  # fmt: skip
        return found

    tower, preprocessing, revision = load_tower("siglip", model, load)
    takes: Any = tower.config
    if preprocessing.side != takes.image_size:
        raise UsageError(
            f"{model}: preprocessor_config.json resizes to {preprocessing.side}, the tower takes {takes.image_size}"
        )
    return FrozenTower(tower, preprocessing, model, revision)
