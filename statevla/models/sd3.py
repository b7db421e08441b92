"""Stable Diffusion 3 as the painter of states (Esser et al. 2024): its autoencoder's latents, its transformer.

Legend: B batch, S side of the picture, L side and C channels of the latents, T state tokens, E numbers of a token.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from statevla.models.canvas import Canvas
from stores.errors import UsageError

LEVELS = 1000
"""Timesteps that its transformer counts from picture to noise."""


class PretrainedLatents(Canvas):
    """Of a frozen `AutoencoderKL` of diffusers: (z - shift) · scale, z the mean of its posterior. Always in float32.

    Its weights are in the checkpoint with the rest.
    """

    def __init__(self, size: int, vae: Any) -> None:
        shrink = 2 ** (len(vae.config.block_out_channels) - 1)
        if size % shrink:
            raise UsageError(f"stamo.image_size: {size} is not a multiple of {shrink}, by which decoder sd3 shrinks it")
        super().__init__(size // shrink, vae.config.latent_channels)
        self.vae = vae.requires_grad_(False)
        self.scale, self.shift = float(vae.config.scaling_factor), float(vae.config.shift_factor or 0.0)

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C L L"]:
        with torch.autocast(pixels.device.type, enabled=False):
            z: Tensor = self.vae.encode(pixels.float()).latent_dist.mode()
        return (z - self.shift) * self.scale

    def decode(self, painted: Float[Tensor, "B C L L"]) -> Float[Tensor, "B 3 S S"]:
        with torch.autocast(painted.device.type, enabled=False):
            out: Tensor = self.vae.decode(painted.float() / self.scale + self.shift).sample
        return out


class Sd3Painter(nn.Module):
    """A pretrained `SD3Transformer2DModel`, trained further, that is told state tokens in place of a text."""

    def __init__(self, transformer: Any, canvas: Canvas, state: int) -> None:
        super().__init__()
        told = transformer.config
        if told.in_channels != canvas.channels or told.out_channels != canvas.channels:
            raise UsageError(
                f"stamo.sd3_model: its autoencoder has {canvas.channels} channels, its transformer {told.in_channels}"
            )
        if canvas.side % told.patch_size or canvas.side // told.patch_size > told.pos_embed_max_size:
            raise UsageError(
                f"stamo.image_size: latents of {canvas.side} a side, but the transformer of stamo.sd3_model takes "
                f"multiples of {told.patch_size} up to {told.patch_size * told.pos_embed_max_size}"
            )
        self.transformer, self.patch = transformer, int(told.patch_size)
        self.state_token = nn.Linear(state, told.joint_attention_dim)
        self.whole_state = nn.Linear(state, told.pooled_projection_dim)

    def forward(
        self, noisy: Float[Tensor, "B C L L"], sigma: Float[Tensor, " B"], state: Float[Tensor, "B T E"],
    ) -> Float[Tensor, "B C L L"]:  # fmt: skip
        """The velocity ε - x₀."""
        out: Tensor = self.transformer(
            hidden_states=noisy, encoder_hidden_states=self.state_token(state),
            pooled_projections=self.whole_state(state.mean(dim=1)), timestep=LEVELS * sigma, return_dict=False,
        )[0]  # fmt: skip
        return out
