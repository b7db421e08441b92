"""What a frozen vision backbone is. Those that there are: `statevla.encoders.vision.VISION`.

Legend: B images, H, W rows and columns, P patches, V feature width.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@runtime_checkable
class FrozenVision(Protocol):
    """Not counted, not trained, not in a checkpoint: of it only name and revision (which weights) are."""

    name: str
    revision: str

    def patch_features(self, images: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B P V"]:
        """Upright RGB frames in [0, 255] -> features of every patch; resizing and normalizing are its own business."""
        ...

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "FrozenVision":
        """Move it; returns itself."""
        ...
