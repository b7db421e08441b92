"""Temporal predictor z_t, a_t → z'_{t+1}, and the slowly moving target that it is trained against.

Legend: B batch, D width, T optimizer steps of a run.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from statevla.config import ModelConfig
from stores.schema import ACTION_DIM


class TemporalPredictor(nn.Module):
    """Residual: starts as "nothing changes", because the last layer starts at zero."""

    def __init__(self, config: ModelConfig, hidden: int) -> None:
        super().__init__()
        self.state = nn.Linear(config.embed_dim, hidden)
        self.action = nn.Linear(ACTION_DIM, hidden)
        self.hidden = nn.Sequential(
            nn.Linear(2 * hidden, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
        )
        self.delta = nn.Linear(hidden, config.embed_dim)
        nn.init.zeros_(self.delta.weight)
        nn.init.zeros_(self.delta.bias)

    def forward(self, z: Float[Tensor, "B D"], action: Float[Tensor, "B 7"]) -> Float[Tensor, "B D"]:
        """`action`: standardized pose dimensions and the raw gripper command."""
        joined = torch.cat([self.state(z), self.action(action)], dim=-1)
        out: Tensor = z + self.delta(self.hidden(joined))
        return out


class InverseDynamics(nn.Module):
    """(z_t, z_{t+1}) → the H actions from the one between them on; an option that keeps the state from settling on
    what never moves.

    With H = 1 the states of two neighbouring frames suffice, and hands and joints tell all. The later actions of a
    longer horizon cannot be read off z_{t+1}: to foretell them, z_t must hold what the demonstrator acts on.
    """

    def __init__(self, config: ModelConfig, horizon: int, hidden: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.layers = nn.Sequential(
            nn.Linear(2 * config.embed_dim, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, horizon * ACTION_DIM),
        )

    def forward(self, z: Float[Tensor, "B D"], z_next: Float[Tensor, "B D"]) -> Float[Tensor, "B H 7"]:
        out: Tensor = self.layers(torch.cat([z, z_next], dim=-1))
        return out.reshape(len(z), self.horizon, ACTION_DIM)


def ema_momentum(step: int, total_steps: int, start: float = 0.996) -> float:
    """m(t) = 1 - (1 - start)(1 + cos(πt/T))/2: `start` at step 0, 1 at step T and after it.

    The cosine schedule of BYOL (Grill et al. 2020), as design §5 states it.
    """
    progress = min(step / max(total_steps, 1), 1.0)
    return 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """θ̄ ← m θ̄ + (1 - m) θ for every parameter, in place."""
    averaged: list[Tensor] = list(target.parameters())
    current: list[Tensor] = list(online.parameters())
    torch._foreach_lerp_(averaged, current, 1 - momentum)
