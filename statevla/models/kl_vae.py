"""A small variational autoencoder of pictures: latents of an eighth of the side and 4 channels (Rombach et al. 2022).

Three stages of two 3 × 3 convolutions with GroupNorm and SiLU; the first of a stage halves the picture, and on the way
back the picture is doubled before it.

Legend: B batch, S side of the picture, L = S / 8 side of the latents, C channels of the latents.
"""

from collections.abc import Sequence
from typing import Final

from jaxtyping import Float
from torch import Tensor, nn

from statevla.models.stems import GROUPS

WIDTHS: Final = (32, 64, 128)
SHRINK: Final = 2 ** len(WIDTHS)
CHANNELS: Final = 4
KL_WEIGHT: Final = 1e-6
LOGVAR: Final = (-30.0, 20.0)
"""Logarithms of variances are clamped to it, as there."""


def twice(channels: int, width: int, stride: int) -> list[nn.Module]:
    """Two convolutions, each with norm and SiLU; the first has the stride."""
    found: list[nn.Module] = []
    for taken, step in ((channels, stride), (width, 1)):
        found += [nn.Conv2d(taken, width, 3, stride=step, padding=1), nn.GroupNorm(GROUPS, width), nn.SiLU()]
    return found


def chain(parts: Sequence[nn.Module]) -> nn.Sequential:
    """One after the other."""
    return nn.Sequential(*parts)


class KlVae(nn.Module):
    """Pictures in [-1, 1] ↔ latents."""

    def __init__(self) -> None:
        super().__init__()
        down: list[nn.Module] = []
        for channels, width in zip((3, *WIDTHS), WIDTHS, strict=False):
            down += twice(channels, width, 2)
        self.encoder = chain([*down, nn.Conv2d(WIDTHS[-1], 2 * CHANNELS, 3, padding=1)])
        up: list[nn.Module] = [nn.Conv2d(CHANNELS, WIDTHS[-1], 3, padding=1)]
        for channels, width in zip((WIDTHS[-1], *WIDTHS[::-1]), WIDTHS[::-1], strict=False):
            up += [nn.Upsample(scale_factor=2), *twice(channels, width, 1)]
        self.decoder = chain([*up, nn.Conv2d(WIDTHS[0], 3, 3, padding=1)])

    def encode(self, pixels: Float[Tensor, "B 3 S S"]) -> tuple[Float[Tensor, "B C L L"], Float[Tensor, "B C L L"]]:
        """Mean and logarithm of the variance."""
        mean, logvar = self.encoder(pixels).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR)

    def decode(self, latents: Float[Tensor, "B C L L"]) -> Float[Tensor, "B 3 S S"]:
        """Not clamped."""
        out: Tensor = self.decoder(latents)
        return out

    def errors(
        self, pixels: Float[Tensor, "B 3 S S"], epsilon: Float[Tensor, "B C L L"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, "B C L L"]]:
        """By row: mean absolute error of the picture from latents drawn by `epsilon`; KL divergence of those from
        N(0, I), summed over the latents; and the means of the latents.
        """
        mean, logvar = self.encode(pixels)
        told = self.decode(mean + (0.5 * logvar).exp() * epsilon)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3))
        return (told - pixels).abs().mean(dim=(1, 2, 3)), divergence, mean
