"""What all policies that regress a chunk share: the loss of a chunk, and a chunk in action units from its parts.

The pose is standardized, the gripper never: it is one logit a step, classified. A loss over steps is the sum over the
steps that are not padding, divided by their number, so that more padding changes nothing.

Legend: B batch, K chunk, P continuous (pose) dimensions, G binary dimensions, N bins.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from statevla.models.losses import masked_bce
from stores.errors import UsageError


class ChunkOutput(NamedTuple):
    """pose: the continuous dimensions, standardized. logits: of the binary ones, positive for +1 (to close)."""

    pose: Float[Tensor, "B K P"]
    logits: Float[Tensor, "B K G"]


def split_output(flat: Float[Tensor, "B F"], chunk: int, pose: int) -> ChunkOutput:
    """K (P + G) numbers of a row -> pose and binary dimensions, step by step."""
    steps = flat.view(len(flat), chunk, -1)
    return ChunkOutput(steps[..., :pose], steps[..., pose:])


def masked_l1(
    predicted: Float[Tensor, "*rows P"], wanted: Float[Tensor, "*rows P"], keep: Bool[Tensor, "*rows"]
) -> Float[Tensor, ""]:
    """Mean absolute error over the rows that `keep` marks; 0 when it marks none."""
    error = (predicted.float() - wanted.float()).abs().mean(dim=-1)
    return torch.where(keep, error, 0.0).sum() / keep.sum().clamp(min=1)


def pose_error(
    kind: str, predicted: Float[Tensor, "*rows P"], wanted: Float[Tensor, "*rows P"], keep: Bool[Tensor, "*rows"]
) -> Float[Tensor, ""]:
    """``l1`` or ``mse`` over the kept rows."""
    if kind == "l1":
        return masked_l1(predicted, wanted, keep)
    squared = (predicted.float() - wanted.float()).square().mean(dim=-1)
    return torch.where(keep, squared, 0.0).sum() / keep.sum().clamp(min=1)


def gripper_terms(
    logits: Float[Tensor, "B K G"], closing: Bool[Tensor, "B K G"], keep: Bool[Tensor, "B K"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross entropy and accuracy over the kept steps."""
    told = keep.unsqueeze(-1).expand_as(closing)
    right = (((logits > 0) == closing) & told).sum() / told.sum().clamp(min=1)
    return masked_bce(logits, closing, told), right


class Bins(nn.Module):
    """Each pose dimension cut into N equal bins between its low and high quantile (standardized units).

    index = clip(⌊N (a − lo) / (hi − lo)⌋, 0, N − 1); value of a bin: its middle.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Float[Tensor, " P"], high: Float[Tensor, " P"], names: tuple[str, ...], bins: int) -> None:
        super().__init__()
        for name, lo, hi in zip(names, low.tolist(), high.tolist(), strict=True):
            if hi - lo < 1e-6:
                raise UsageError(
                    f"head discrete: action dimension {name} never moves in the training data (its 1% and 99% "
                    f"quantiles are both {lo:.6g}), so it cannot be cut into bins; use head continuous or chunked"
                )
        self.bins = bins
        self.register_buffer("low", low.float())
        self.register_buffer("high", high.float())

    def index(self, pose: Float[Tensor, "*rows P"]) -> Int64[Tensor, "*rows P"]:
        """The bin of every value."""
        place = self.bins * (pose - self.low) / (self.high - self.low)
        return place.floor().clamp(0, self.bins - 1).long()

    def value(self, index: Int64[Tensor, "*rows P"]) -> Float[Tensor, "*rows P"]:
        """The middle of every bin."""
        return self.low + (index + 0.5) * (self.high - self.low) / self.bins

    def loss(
        self, logits: Float[Tensor, "*rows P N"], pose: Float[Tensor, "*rows P"], keep: Bool[Tensor, "*rows"]
    ) -> Float[Tensor, ""]:
        """Cross entropy over the kept rows; ln N for equal logits."""
        each = F.cross_entropy(logits.float().flatten(0, -2), self.index(pose).flatten(), reduction="none")
        rows = each.view(pose.shape).mean(dim=-1)
        return torch.where(keep, rows, 0.0).sum() / keep.sum().clamp(min=1)
