"""Flow matching for the six pose dimensions of an action chunk: path, velocity network and Euler sampling.

x_σ = (1 - σ) x₀ + σ ε runs from the data (σ = 0) to noise (σ = 1) with velocity ε - x₀ (rectified flow, Liu et al.
2022; flow matching, Lipman et al. 2022).

Legend: B batch, N context tokens, D width, K chunk, S sampling steps.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from statevla.config import ModelConfig
from statevla.models.encoder import NORM_EPS, MambaBlock
from statevla.models.tokenizer import embedding
from stores.schema import POSE_DIMS

MIN_PERIOD = 4e-3
MAX_PERIOD = 4.0
"""Of the sinusoids, in units of sigma: from 250 turns on [0, 1] to a quarter of one, so that every frequency tells."""


def interpolate(
    clean: Float[Tensor, "B K A"], noise: Float[Tensor, "B K A"], sigma: Float[Tensor, " B"]
) -> Float[Tensor, "B K A"]:
    """x_σ = (1 - σ) x₀ + σ ε."""
    level = sigma[:, None, None]
    return (1 - level) * clean + level * noise


def velocity_target(clean: Float[Tensor, "B K A"], noise: Float[Tensor, "B K A"]) -> Float[Tensor, "B K A"]:
    """dx_σ/dσ = ε - x₀."""
    return noise - clean


def euler(
    velocity: Callable[[Tensor, Tensor], Tensor], noise: Float[Tensor, "B K A"], steps: int
) -> Float[Tensor, "B K A"]:
    """From σ = 1 to 0 in equal steps: x ← x - v(x, σ) / S at σ = 1, 1 - 1/S, …, 1/S."""
    x = noise
    for step in range(steps):
        sigma = x.new_full((len(x),), 1 - step / steps)
        x = x - velocity(x, sigma) / steps
    return x


def sinusoid(sigma: Float[Tensor, " B"], width: int) -> Float[Tensor, "B D"]:
    """[sin(2πσ/p_i), cos(2πσ/p_i)], periods p_i geometric from 0.004 to 4."""
    half = width // 2
    fraction = torch.arange(half, device=sigma.device, dtype=torch.float32) / max(half - 1, 1)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = 2 * math.pi * sigma.float()[:, None] / period
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class GatedMlp(nn.Module):
    """RMSNorm → silu(gate) * up → down → residual; no biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        y = self.norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class FlowPolicy(nn.Module):
    """Tokens ``[context tokens, σ, z, K noisy actions]`` through Mamba blocks -> velocity at the action tokens.

    Context tokens, the encoder's outputs, are there with ``policy_context: z+tokens`` only. Being causal and ahead of
    σ, they are the same in every sampling step.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.width, self.chunk = width, config.chunk
        self.sigma = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.state = nn.Linear(width, width)
        self.action = nn.Linear(POSE_DIMS, width)
        self.context = nn.Linear(width, width) if config.policy_context == "z+tokens" else None
        self.position = embedding(2 + config.chunk, width)
        layers: list[nn.Module] = []
        for _ in range(config.policy_depth):
            layers.append(MambaBlock(config, config.policy_d_state))
            if config.policy_mlp:
                layers.append(GatedMlp(width, config.policy_mlp))
        self.layers = nn.Sequential(*layers)
        self.final_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, POSE_DIMS))

    def forward(
        self,
        noisy: Float[Tensor, "B K 6"],
        sigma: Float[Tensor, " B"],
        z: Float[Tensor, "B D"],
        tokens: Float[Tensor, "B N D"] | None = None,
    ) -> Float[Tensor, "B K 6"]:
        """Velocity at `noisy` = x_σ. `tokens` is read with ``policy_context: z+tokens`` only."""
        level = self.sigma(sinusoid(sigma, self.width)).unsqueeze(1)
        own = torch.cat([level, self.state(z).unsqueeze(1), self.action(noisy)], dim=1) + self.position
        if self.context is not None:
            if tokens is None:
                raise ValueError("policy_context z+tokens needs the encoder's tokens, got None")
            own = torch.cat([self.context(tokens), own], dim=1)
        out: Tensor = self.head(self.final_norm(self.layers(own)[:, -self.chunk :]))
        return out
