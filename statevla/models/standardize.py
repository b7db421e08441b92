"""Normalization of actions and robot states as buffers, so that checkpoints and bundles carry their statistics.

Legend: F dimensions of a vector.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stores.spec import LIBERO, ObsSpec
from stores.statistics import Normalization


class Standardize(nn.Module):
    """``(x - shift) / scale`` and back, in float32: `stores.statistics.Normalization` on tensors.

    Of an action the binary dimensions pass unchanged; without statistics everything does. Where the scale is 0 a
    dimension is constant: it is centred, and back it is its constant, whatever came.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, field: str, statistics: Normalization | None, spec: ObsSpec = LIBERO) -> None:
        super().__init__()
        size = {"action": spec.action_dim, "robot_state": spec.robot_state_dim}[field]
        shift, scale = (np.zeros(size), np.ones(size)) if statistics is None else statistics.affine(field, spec)
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    def forward(self, x: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        """Raw units -> zero mean, unit deviation."""
        return (x.float() - self.shift) / torch.where(self.scale == 0, 1.0, self.scale)

    def inverse(self, x: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        """Standardized -> raw units."""
        return x.float() * self.scale + self.shift
