"""Rows of large arrays into the memory of batches.

Legend: N rows of an array, B rows of a batch.
"""

import sys
import threading
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statevla.models.kernels import native
from stores.sharded import aligned

Ints = NDArray[np.int64]

DTYPES: Final = {"uint8": torch.uint8, "int8": torch.int8, "float16": torch.float16, "float32": torch.float32}

STREAMED: Final = 4096
"""Bytes of a row from which on copies go past the processor's caches."""
KEPT: Final = 16
"""Pieces of memory that are kept for the next batches at most."""


class Memory:
    """Memory of batches that nobody holds any more, for those that come: fresh memory costs a page fault every 4 KB,
    on a virtual machine a third of the time that filling it takes.

    A tensor holds the NumPy array that it was made of, and every view of it holds the tensor's memory; so an array of
    which only this object knows is free. Any thread may ask.
    """

    def __init__(self) -> None:
        self._kept: list[NDArray[Any]] = []
        self._lock = threading.Lock()
        self._nobodys = _references([np.empty(0)])[0]

    def empty(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Uninitialized, on a cache line, and the caller's until the array and all tensors and views of it are gone."""
        with self._lock:
            for array, references in zip(self._kept, _references(self._kept), strict=True):
                if references == self._nobodys and array.shape == shape and array.dtype == dtype:
                    return array
            if len(self._kept) == KEPT:  # of other shapes, or with somebody who keeps them
                self._kept.pop(0)
            self._kept.append(aligned(shape, dtype))
            return self._kept[-1]

    def tensor(self, shape: tuple[int, ...], dtype: str, pin: bool) -> Tensor:
        """The same as a tensor; if `pin`, in page-locked memory, which torch uses again itself."""
        if pin:
            return torch.empty(shape, dtype=DTYPES[dtype], pin_memory=True)
        return torch.from_numpy(self.empty(shape, dtype))


def _references(arrays: list[NDArray[Any]]) -> list[int]:
    """Of each, the list's and what the question itself costs among them. How many that is differs from one Python to
    another (3.14 borrows those of local variables), so what nobody has is measured, not known; no variable is involved.
    """
    return list(map(sys.getrefcount, arrays))


def gather(source: NDArray[Any], rows: Ints, out: NDArray[Any]) -> None:
    """``out[i] = source[rows[i]]``. Releases Python's lock. source: contiguous [N, …], which has all `rows`. out:
    contiguous [B, …].
    """
    if out[:1].nbytes >= STREAMED and native.available():
        native.gather(source, rows, out)
    else:
        np.take(source, rows, axis=0, out=out, mode="clip")  # "clip" lets NumPy write into `out` directly
