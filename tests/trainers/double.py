"""Training in float64, in which what differs by rounding alone agrees to ten digits.

What says float32, in code or by default, means float64 while it lasts: only for a test's own process or block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from statevla.data.batch import Batch, ObservationBatch


def widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _to_double(self: Any, device: torch.device) -> Any:
    return self.each(lambda tensor: widened(tensor.to(device)))


@contextmanager
def in_double() -> Iterator[None]:
    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patched:
        for kind in (Batch, ObservationBatch):
            patched.setattr(kind, "to", _to_double)
        patched.setattr(Tensor, "float", Tensor.double)
        patched.setattr(torch, "float32", torch.float64)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
