"""A latent action: a few numbers that say what happened between two states, learned without any action.

An inverse-dynamics model sees both states and gives a code; a forward model sees the first state and the code and
foretells the second. What the code cannot carry is not told, so it is small. LAPA (2410.11758) learns such codes from
pictures and quantizes them; here they are of a frozen encoder's states, and plain numbers.

Legend: N pairs of states, F numbers of a state, L of a code.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

HIDDEN: Final = 256
STEPS: Final = 2000
ROWS: Final = 256
RATE: Final = 1e-3
SEED: Final = 0x1A9A
"""Of the pairs that a step sees."""
TINY: Final = 1e-12


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, outputs)
    )


class LatentActions(nn.Module):
    """inverse: 2 F → L. forward_model: F + L → F, what is added to the first state. Both see states standardized by
    number, as `fit` found them.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, numbers: int, code: int) -> None:
        super().__init__()
        self.inverse, self.forward_model = mlp(2 * numbers, code), mlp(numbers + code, numbers)
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))
        self.requires_grad_(False)

    def forward(self, now: Float[Tensor, "N F"], later: Float[Tensor, "N F"]) -> Float[Tensor, "N L"]:
        """The code of what happened between."""
        return self.code((now - self.mean) / self.scale, (later - self.mean) / self.scale)

    def code(self, now: Float[Tensor, "N F"], later: Float[Tensor, "N F"]) -> Float[Tensor, "N L"]:
        """Of standardized states."""
        out: Tensor = self.inverse(torch.cat([now, later], dim=-1))
        return out

    def error(self, now: Float[Tensor, "N F"], later: Float[Tensor, "N F"]) -> Float[Tensor, " N"]:
        """Mean squared error of the foretold states, of standardized ones."""
        told = now + self.forward_model(torch.cat([now, self.code(now, later)], dim=-1))
        out: Tensor = (told - later).square().mean(dim=-1)
        return out

    def errors(self, now: Float[Tensor, "N F"], later: Float[Tensor, "N F"]) -> dict[str, Float[Tensor, " N"]]:
        """``code_error`` of the foretold states, and ``code_moved``, that of "nothing changes"; both standardized."""
        here, there = ((states - self.mean) / self.scale for states in (now, later))
        return {"code_error": self.error(here, there), "code_moved": (there - here).square().mean(dim=-1)}

    def fit(self, now: Float[Tensor, "N F"], later: Float[Tensor, "N F"], steps: int = STEPS) -> None:
        """Train both models on all pairs.

        Deterministic: from the weights as they are, with pairs drawn by a generator of its own, in float32.
        """
        deviation, mean = torch.std_mean(now.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > TINY, deviation, 1.0))
        pairs = [(states - self.mean) / self.scale for states in (now, later)]
        generator = torch.Generator().manual_seed(SEED)
        optimizer = torch.optim.Adam(self.parameters(), lr=RATE)
        with torch.enable_grad(), torch.autocast(now.device.type, enabled=False):
            self.requires_grad_(True)
            for _ in range(steps):
                rows = torch.randint(len(now), (min(ROWS, len(now)),), generator=generator).to(now.device)
                here, there = (states[rows] for states in pairs)
                optimizer.zero_grad()
                self.error(here, there).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            optimizer.zero_grad()
        self.requires_grad_(False)
