"""Temporal predictor z_t, a_t → z'_{t+1}, and the slowly moving target that it is trained against.

Legend: B batch, D width, K actions, A numbers of an action, T optimizer steps of a run.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from statevla.config import ModelConfig
from stores.spec import LIBERO, ObsSpec


class TemporalPredictor(nn.Module):
    """Residual: starts as "nothing changes", because the last layer starts at zero."""

    def __init__(self, config: ModelConfig, hidden: int, spec: ObsSpec = LIBERO) -> None:
        super().__init__()
        self.state = nn.Linear(config.embed_dim, hidden)
        self.action = nn.Linear(spec.action_dim, hidden)
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

    def forward(self, z: Float[Tensor, "B D"], action: Float[Tensor, "B A"]) -> Float[Tensor, "B D"]:
        """`action`: standardized continuous dimensions and raw binary ones."""
        joined = torch.cat([self.state(z), self.action(action)], dim=-1)
        out: Tensor = z + self.delta(self.hidden(joined))
        return out

    def roll(
        self, z: Float[Tensor, "B D"], actions: Float[Tensor, "B K A"], ahead: Int64[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """The state after the first `ahead` of the actions, each step made of the prediction before it."""
        for step in range(actions.shape[1]):
            z = torch.where((ahead > step)[:, None], self(z, actions[:, step]), z)
        return z


class InverseDynamics(nn.Module):
    """(z_t, z_{t+1}) → the H actions from the one between them on; an option that keeps the state from settling on
    what never moves.

    With H = 1 the states of two neighbouring frames suffice, and hands and joints tell all. The later actions of a
    longer horizon cannot be read off z_{t+1}: to foretell them, z_t must hold what the demonstrator acts on.
    """

    def __init__(self, config: ModelConfig, horizon: int, hidden: int, spec: ObsSpec = LIBERO) -> None:
        super().__init__()
        self.horizon, self.width = horizon, spec.action_dim
        self.layers = nn.Sequential(
            nn.Linear(2 * config.embed_dim, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, horizon * spec.action_dim),
        )

    def forward(self, z: Float[Tensor, "B D"], z_next: Float[Tensor, "B D"]) -> Float[Tensor, "B H A"]:
        out: Tensor = self.layers(torch.cat([z, z_next], dim=-1))
        return out.reshape(len(z), self.horizon, self.width)


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
