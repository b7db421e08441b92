"""Loss terms, all in float32 whatever the autocast around them.

Legend: B batch, D width, K chunk.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

VARIANCE_EPS = 1e-4
"""Inside the root, so that a constant dimension has a finite gradient (Bardes et al. 2022)."""


@dataclass(frozen=True)
class LossParts:
    """total: what to minimize. parts: its terms and monitors, detached. weight: how many rows or steps it averages.

    apart: where not all of it averages over the same rows, what it is the sum of, each with its own weight and parts.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]
    weight: Float[Tensor, ""]
    apart: tuple["LossParts", ...] = ()

    @property
    def summands(self) -> tuple["LossParts", ...]:
        """`apart`, or itself. The loss of several batches together is the sum of each one's mean by its weight."""
        return self.apart or (self,)

    def beside(self, other: "LossParts") -> "LossParts":
        """The sum with a loss that averages over other rows."""
        parts, summands = self.parts | other.parts, self.summands + other.summands
        return LossParts(self.total + other.total, parts, self.weight, summands)


def masked_mse(
    predicted: Float[Tensor, "*rows D"], wanted: Float[Tensor, "*rows D"], keep: Bool[Tensor, "*rows"]
) -> Float[Tensor, ""]:
    """Mean squared error over the rows that `keep` marks; 0 when it marks none."""
    squared = (predicted.float() - wanted.float()).square().mean(dim=-1)
    return torch.where(keep, squared, 0.0).sum() / keep.sum().clamp(min=1)


def masked_bce(
    logits: Float[Tensor, "*rows"], wanted: Bool[Tensor, "*rows"], keep: Bool[Tensor, "*rows"]
) -> Float[Tensor, ""]:
    """Mean binary cross entropy over the elements that `keep` marks; 0 when it marks none."""
    each = F.binary_cross_entropy_with_logits(logits.float(), wanted.float(), reduction="none")
    return torch.where(keep, each, 0.0).sum() / keep.sum().clamp(min=1)


def centred(z: Float[Tensor, "B D"], keep: Bool[Tensor, " B"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, ""]]:
    """Deviations from the kept rows' mean, zero in the other rows, and how many rows were kept; float32.

    Weights instead of indexing: no data-dependent shapes and no transfer from the device.
    """
    rows = keep.float().unsqueeze(1)
    count = rows.sum()
    values = z.float()
    mean = (values * rows).sum(dim=0) / count.clamp(min=1)
    return (values - mean) * rows, count


def variance_covariance(
    z: Float[Tensor, "B D"], keep: Bool[Tensor, " B"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """VICReg's two terms over the kept rows (Bardes et al. 2022, eq. 1 to 4, hinge at deviation 1).

    variance = mean_j relu(1 - std_j), covariance = Σ_{i≠j} C_ij² / D, both with B - 1. Fewer than two rows have
    no deviation: both terms are then 0.
    """
    with torch.autocast(z.device.type, enabled=False):
        deviations, count = centred(z, keep)
        covariance = deviations.T @ deviations / (count - 1).clamp(min=1)
        spread = covariance.diagonal()
        variance_term = F.relu(1 - (spread + VARIANCE_EPS).sqrt()).mean()
        covariance_term = (covariance.square().sum() - spread.square().sum()) / z.shape[1]
        enough = count > 1
        return torch.where(enough, variance_term, 0.0), torch.where(enough, covariance_term, 0.0)


SIGREG_POINTS = 17
SIGREG_END = 5.0


def sigreg(z: Float[Tensor, "B D"], keep: Bool[Tensor, " B"], directions: Float[Tensor, "M D"]) -> Float[Tensor, ""]:
    """How far the kept rows are from a standard normal distribution, over random directions (SIGReg of LeJEPA,
    Balestriero and LeCun 2025): the mean over directions of Epps and Pulley's statistic

        n ∫ |φ_n(t) - exp(-t²/2)|² exp(-t²/2) dt,   φ_n(t) = mean_b exp(i t ⟨z_b, a⟩),

    by the trapezoid rule with 17 points in [-5, 5]. directions: of any length but 0, drawn anew at every step. 0 where
    no row is kept.
    """
    with torch.autocast(z.device.type, enabled=False):
        t = torch.linspace(-SIGREG_END, SIGREG_END, SIGREG_POINTS, device=z.device)
        normal = torch.exp(-t.square() / 2)
        weights = torch.full_like(t, 2 * SIGREG_END / (SIGREG_POINTS - 1))
        weights[0] = weights[-1] = weights[0] / 2
        axes = F.normalize(directions.float(), dim=1)
        angles = (z.float() @ axes.T).unsqueeze(-1) * t
        rows = keep.float()
        count = rows.sum()
        real = torch.einsum("b,bmt->mt", rows, angles.cos()) / count.clamp(min=1)
        imaginary = torch.einsum("b,bmt->mt", rows, angles.sin()) / count.clamp(min=1)
        distance = (real - normal).square() + imaginary.square()
        return count * (distance * normal * weights).sum(dim=1).mean()


@torch.no_grad()
def mean_std(z: Float[Tensor, "B D"], keep: Bool[Tensor, " B"]) -> Float[Tensor, ""]:
    """Monitor of collapse: standard deviation over the kept rows (B - 1), averaged over dimensions."""
    deviations, count = centred(z, keep)
    return (deviations.square().sum(dim=0) / (count - 1).clamp(min=1)).sqrt().mean()
