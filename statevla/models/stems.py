"""Pixels to feature maps and patches, trained with the rest of a policy.

Legend: B batch, H height, W width, S side of the resized picture, P patches, D width, G side of the feature map.
"""

from typing import Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from statevla.models.pixels import PIXEL_MEAN, PIXEL_STD, dtype_of, prepare_pixels
from stores.errors import UsageError

GROUPS = 8
RESNET_SHRINKS: Final = 32
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
"""Of the pictures that released ResNets have seen."""


def stages_of(key: str, text: str) -> tuple[int, ...]:
    """``16-32-64`` -> (16, 32, 64). Raises UsageError naming `key` when it is not widths of 8, 16, … channels."""
    parts = text.split("-")
    if not all(part.isdigit() and int(part) > 0 and int(part) % GROUPS == 0 for part in parts):
        raise UsageError(f"{key}: expected widths that are multiples of {GROUPS}, such as 16-32-64, got {text!r}")
    return tuple(int(part) for part in parts)


class Stage(nn.Module):
    """Conv 3 × 3 with stride 2, GroupNorm."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(GROUPS, width)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D G G"]:
        out: Tensor = self.norm(self.conv(x))
        return out


class ConvStem(nn.Module):
    """Stages with ReLU, each half as large as the one before, then 1 × 1 to `width`.

    section: of the sizes in the configuration, for errors.
    """

    def __init__(
        self, size: int, widths: tuple[int, ...], width: int, channels: int = 3, section: str = "model"
    ) -> None:
        super().__init__()
        if size % 2 ** len(widths):
            raise UsageError(
                f"{section}.image_size: {size} is not a multiple of {2 ** len(widths)}, {len(widths)} stages halve it"
            )
        self.size, self.side = size, size // 2 ** len(widths)
        self.stages = nn.ModuleList(Stage(a, b) for a, b in zip((channels, *widths), widths, strict=False))
        self.out = nn.Conv2d(widths[-1], width, 1)

    def forward(self, images: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B P D"]:
        """Features of one camera, the map row by row, P = side²."""
        return self.of_pixels(prepare_pixels(images, self.size))

    def of_pixels(self, pixels: Float[Tensor, "B C S S"]) -> Float[Tensor, "B P D"]:
        """From `prepare_pixels`."""
        x = pixels.to(dtype_of(self))
        for stage in self.stages:
            x = stage(x).relu()
        out: Tensor = self.out(x).flatten(2).transpose(1, 2)
        return out


class ResNetStem(nn.Module):
    """The last map of a ResNet `trunk` (of `transformers`), 1/32 of the side, then 1 × 1 to `width`.

    Batch norms stand still on their kept statistics, so that no row sees another; their scales and shifts learn.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, size: int, channels: int, width: int, section: str = "model") -> None:
        super().__init__()
        if size % RESNET_SHRINKS:
            raise UsageError(
                f"{section}.image_size: {size} is not a multiple of {RESNET_SHRINKS}, by which a ResNet shrinks it"
            )
        self.size, self.side = size, size // RESNET_SHRINKS
        self.trunk, self.out = trunk.eval(), nn.Conv2d(channels, width, 1)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B P D"]:
        """Features of one camera, the map row by row, P = side²."""
        pixels = (prepare_pixels(images, self.size) * PIXEL_STD + PIXEL_MEAN - self.mean) / self.std
        seen = self.trunk(pixel_values=pixels.to(dtype_of(self.out))).last_hidden_state
        out: Tensor = self.out(seen).flatten(2).transpose(1, 2)
        return out

    def train(self, mode: bool = True) -> "ResNetStem":
        """But for the batch norms."""
        super().train(mode)
        self.trunk.eval()
        return self


class PatchStem(nn.Module):
    """One convolution whose stride is its kernel: P = (size / patch)² patches."""

    def __init__(self, size: int, patch: int, width: int, channels: int = 3, section: str = "model") -> None:
        super().__init__()
        if size % patch:
            raise UsageError(f"{section}.image_size: {size} is not a multiple of {section}.patch_size {patch}")
        self.conv = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, pixels: Float[Tensor, "B C S S"]) -> Float[Tensor, "B P D"]:
        """From `prepare_pixels`."""
        out: Tensor = self.conv(pixels.to(dtype_of(self))).flatten(2).transpose(1, 2)
        return out


class ConvPatchStem(ConvStem):
    """In the place of a `PatchStem`: as many stages as make a patch one place, so that a patch sees a little of its
    neighbours (early convolutions: Xiao et al., 2021, arXiv 2106.14881).
    """

    def __init__(self, size: int, patch: int, width: int, channels: int = 3, section: str = "model") -> None:
        count = patch.bit_length() - 1
        if size % patch or patch < 2 or patch != 2**count:
            raise UsageError(
                f"{section}.patch_size: a stem of convolutions halves; expected 2, 4, 8, … that divides {size}, got "
                f"{patch}"
            )
        widths = tuple(max(GROUPS, width // 2**left // GROUPS * GROUPS) for left in reversed(range(count)))
        super().__init__(size, widths, width, channels, section)

    def forward(self, pixels: Float[Tensor, "B C S S"]) -> Float[Tensor, "B P D"]:
        """From `prepare_pixels`."""
        return self.of_pixels(pixels)


PATCH_STEMS: Final = {"patch": PatchStem, "conv": ConvPatchStem}
"""By the name of the option ``stem``."""
