"""Augmentation of camera pictures on the training device: small shifts and colour, the same for a row's every frame.

The numbers are drawn from a generator that the caller seeds by (seed, step), on the CPU, for the whole global batch:
the same on every device and for any number of ranks, and nothing of a resumed run needs to be saved. Now, next and goal
of a row share one draw a camera, so that what moved between them is what the robot moved.

Legend: B batch, C cameras, H height, W width.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

REFERENCE_SIDE = 128
"""`shift` is in pixels of a picture of this side; others are shifted by the same share."""
AFFINE_DEGREES, AFFINE_SHIFT, AFFINE_SCALE = 5.0, 0.05, 0.05
"""The documents' augmentation, largest in each direction. Off by default: actions are in the frame of fixed cameras."""
GREY = (0.299, 0.587, 0.114)
"""ITU-R 601 luma, as PIL's."""


class Draws(NamedTuple):
    """shift: of rows and columns in shares of the side. colour: brightness, contrast, saturation, 1 changes nothing.
    affine: angle in radians, shift of columns and rows in shares of the side, and what the scale differs from 1.
    """

    shift: Float[Tensor, "B C 2"]
    colour: Float[Tensor, "B C 3"]
    affine: Float[Tensor, "B C 4"]

    def rows(self, part: slice | Int64[Tensor, " R"]) -> "Draws":
        """Those of some rows of the batch."""
        return Draws(self.shift[part], self.colour[part], self.affine[part])

    def camera(self, number: int) -> "Draws":
        """Those of one camera."""
        return Draws(*(each[:, number : number + 1] for each in self))


def draw(
    rows: int, cameras: int, shift: float, colour: float, generator: torch.Generator, affine: bool = False
) -> Draws:
    """shift: largest, in pixels of 128. colour: largest change of each factor. affine: the documents' ranges. All
    uniform.
    """
    places = torch.rand(rows, cameras, 2, generator=generator) * 2 - 1
    factors = torch.rand(rows, cameras, 3, generator=generator) * 2 - 1
    around = torch.rand(rows, cameras, 4, generator=generator) * 2 - 1
    largest = torch.tensor([math.radians(AFFINE_DEGREES), AFFINE_SHIFT, AFFINE_SHIFT, AFFINE_SCALE])
    return Draws(places * (shift / REFERENCE_SIDE), 1 + colour * factors, around * largest * float(affine))


def augment(images: UInt8[Tensor, "B C H W 3"], draws: Draws) -> UInt8[Tensor, "B C H W 3"]:
    """Affine, shift by whole pixels, edges repeated, then brightness, contrast, saturation.

    Draws that change nothing leave every byte as it is. draws: on the CPU, where asking whether they change anything
    waits for no device.
    """
    if draws.affine.any():
        images = turned(images, draws.affine.to(images.device, non_blocking=True))
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


def turned(images: UInt8[Tensor, "B C H W 3"], affine: Float[Tensor, "B C 4"]) -> UInt8[Tensor, "B C H W 3"]:
    """Rotated around the centre, scaled and shifted, bilinear, edges repeated.

    Square pixels are kept square in a picture that is not.
    """
    height, width = images.shape[2:4]
    angle, right, down, scale = affine.flatten(0, 1).unbind(-1)
    cos, sin, ratio = angle.cos() / (1 + scale), angle.sin() / (1 + scale), width / height
    rows = torch.stack(
        [torch.stack([cos, -sin / ratio, -2 * right], dim=-1), torch.stack([sin * ratio, cos, -2 * down], dim=-1)],
        dim=1,
    )
    pixels = images.flatten(0, 1).permute(0, 3, 1, 2).float()
    grid = F.affine_grid(rows, list(pixels.shape), align_corners=False)
    out = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).reshape(images.shape)


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
