"""Exponential moving average of a model's weights: validated, saved as what acts, and left alone by training.

Legend: t optimizer steps done.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from statevla.config.schema import TrainingConfig
from statevla.runs.write import TRAINED
from statevla.systems.system import Objective
from stores.errors import StoreCorrupt


class WeightAverage:
    """θ̄ ← d θ̄ + (1 − d) θ after every step, d = min(decay, (1 + t) / (10 + t)): short at first, so that the random
    weights of the start are soon forgotten (the warm-up of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def follow(self, steps: int) -> None:
        """After optimizer step number `steps` (1-based)."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(self.average.values()), list(self.trained.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averaged weights stand in the model until the block ends."""
        held = {name: p.detach().clone() for name, p in self.trained.items()}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(held)

    def slots(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside the averaged model: the weights as trained."""
        return {f"{name}/{TRAINED}": p.detach() for name, p in self.trained.items()}

    def restore(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """From a model that holds the average, and `slots` in `tensors`. Raises StoreCorrupt where one is missing."""
        missing = [name for name in self.trained if f"{name}/{TRAINED}" not in tensors]
        if missing:
            raise StoreCorrupt(f"{where}: training.policy_ema is on, but the weights as trained lack {missing[:3]}")
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self._put({name: tensors[f"{name}/{TRAINED}"] for name in self.trained})

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trained.items():
            parameter.copy_(values[name])


def average_of(model: Objective, training: TrainingConfig) -> WeightAverage | None:
    """Where it is on, of all but a model that has a moving average of its own."""
    return WeightAverage(model, training.policy_ema) if training.policy_ema > 0 and not model.has_target else None
