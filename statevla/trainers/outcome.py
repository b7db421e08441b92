"""How a run ends: its summary, or the error that stops it before a weight becomes useless."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from stores.errors import StateVLAError

NAMED_ROWS: Final = 5
"""Rows that an error names."""


class NonFiniteLoss(StateVLAError):
    """The loss became NaN or infinite."""


class OutOfMemory(StateVLAError):
    """A step did not fit in the memory of its device."""


@dataclass(frozen=True)
class TrainSummary:
    """Outcome of a run. best: {"step", "val_loss"}, None without validation episodes.

    began: step at which this call began. signal: what stopped the run before its end, None when it is finished.
    """

    run: str
    system: str
    steps: int
    best: dict[str, Any] | None
    checkpoint: str
    began: int
    signal: int | None

    @property
    def stopped(self) -> bool:
        """By a signal, early."""
        return self.signal is not None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `statevla train --json` prints."""
        return {
            "run": self.run,
            "system": self.system,
            "steps": self.steps,
            "best": self.best,
            "checkpoint": self.checkpoint,
            "stopped": self.stopped,
        }


def broken_rows(terms: Mapping[str, Tensor], episode: Tensor, frame: Tensor) -> str:
    """The rows whose terms are not finite, in words, for an error. episode, frame: int64 [R]."""
    bad = torch.zeros(len(episode), dtype=torch.bool)
    for value in terms.values():
        if value.is_floating_point():
            bad |= ~value.detach().reshape(len(episode), -1).isfinite().all(dim=1).cpu()
    rows = bad.nonzero().flatten().tolist()
    if not rows:
        return "every row by itself is finite: the learning rate is too high, or weights had grown too large"
    named = ", ".join(f"episode {int(episode[row])} frame {int(frame[row])}" for row in rows[:NAMED_ROWS])
    more = "" if len(rows) <= NAMED_ROWS else f" and {len(rows) - NAMED_ROWS} more"
    if len(rows) == len(episode):
        return f"all {len(rows)} rows are not finite ({named}{more}): the weights are not, or the learning rate"
    return f"not finite are {len(rows)} of {len(episode)} rows: {named}{more}"


@dataclass(frozen=True)
class StepSize:
    """What decides how much memory a step takes. batch_size: rows of all ranks. rows: of this one. accumulate: the
    micro-batches that it cuts them into. image_size: the key of the pictures' side.
    """

    batch_size: int
    rows: int
    accumulate: int
    image_size: str


@contextmanager
def memory_advice(size: StepSize, resume: Callable[[], str], validating: bool = False) -> Iterator[None]:
    """Turn a device or machine that is out of memory into one line that says what to lower. resume: the option by which
    the run goes on, and a space; empty while it has no checkpoint. validating: each rank takes whole batches, and no
    micro-batches make them smaller.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        told = str(error)
        plain = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        if plain and not ("allocate" in told and "memory" in told):
            raise
        first = told.strip().splitlines()[0] if told.strip() else "out of memory"
        if validating:
            raise OutOfMemory(
                f"out of memory in a validation, of {size.batch_size} rows at a time: {first}; another training in "
                f"less memory: a smaller training.batch_size or {size.image_size}"
            ) from error
        more = min(2 * size.accumulate, size.rows)
        same = f"the same training in less memory: {resume()}--set training.accumulate={more}; "
        raise OutOfMemory(
            f"out of memory in a step of {size.batch_size} rows in {size.accumulate} micro-batch(es): {first}; "
            f"{same if more > size.accumulate else ''}another training in less memory: a smaller training.batch_size "
            f"or {size.image_size}"
        ) from error
