"""Mean and standard deviation of actions and robot states as buffers, so that checkpoints and bundles carry them.

Legend: F fields of a vector.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stores.errors import StoreCorrupt
from stores.schema import ACTION_DIM, POSE_DIMS, ROBOT_STATE_DIM


class FieldStatistics(Protocol):
    """What this module reads of `stores.norm.Statistics`: one number a dimension."""

    @property
    def mean(self) -> Sequence[float]: ...

    @property
    def std(self) -> Sequence[float]: ...


class ActionAndStateStatistics(Protocol):
    """What this module reads of `stores.norm.Normalization`."""

    @property
    def action(self) -> FieldStatistics: ...

    @property
    def robot_state(self) -> FieldStatistics: ...


class Standardize(nn.Module):
    """``(x - mean) / std`` and back, in float32. `mean` and `std` are persistent buffers, not parameters."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32))

    def forward(self, x: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        """Raw units -> zero mean, unit deviation."""
        return (x.float() - self.mean) / self.std

    def inverse(self, x: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        """Standardized -> raw units."""
        return x.float() * self.std + self.mean


def standardize_robot_state(statistics: ActionAndStateStatistics | None) -> Standardize:
    """Of the 9 robot state dimensions; None gives the identity."""
    if statistics is None:
        return Standardize([0.0] * ROBOT_STATE_DIM, [1.0] * ROBOT_STATE_DIM)
    return _checked(statistics.robot_state, ROBOT_STATE_DIM, ROBOT_STATE_DIM, "robot_state")


def standardize_action(statistics: ActionAndStateStatistics | None) -> Standardize:
    """Of the 6 pose dimensions; the gripper command passes unchanged. None gives the identity."""
    if statistics is None:
        return Standardize([0.0] * ACTION_DIM, [1.0] * ACTION_DIM)
    return _checked(statistics.action, ACTION_DIM, POSE_DIMS, "action")


def _checked(field: FieldStatistics, dim: int, normalized: int, name: str) -> Standardize:
    """The first `normalized` of `dim` dimensions are standardized, the rest untouched."""
    if len(field.mean) != dim or len(field.std) != dim:
        raise StoreCorrupt(f"statistics of {name}: expected {dim} means and deviations, got {len(field.mean)}")
    rest = dim - normalized
    mean = [*list(field.mean)[:normalized], *[0.0] * rest]
    std = [*list(field.std)[:normalized], *[1.0] * rest]
    if not all(value > 0 for value in std):
        raise StoreCorrupt(f"statistics of {name}: expected positive deviations, got {std}; run `statevla stats`")
    return Standardize(mean, std)
