"""A frozen vision tower of `transformers`: camera frames to patch features, with its own input size, mean and std.

Legend: B images, H, W rows and columns, P patches, N tokens, V feature width (SigLIP ViT-B/16: 196,
196 and 768).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from statevla.encoders.clip import folder_revision
from statevla.encoders.hub import require_weights, usable
from statevla.encoders.preprocessing import Preprocessing, affine, read_preprocessing, resize
from stores.errors import UsageError


class FrozenTower:
    """Outside any module tree: no parameters to train, never in a checkpoint (name and revision are).

    prefix: tokens before the patches: the class token, then registers.
    """

    def __init__(
        self, tower: nn.Module, preprocessing: Preprocessing, name: str, revision: str, prefix: int = 0
    ) -> None:
        self.tower = tower.eval().requires_grad_(False)
        self.preprocessing, self.name, self.revision, self.prefix = preprocessing, name, revision, prefix
        self._mean, self._std = affine(preprocessing)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of the features."""
        return next(self.tower.parameters()).dtype

    def patch_features(self, images: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B P V"]:
        """Upright RGB frames in [0, 255] -> the last hidden state of every patch, in the tower's dtype and device."""
        return self.tokens(images)[:, self.prefix :]

    @torch.no_grad()
    def tokens(self, images: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B N V"]:
        """`patch_features` with the `prefix` tokens before them, the class token first."""
        weight = next(self.tower.parameters())
        pixels = (resize(images.to(weight.device), self.preprocessing) - self._mean) / self._std
        found: Tensor = self.tower(pixel_values=pixels.to(weight.dtype)).last_hidden_state
        return found

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "FrozenTower":
        """Move the tower; returns itself."""
        self.tower.to(device=device, dtype=dtype)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self


def load_tower(
    kind: str, model: str, load: Callable[[bool], tuple[nn.Module, dict[str, Any]]]
) -> tuple[nn.Module, Preprocessing, str]:
    """The tower, its preprocessing and its revision. load: given whether only local files may be asked for.

    Only safetensors weights are read. Raises UsageError when they cannot be had or are incomplete.
    """
    from transformers.utils import cached_file

    def unusable(reason: str) -> str:
        return (
            f"model.vision {kind}: no usable weights at {model!r} ({reason}). Connect to the network once, or name a "
            "folder with a downloaded copy (safetensors): model.vision_model=FOLDER, or --encoder FOLDER of `statevla "
            "features`; or use model.vision=conv, which needs none"
        )

    with usable(unusable):
        local = require_weights(model)
        settings = cached_file(model, "preprocessor_config.json", local_files_only=local)
        tower, info = load(local)
    if info["missing_keys"]:
        raise UsageError(f"{model}: the checkpoint lacks vision weights {sorted(info['missing_keys'])[:4]}")
    return tower, read_preprocessing(Path(str(settings))), revision(model, tower)


def revision(model: str, tower: Any) -> str:
    """The hub's commit hash; for a folder the sha256 of its safetensors files."""
    if Path(model).is_dir():
        return folder_revision(Path(model))
    commit = getattr(tower.config, "_commit_hash", None)
    if not commit:
        raise UsageError(f"{model}: the hub gave no commit hash, so its features could not be told from another's")
    return str(commit)
