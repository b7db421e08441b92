"""Flow matching for the continuous dimensions of an action chunk: path, velocity network and Euler sampling.

x_σ = (1 - σ) x₀ + σ ε runs from the data (σ = 0) to noise (σ = 1) with velocity ε - x₀ (rectified flow, Liu et al.
2022; flow matching, Lipman et al. 2022).

Legend: B batch, N context tokens, D width, K chunk, A continuous dimensions of an action (LIBERO: the pose's 6), S
sampling steps.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from statevla.config import ModelConfig
from statevla.models.encoder import NORM_EPS, MambaBlock
from statevla.models.mamba import MambaState
from statevla.models.pixels import dtype_of
from statevla.models.tokenizer import embedding
from stores.spec import LIBERO, ObsSpec

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


def sampling_times(steps: int, device: torch.device | str = "cpu") -> Float[Tensor, " S"]:
    """σ at which the velocity is asked for: 1, 1 - 1/S, …, 1/S."""
    return 1 - torch.arange(steps, dtype=torch.float32, device=device) / steps


def euler(
    velocity: Callable[[Tensor, Tensor], Tensor], noise: Float[Tensor, "B K A"], levels: Float[Tensor, "S ..."]
) -> Float[Tensor, "B K A"]:
    """From σ = 1 to 0 in S equal steps: x ← x - v(x, level) / S.

    The levels, one a step, are `sampling_times` or whatever `velocity` knows them by.
    """
    x = noise
    for level in levels.unbind():
        x = x - velocity(x, level) / len(levels)
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
        y = self.norm(x).to(dtype_of(self.gate))
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class FlowPolicy(nn.Module):
    """Tokens ``[context tokens, σ, z, K noisy actions]`` through Mamba blocks -> velocity at the action tokens.

    Context tokens, the encoder's outputs, are there with ``policy_context: z+tokens`` only. Being causal and ahead of
    σ, they are the same in every sampling step.
    """

    def __init__(self, config: ModelConfig, spec: ObsSpec = LIBERO) -> None:
        super().__init__()
        width, dims = config.embed_dim, len(spec.continuous)
        self.width, self.chunk = width, config.action_seq_len
        self.sigma = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.state = nn.Linear(width, width)
        self.action = nn.Linear(dims, width)
        self.context = nn.Linear(width, width) if config.policy_context == "z+tokens" else None
        self.position = embedding(2 + config.action_seq_len, width)
        layers: list[nn.Module] = []
        for _ in range(config.policy_layers):
            layers.append(MambaBlock(config, config.policy_d_state))
            if config.policy_mlp:
                layers.append(GatedMlp(width, config.policy_mlp))
        self.layers = nn.Sequential(*layers)
        self.final_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dims))

    def forward(
        self,
        noisy: Float[Tensor, "B K A"],
        sigma: Float[Tensor, " B"],
        z: Float[Tensor, "B D"],
        tokens: Float[Tensor, "B N D"] | None = None,
    ) -> Float[Tensor, "B K A"]:
        """Velocity at `noisy` = x_σ. `tokens` is read with ``policy_context: z+tokens`` only."""
        return self.told(self.read(noisy, sigma, z, tokens))

    def read(
        self,
        noisy: Float[Tensor, "B K A"],
        sigma: Float[Tensor, " B"],
        z: Float[Tensor, "B D"],
        tokens: Float[Tensor, "B N D"] | None = None,
    ) -> Float[Tensor, "B K D"]:
        """What the velocity is read from: the action tokens after the last layer, normalized."""
        own = self._own(self.sigma(sinusoid(sigma, self.width)), self.state(z), noisy)
        if self.context is not None:
            own = torch.cat([self._context(tokens), own], dim=1)
        return self._last(self.layers(own))

    def told(self, read: Float[Tensor, "B K D"]) -> Float[Tensor, "B K A"]:
        """The velocity."""
        out: Tensor = self.head(read)
        return out

    def level_tokens(self, steps: int) -> Float[Tensor, "S D"]:
        """The σ tokens of the sampling times, the same for every observation."""
        tokens: Tensor = self.sigma(sinusoid(sampling_times(steps, self.position.device), self.width))
        return tokens

    def sample(
        self,
        noise: Float[Tensor, "B K A"],
        z: Float[Tensor, "B D"],
        tokens: Float[Tensor, "B N D"] | None,
        levels: Float[Tensor, "S D"],
    ) -> Float[Tensor, "B K A"]:
        """Euler from `noise`; `levels` from `level_tokens`. What no step changes is computed once, before the first.

        For inference: the numbers are those of `forward` in every step, up to rounding.
        """
        past = None if self.context is None else self._read(self._context(tokens))
        state = self.state(z)

        def velocity(x: Tensor, level: Tensor) -> Tensor:
            own = self._own(level.expand(len(x), -1), state, x)
            return self.told(self._last(self.layers(own) if past is None else self._continue(own, past))).float()

        return euler(velocity, noise, levels)

    def _own(
        self, level: Float[Tensor, "B D"], state: Float[Tensor, "B D"], noisy: Float[Tensor, "B K A"]
    ) -> Float[Tensor, "B N D"]:
        """[σ, z, K noisy actions]."""
        return torch.cat([level.unsqueeze(1), state.unsqueeze(1), self.action(noisy)], dim=1) + self.position

    def _context(self, tokens: Float[Tensor, "B N D"] | None) -> Float[Tensor, "B N D"]:
        if self.context is None or tokens is None:
            raise ValueError("policy_context z+tokens needs the encoder's tokens, got None")
        context: Tensor = self.context(tokens.to(dtype_of(self.context)))
        return context.to(self.position.dtype)

    def _read(self, context: Float[Tensor, "B N D"]) -> list[MambaState]:
        """What each Mamba block remembers of the context tokens."""
        states: list[MambaState] = []
        for layer in self.layers:
            if isinstance(layer, MambaBlock):
                context, state = layer.extend(context, None)
                states.append(state)
            else:
                context = layer(context)
        return states

    def _continue(self, own: Float[Tensor, "B N D"], past: list[MambaState]) -> Float[Tensor, "B N D"]:
        """All layers over the tokens after the context."""
        states = iter(past)
        for layer in self.layers:
            own = layer.extend(own, next(states))[0] if isinstance(layer, MambaBlock) else layer(own)
        return own

    def _last(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B K D"]:
        out: Tensor = self.final_norm(x[:, -self.chunk :])
        return out
