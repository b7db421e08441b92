"""What a frozen tower was trained to see, made on its device as its image processor makes it on the CPU.

Image processors resize with Pillow, which works in two passes, along rows and then along columns, with weights of 22
binary places, and rounds to whole levels after each. Both passes are matrix products here, of the same whole numbers,
which float64 holds exactly: the levels are Pillow's. Of pictures that are not square, Pillow 13 sometimes takes the
columns first; then a level differs by one, and by more where bicubic interpolation overshoots the range and is clipped
between the passes, at edges of black and white.

Legend: B images, H, W rows and columns, S the tower's input side.
"""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from stores.errors import UsageError

RESAMPLE: Final = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers, as in preprocessor_config.json."""
SUPPORT: Final = {"bilinear": 1.0, "bicubic": 2.0}
CUBIC: Final = -0.5
"""Pillow's bicubic (Keys 1981)."""
UNIT: Final = 2**22
"""A weight of one."""


@dataclass(frozen=True)
class Preprocessing:
    """Interpolation, per-channel mean and std of pixels / 255, and the size.

    crop: None stretches to a square of `size`; otherwise the shorter side becomes `size`, and the middle square of
    `crop` is taken.
    """

    size: int
    resample: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: int | None = None

    @property
    def side(self) -> int:
        """S."""
        return self.size if self.crop is None else self.crop


def affine(how: Preprocessing) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """Mean and std of pixels in [0, 255]."""
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
    return mean, std


def resize(images: UInt8[Tensor, "B H W 3"], how: Preprocessing) -> Float[Tensor, "B 3 S S"]:
    """Whole levels in [0, 255] at the tower's size."""
    pixels = images.permute(0, 3, 1, 2).to(torch.float64, memory_format=torch.contiguous_format)
    height, width = pixels.shape[-2:]
    tall, wide = _target(height, width, how)
    with torch.autocast(pixels.device.type, enabled=False):
        if wide != width:
            pixels = _levels(pixels @ weights(width, wide, how.resample, pixels.device).T)
        if tall != height:
            pixels = _levels(weights(height, tall, how.resample, pixels.device) @ pixels)
    pixels = pixels.float()
    if how.crop is None:
        return pixels
    top, left = (tall - how.crop) // 2, (wide - how.crop) // 2
    return pixels[..., top : top + how.crop, left : left + how.crop]


def _target(height: int, width: int, how: Preprocessing) -> tuple[int, int]:
    if how.crop is None:
        return how.size, how.size
    short, long = min(height, width), max(height, width)
    longer = int(how.size * long / short)
    return (how.size, longer) if height <= width else (longer, how.size)


def _levels(values: Tensor) -> Tensor:
    return values.add_(UNIT / 2).div_(UNIT).floor_().clamp_(0, 255)


@functools.lru_cache(maxsize=32)
def weights(size: int, wanted: int, resample: str, device: torch.device) -> Float64[Tensor, "S N"]:
    """What each of `wanted` pixels takes of `size` ones, of `UNIT`: Pillow's filter, widened where it shrinks."""
    scale = size / wanted
    widened = max(scale, 1.0)
    support = SUPPORT[resample] * widened
    found = torch.zeros(wanted, size, dtype=torch.float64)
    for i in range(wanted):
        centre = (i + 0.5) * scale
        low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), size)
        row = torch.tensor(
            [_filter((x - centre + 0.5) / widened, resample) for x in range(low, high)], dtype=torch.float64
        )
        found[i, low:high] = row / row.sum()
    return (found * UNIT + 0.5 * found.sign()).trunc().to(device)


def _filter(x: float, resample: str) -> float:
    x = abs(x)
    if resample == "bilinear":
        return max(1.0 - x, 0.0)
    if x < 1:
        return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * CUBIC if x < 2 else 0.0


def read_preprocessing(path: Path) -> Preprocessing:
    """Parse a ``preprocessor_config.json``. Raises UsageError naming the key that is missing or not as expected."""
    fields = json.loads(path.read_text())
    missing = [key for key in ("size", "resample", "image_mean", "image_std") if key not in fields]
    if missing:
        raise UsageError(f"{path.name}: keys {missing} are missing; without them the tower's input is not known")
    off = [key for key in ("do_resize", "do_rescale", "do_normalize") if fields.get(key, True) is not True]
    if off or not math.isclose(fields.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise UsageError(f"{path.name}: expected pixels resized, divided by 255 and normalized, got {off or fields}")
    size, crop = _size(path, fields)
    if fields["resample"] not in RESAMPLE:
        raise UsageError(f"{path.name}: expected resample in {sorted(RESAMPLE)}, got {fields['resample']}")
    mean, std = (tuple(float(value) for value in fields[key]) for key in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UsageError(f"{path.name}: expected three means and three positive stds, got {mean} and {std}")
    return Preprocessing(size, RESAMPLE[fields["resample"]], mean, std, crop)


def _size(path: Path, fields: dict[str, Any]) -> tuple[int, int | None]:
    size, crop = fields["size"], fields.get("crop_size") if fields.get("do_center_crop") else None
    if isinstance(size, dict) and "shortest_edge" in size:
        sides = crop if isinstance(crop, dict) else {"height": crop, "width": crop}
        if not sides["height"] or sides["height"] != sides["width"] or sides["height"] > size["shortest_edge"]:
            raise UsageError(f"{path.name}: expected a square crop_size within size {size}, got {crop}")
        return int(size["shortest_edge"]), int(sides["height"])
    height, width = (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
    if height != width or crop is not None:
        raise UsageError(f"{path.name}: expected a square size, or a shortest_edge with a crop, got {size} and {crop}")
    return int(height), None
