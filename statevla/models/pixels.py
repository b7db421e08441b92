"""Pictures as the networks that are trained on them take them.

Legend: B batch, H height, W width, S side of the resized picture.
"""

from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

PIXEL_MEAN: Final = 0.5
PIXEL_STD: Final = 0.5
"""Pixels in [-1, 1], as SigLIP has them."""


def dtype_of(module: nn.Module) -> torch.dtype:
    """What a module of matrices computes in: float32, or bfloat16 in a policy that was converted for acting."""
    return next(module.parameters()).dtype


def prepare_pixels(images: UInt8[Tensor, "B H W 3"], size: int) -> Float[Tensor, "B 3 S S"]:
    """RGB in [0, 255] -> [-1, 1], bilinear with antialiasing to `size` where it differs.

    The two commute; scaling comes first because pictures are mostly made larger, and planes are resized faster than
    interleaved colours.
    """
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    pixels.mul_(1 / (255 * PIXEL_STD)).sub_(PIXEL_MEAN / PIXEL_STD)  # in place: it is a copy already
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return pixels
