"""A frozen SigLIP vision tower: camera frames to patch features, with its own input size, mean and std.

Legend: B images, H, W rows and columns, S the tower's input side, P patches, V feature width (ViT-B/16: 196 and 768).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from statevla.encoders.clip import folder_revision
from statevla.encoders.hub import require_weights
from stores.errors import UsageError

DEFAULT_MODEL: Final = "google/siglip-base-patch16-224"
RESAMPLE: Final = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers, as in preprocessor_config.json."""


@dataclass(frozen=True)
class Preprocessing:
    """What the tower was trained to see: side S, interpolation, and per-channel mean and std of pixels / 255."""

    size: int
    resample: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class SiglipBackbone:
    """A frozen tower outside any module tree: no parameters to train, never in a checkpoint (name and revision are)."""

    def __init__(self, tower: nn.Module, preprocessing: Preprocessing, name: str, revision: str) -> None:
        self.tower = tower.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.name = name
        self.revision = revision
        self._mean, self._std = affine(preprocessing)

    @torch.no_grad()
    def patch_features(self, images: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B P V"]:
        """Upright RGB frames in [0, 255] -> the last hidden state of every patch, in the tower's dtype and device."""
        weight = next(self.tower.parameters())
        pixels = (resize(images.to(weight.device), self.preprocessing) - self._mean) / self._std
        features: Tensor = self.tower(pixel_values=pixels.to(weight.dtype)).last_hidden_state
        return features

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "SiglipBackbone":
        """Move the tower; returns itself."""
        self.tower.to(device=device, dtype=dtype)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self


def affine(how: Preprocessing) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """Mean and std of pixels in [0, 255]."""
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
    return mean, std


def resize(images: UInt8[Tensor, "B H W 3"], how: Preprocessing) -> Float[Tensor, "B 3 S S"]:
    """Pixels in [0, 255] at the tower's size, antialiased as PIL does."""
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    if pixels.shape[-2:] != (how.size, how.size):
        pixels = F.interpolate(pixels, (how.size, how.size), mode=how.resample, antialias=True, align_corners=False)
        pixels = pixels.clamp(0, 255)  # bicubic overshoots; PIL's uint8 cannot
    return pixels


def load_siglip(model: str = DEFAULT_MODEL) -> SiglipBackbone:
    """Load the tower and its preprocessing by `from_pretrained` of a hub name or a local folder, frozen, float32.

    The tower's pooling head, whose output is not used, is left out: in bfloat16 on a CPU it would take most of the
    time. Only safetensors weights are read. Raises UsageError when they cannot be had or are incomplete.
    """
    from transformers import SiglipVisionModel
    from transformers.utils import cached_file

    try:
        local = require_weights(model)
        settings = cached_file(model, "preprocessor_config.json", local_files_only=local)
        tower, info = SiglipVisionModel.from_pretrained(
            model, dtype=torch.float32, use_safetensors=True, output_loading_info=True, vision_use_head=False,
            local_files_only=local,
        )  # fmt: skip
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"model.vision siglip: no usable weights at {model!r} ({reason}). Connect to the network once, or set "
            "model.vision_model to a folder with a downloaded copy (safetensors), or use model.vision=conv"
        ) from error
    if info["missing_keys"]:
        raise UsageError(f"{model}: the checkpoint lacks vision weights {sorted(info['missing_keys'])[:4]}")
    preprocessing = read_preprocessing(Path(str(settings)))
    if preprocessing.size != tower.config.image_size:
        raise UsageError(
            f"{model}: preprocessor_config.json resizes to {preprocessing.size}, "
            f"the tower takes {tower.config.image_size}"
        )
    return SiglipBackbone(tower, preprocessing, model, revision(model, tower))


def read_preprocessing(path: Path) -> Preprocessing:
    """Parse a ``preprocessor_config.json``. Raises UsageError naming the key that is missing or not as expected."""
    fields = json.loads(path.read_text())
    missing = [key for key in ("size", "resample", "image_mean", "image_std") if key not in fields]
    if missing:
        raise UsageError(f"{path.name}: keys {missing} are missing; without them the tower's input is not known")
    size = fields["size"]
    height, width = (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
    if height != width or fields["resample"] not in RESAMPLE:
        raise UsageError(
            f"{path.name}: expected a square size and resample in {sorted(RESAMPLE)}, "
            f"got {size} and {fields['resample']}"
        )
    mean, std = (tuple(float(value) for value in fields[key]) for key in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UsageError(f"{path.name}: expected three means and three positive stds, got {mean} and {std}")
    return Preprocessing(int(height), RESAMPLE[fields["resample"]], mean, std)


def revision(model: str, tower: Any) -> str:
    """The hub's commit hash; for a folder the sha256 of its safetensors files."""
    if Path(model).is_dir():
        return folder_revision(Path(model))
    commit = getattr(tower.config, "_commit_hash", None)
    if not commit:
        raise UsageError(f"{model}: the hub gave no commit hash, so its features could not be told from another's")
    return str(commit)
