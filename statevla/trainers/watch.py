"""Thresholds of the monitors: what is said when a number of a validation, or of the loop, is not healthy."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

WARM: Final = 200
"""Steps before which a healthy run may still look like this."""


def update_norm(before: list[Tensor], after: list[Tensor]) -> float:
    """How far a step moved all weights together, over how large they were; 0 where nothing was kept to compare."""
    if not before:
        return 0.0
    moved = torch.stack([(new.detach() - old).norm() for old, new in zip(before, after, strict=True)]).norm()
    return float(moved / torch.stack([old.norm() for old in before]).norm().clamp(min=1e-12))


@dataclass(frozen=True)
class Threshold:
    """A monitor, when it is not healthy, and what that means. least: steps before which it says nothing yet."""

    name: str
    bad: Callable[[float], bool]
    meaning: str
    least: int = WARM


THRESHOLDS: Final = (
    Threshold("z_std", lambda value: value < 0.1, "the state has collapsed, or nearly: 1 is healthy; "
              "try training.phase1.regularize=z or a lower learning rate"),
    Threshold("z_rank", lambda value: value < 4, "the states lie in very few directions"),
    Threshold("z_within", lambda value: value < 0.02, "states tell episodes apart and hardly anything within them"),
    Threshold("copy_ratio", lambda value: value > 1, "the prediction is worse than saying that nothing changes"),
    Threshold("world_copy_ratio", lambda value: value > 1, "the world head foretells worse than saying that nothing "
              "changes"),
    Threshold("action_ratio", lambda value: value < 1.02, "the prediction is as good with another row's action: "
              "it does not look at actions"),
    Threshold("z_used", lambda value: value < 0.01, "the latent carries nothing, so that it could as well be left out; "
              "a smaller act.kl_weight lets it"),
    Threshold("shuffled_ratio", lambda value: value < 1.1, "the decoder paints nearly as well with another picture's "
              "state", least=3000),
    Threshold("gripper_change_f1", lambda value: value < 0.05, "changes of the gripper are hardly ever foretold; "
              "data.oversample_gripper draws them more often"),
    Threshold("data_wait", lambda value: value > 0.2, "of the time of a step goes into waiting for data; "
              "more data.loader_threads or data.cache_gib"),
)  # fmt: skip


class Watch:
    """Says each warning once in a run."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def warnings(self, values: Mapping[str, Any], step: int) -> list[tuple[str, str]]:
        """(monitor, sentence) of what is not healthy and was not said before. values: a record of the metrics."""
        found = []
        for each in THRESHOLDS:
            value = values.get(each.name)
            if value is None or each.name in self.said or step < each.least or not math.isfinite(value):
                continue
            if each.bad(value):
                self.said.add(each.name)
                found.append((each.name, f"{each.name} is {value:.3g} at step {step}: {each.meaning}"))
        return found
