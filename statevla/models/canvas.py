"""What a diffusion model of pictures paints on: the pixels themselves, or the latents of an autoencoder.

Legend: B batch, S side of the picture, L side and C channels of what is painted.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from statevla.models.kl_vae import CHANNELS, SHRINK, KlVae
from stores.errors import UsageError

MOMENTUM: Final = 0.99


class Canvas(nn.Module):
    """Pixels. Subclasses paint latents. channels, side: of what is painted."""

    def __init__(self, side: int, channels: int = 3) -> None:
        super().__init__()
        self.side, self.channels = side, channels

    def encode(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C L L"]:
        """Of pictures in [-1, 1], without gradient."""
        return pixels

    def decode(self, painted: Float[Tensor, "B C L L"]) -> Float[Tensor, "B 3 S S"]:
        """Inverse of `encode`."""
        return painted


class OwnLatents(Canvas):
    """Latents of a `KlVae` that is trained first, for `steps` steps, and then stays as it is.

    They are standardized by channel: mean and deviation are a moving average over the training pictures, up to its last
    step. `trained`, the steps of the run so far, is a buffer and goes with the weights.
    """

    moments: Tensor
    trained: Tensor

    def __init__(self, size: int, steps: int) -> None:
        if size % SHRINK:
            raise UsageError(f"stamo.image_size: {size} is not a multiple of {SHRINK}, by which decoder vae shrinks it")
        super().__init__(size // SHRINK, CHANNELS)
        self.vae, self.steps = KlVae(), steps
        self.register_buffer("moments", torch.stack([torch.zeros(CHANNELS), torch.ones(CHANNELS)]))
        self.register_buffer("trained", torch.zeros((), dtype=torch.long))

    @property
    def learning(self) -> bool:
        """Whether the autoencoder's steps are not done."""
        return int(self.trained) < self.steps

    @property
    def alone(self) -> bool:
        """Whether nothing but the autoencoder has been trained yet."""
        return int(self.trained) <= self.steps

    def follow(self, mean: Float[Tensor, "R C"], square: Float[Tensor, "R C"]) -> None:
        """Moments of latents of a step's rows; of the first ones a plain average."""
        momentum = min(MOMENTUM, int(self.trained) / (int(self.trained) + 1))
        self.moments.lerp_(torch.stack([mean.mean(dim=0), square.mean(dim=0)]).to(self.moments), 1 - momentum)

    def _affine(self) -> tuple[Float[Tensor, "C 1 1"], Float[Tensor, "C 1 1"]]:
        mean, square = self.moments[:, :, None, None]
        return mean, (square - mean.square()).clamp(min=1e-8).sqrt()

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C L L"]:
        mean, std = self._affine()
        out: Tensor = (self.vae.encode(pixels)[0].float() - mean) / std
        return out

    def decode(self, painted: Float[Tensor, "B C L L"]) -> Float[Tensor, "B 3 S S"]:
        mean, std = self._affine()
        return self.vae.decode(painted * std + mean)
