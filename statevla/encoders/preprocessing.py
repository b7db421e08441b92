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
MAX_SIDE: Final = 1 << 14


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
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error}); download the model again") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{path}: expected an object, got {str(fields)[:80]}; download the model again")
    missing = [key for key in ("size", "resample", "image_mean", "image_std") if key not in fields]
    if missing:
        raise UsageError(f"{path}: keys {missing} are missing; without them the tower's input is not known")
    off = [key for key in ("do_resize", "do_rescale", "do_normalize") if fields.get(key, True) is not True]
    scale = fields.get("rescale_factor", 1 / 255)
    if off or not _is_number(scale) or not math.isclose(scale, 1 / 255, rel_tol=1e-6):
        got = f"{off} off" if off else f"rescale_factor {scale!r}"
        raise UsageError(f"{path}: expected pixels resized, divided by 255 and normalized, got {got}")
    size, crop = _size(path, fields)
    resample = fields["resample"]
    if not isinstance(resample, int) or resample not in RESAMPLE:
        raise UsageError(f"{path}: expected resample in {sorted(RESAMPLE)}, got {resample!r}")
    mean, std = (_three(path, fields, key) for key in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise UsageError(f"{path}: image_std: expected three positive stds, got {list(std)}")
    return Preprocessing(size, RESAMPLE[resample], mean, std, crop)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _three(path: Path, fields: dict[str, Any], key: str) -> tuple[float, float, float]:
    value = fields[key]
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_number, value)):
        raise UsageError(f"{path}: {key}: expected three numbers, one a channel, got {str(value)[:80]}")
    return float(value[0]), float(value[1]), float(value[2])


def _size(path: Path, fields: dict[str, Any]) -> tuple[int, int | None]:
    """Size and crop."""
    size, crop = _sides(fields["size"]), _sides(fields.get("crop_size")) if fields.get("do_center_crop") else None
    if set(size) == {"shortest_edge"}:
        side = size["shortest_edge"]
        if crop is None or set(crop) != {"height", "width"} or not crop["height"] == crop["width"] <= side:
            raise UsageError(
                f"{path}: expected a square crop_size within size {fields['size']}, got {fields.get('crop_size')}"
            )
        return side, crop["height"]
    if set(size) != {"height", "width"} or size["height"] != size["width"] or fields.get("do_center_crop"):
        raise UsageError(
            f"{path}: size: expected a square {{height, width}}, or a shortest_edge with a crop, got {fields['size']} "
            f"and crop_size {fields.get('crop_size')}"
        )
    return size["height"], None


def _sides(value: Any) -> dict[str, int]:
    """A size as it may be written, a number or an object, without what is null; empty where it is neither."""
    named = value if isinstance(value, dict) else {"height": value, "width": value}
    found = {str(name): side for name, side in named.items() if side is not None}
    return found if all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in found.values()) else {}
