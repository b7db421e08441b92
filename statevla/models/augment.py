"""Augmentation of camera pictures on the training device: small shifts and colour, the same for a row's every frame.

The numbers are drawn from a generator that the caller seeds by (seed, step), on the CPU, for the whole global batch:
the same on every device and for any number of ranks, and nothing of a resumed run needs to be saved. Now, next and goal
of a row share one draw a camera, so that what moved between them is what the robot moved.

Legend: B batch, C cameras, H height, W width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

REFERENCE_SIDE = 128
"""`shift` is in pixels of a picture of this side; others are shifted by the same share."""
GREY = (0.299, 0.587, 0.114)
"""ITU-R 601 luma, as PIL's."""


class Draws(NamedTuple):
    """shift: of rows and columns in shares of the side. colour: brightness, contrast, saturation, 1 changes nothing."""

    shift: Float[Tensor, "B C 2"]
    colour: Float[Tensor, "B C 3"]

    def rows(self, part: slice) -> "Draws":
        """Those of some rows of the batch."""
        return Draws(self.shift[part], self.colour[part])


def draw(rows: int, cameras: int, shift: float, colour: float, generator: torch.Generator) -> Draws:
    """shift: largest, in pixels of 128. colour: largest change of each factor. Both uniform."""
    places = torch.rand(rows, cameras, 2, generator=generator) * 2 - 1
    factors = torch.rand(rows, cameras, 3, generator=generator) * 2 - 1
    return Draws(places * (shift / REFERENCE_SIDE), 1 + colour * factors)


def augment(images: UInt8[Tensor, "B C H W 3"], draws: Draws) -> UInt8[Tensor, "B C H W 3"]:
    """Shift by whole pixels, edges repeated, then brightness, contrast, saturation; draws that change nothing do not.

    draws: on the CPU, where asking whether they change anything waits for no device.
    """
    if draws.shift.any():
        images = shifted(images, draws.shift.to(images.device, non_blocking=True))
    if (draws.colour != 1).any():
        images = coloured(images, draws.colour.to(images.device, non_blocking=True))
    return images


def shifted(images: UInt8[Tensor, "B C H W 3"], shift: Float[Tensor, "B C 2"]) -> UInt8[Tensor, "B C H W 3"]:
    """Each camera of each row by its own whole number of pixels."""
    batch, cameras, height, width, _ = images.shape
    sides = torch.tensor([height, width], device=images.device)
    moved = (shift * sides).round().long()
    row = _places(height, moved[..., 0])
    column = _places(width, moved[..., 1])
    b = torch.arange(batch, device=images.device)[:, None, None, None]
    c = torch.arange(cameras, device=images.device)[None, :, None, None]
    return images[b, c, row[..., :, None], column[..., None, :]]


def _places(side: int, moved: Int64[Tensor, "B C"]) -> Int64[Tensor, "B C S"]:
    """Where each line of the shifted picture is taken from."""
    lines = torch.arange(side, device=moved.device)
    return (lines + moved[..., None]).clamp(0, side - 1)


def coloured(images: UInt8[Tensor, "B C H W 3"], colour: Float[Tensor, "B C 3"]) -> UInt8[Tensor, "B C H W 3"]:
    """Brightness: x f. Contrast: away from the picture's mean grey. Saturation: away from each pixel's grey."""
    brightness, contrast, saturation = colour[:, :, None, None, None, :].unbind(-1)
    luma = torch.tensor(GREY, device=images.device)
    pixels = (images.float() * brightness).clamp(0, 255)
    mean = (pixels @ luma).mean(dim=(-1, -2))[..., None, None, None]
    pixels = (mean + contrast * (pixels - mean)).clamp(0, 255)
    grey = (pixels @ luma).unsqueeze(-1)
    pixels = (grey + saturation * (pixels - grey)).clamp(0, 255)
    return pixels.round().to(torch.uint8)
