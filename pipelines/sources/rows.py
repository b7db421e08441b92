"""A dataset of an HDF5 file, for who asks it the same things again and again."""

import math
import os
from functools import cached_property
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from stores.errors import SourceError

WORTH: Final = 2**18
"""Bytes of a dataset from which on it is read past HDF5: pictures are, robot states are not."""


class Rows:
    """A dataset, and what HDF5 says of it, asked once: every answer costs microseconds, h5py's own object several."""

    def __init__(self, found: h5py.h5d.DatasetID) -> None:
        self.id = found
        self.unpacked: tuple[int, dict[tuple[int, ...], NDArray[Any]]] = (-1, {})
        """Chunks that were unpacked last, all that begin at one row: (that row, values by place in the other axes)."""

    @cached_property
    def extent(self) -> tuple[int, ...] | None:
        """Its shape; None where it has no dataspace, and so not even that."""
        extent: tuple[int, ...] | None = self.id.shape
        return extent

    @property
    def shape(self) -> tuple[int, ...]:
        """Also () when it is `empty`."""
        return self.extent or ()

    @property
    def empty(self) -> bool:
        """Whether it has no dataspace."""
        return self.extent is None

    @cached_property
    def stored_type(self) -> h5py.h5t.TypeID:
        """The type as the file has it."""
        return self.id.get_type()

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type nearest to it."""
        dtype: np.dtype[Any] = self.stored_type.dtype
        return dtype

    @cached_property
    def properties(self) -> h5py.h5p.PropDCID:
        """How it was created: layout, filters, external files."""
        return self.id.get_create_plist()

    @cached_property
    def layout(self) -> int:
        """``h5py.h5d.CONTIGUOUS``, ``CHUNKED``, ``COMPACT`` or ``VIRTUAL``."""
        layout: int = self.properties.get_layout()
        return layout

    @cached_property
    def chunks(self) -> tuple[int, ...] | None:
        """Shape of a chunk, None where it is unchunked."""
        return self.properties.get_chunk() if self.layout == h5py.h5d.CHUNKED else None

    @cached_property
    def filters(self) -> list[Any]:
        """What its chunks went through, as HDF5 describes it; the code comes first."""
        return [self.properties.get_filter(number) for number in range(self.properties.get_nfilters())]

    @cached_property
    def row_bytes(self) -> int:
        """Of one row in memory."""
        return math.prod(self.shape[1:]) * int(self.dtype.itemsize)

    @cached_property
    def nbytes(self) -> int:
        """Of all rows in memory."""
        return math.prod(self.shape) * int(self.dtype.itemsize)

    @cached_property
    def place(self) -> h5py.h5s.SpaceID:
        """The dataspace in the file; a read selects its rows in it."""
        return self.id.get_space()

    @cached_property
    def whereabouts(self) -> tuple[int, int] | None:
        """Where its bytes lie in one piece: (descriptor of the open file, first byte); None where they do not, the file
        is not one of the system's, or they are too few to be worth the question.
        """
        if self.nbytes < WORTH or self.layout != h5py.h5d.CONTIGUOUS or self.properties.get_external_count():
            return None
        file, first = h5py.h5i.get_file_id(self.id), self.id.get_offset()
        if first is None or file.get_access_plist().get_driver() != h5py.h5fd.SEC2:
            return None
        return int(file.get_vfd_handle()), int(first)

    def read_past_hdf5(self, start: int, array: NDArray[Any]) -> bool:
        """Fill `array` with the rows from `start` on, or say that HDF5 is to be asked: they do not lie in one piece, or
        are not all there. Its own way to them takes more than twice as long. Raises SourceError where the file ends
        before.
        """
        if self.whereabouts is None or not 0 <= start <= self.shape[0] - len(array):
            return False
        descriptor, first = self.whereabouts
        left, place = array.reshape(-1).view(np.uint8).data, first + start * self.row_bytes
        while left:
            count = os.preadv(descriptor, [left], place)
            if count == 0:
                raise SourceError("the file was cut short while it was read")
            left, place = left[count:], place + count
        return True

    @property
    def name(self) -> str:
        """Its path in the file."""
        return str(h5py.h5i.get_name(self.id).decode())
