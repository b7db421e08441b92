"""A transformer that denoises pictures under a condition (DiT, Peebles & Xie 2023, adaLN-zero), and its schedule.

A picture x₀ and noise ε meet on the straight path z_σ = (1 − σ) x₀ + σ ε, whose velocity is ε − x₀: σ = 1 is noise.

Legend: B batch, C channels, P patches, V numbers of a patch, D width, T state tokens, S side, p side of a patch.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from statevla.models.tokenizer import embedding

FREQUENCIES = 256
SMALLEST = 0.05
"""Levels below it are taken as it where a loss makes a velocity of a predicted picture: the quotient would explode."""


def patches_of(pixels: Float[Tensor, "B C S S"], side: int) -> Float[Tensor, "B P V"]:
    """Squares of `side` pixels, row by row."""
    return nn.functional.unfold(pixels, side, stride=side).transpose(1, 2)


def pixels_of(patches: Float[Tensor, "B P V"], side: int, size: int) -> Float[Tensor, "B C S S"]:
    """Inverse of `patches_of`."""
    return nn.functional.fold(patches.transpose(1, 2), size, side, stride=side)


def level_sinusoids(sigma: Float[Tensor, " B"]) -> Float[Tensor, "B F"]:
    """Of 1000 σ: sines, then cosines."""
    rates = torch.exp(torch.arange(FREQUENCIES // 2, device=sigma.device) * (-math.log(1e4) / (FREQUENCIES // 2)))
    angle = 1000 * sigma[:, None] * rates
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """With weights and bias 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class DitBlock(nn.Module):
    """x + g₁ Attention((1 + a₁) LN(x) + b₁), then the same with an MLP; a, b, g from the condition, zero at first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, x: Float[Tensor, "B N D"], condition: Float[Tensor, "B D"]) -> Float[Tensor, "B N D"]:
        scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = self.modulation(condition)[:, None].chunk(6, dim=-1)
        seen = (1 + scale) * self.norm(x) + shift
        x = x + gate * self.attention(seen, seen, seen, need_weights=False)[0]
        out: Tensor = x + gate_mlp * self.mlp((1 + scale_mlp) * self.norm(x) + shift_mlp)
        return out


class Dit(nn.Module):
    """Noisy picture, level, state tokens of one camera → velocity or clean picture; 0 before any training."""

    def __init__(
        self, size: int, patch: int, width: int, heads: int, depth: int, state: int, tokens: int, channels: int = 3
    ) -> None:
        super().__init__()
        self.size, self.patch = size, patch
        values = channels * patch**2
        self.enter, self.position = nn.Linear(values, width), embedding((size // patch) ** 2, width)
        self.level = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.state_token, self.state_position = nn.Linear(state, width), embedding(tokens, width)
        self.whole_state = nn.Linear(tokens * state, width)
        self.blocks = nn.ModuleList(DitBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation, self.out = zeroed(nn.Linear(width, 2 * width)), zeroed(nn.Linear(width, values))

    def forward(
        self, noisy: Float[Tensor, "B C S S"], sigma: Float[Tensor, " B"], state: Float[Tensor, "B T E"],
        camera: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B C S S"]:  # fmt: skip
        """camera: its embedding, a part of the condition."""
        tokens = self.state_token(state) + self.state_position
        x = torch.cat([tokens, self.enter(patches_of(noisy, self.patch)) + self.position], dim=1)
        condition = nn.functional.silu(self.level(level_sinusoids(sigma)) + self.whole_state(state.flatten(1)) + camera)
        for block in self.blocks:
            x = block(x, condition)
        scale, shift = self.modulation(condition)[:, None].chunk(2, dim=-1)
        patches = self.out((1 + scale) * self.norm(x[:, tokens.shape[1] :]) + shift)
        return pixels_of(patches, self.patch, self.size)
