"""Chunks of an HDF5 dataset, unpacked here: never to more than they declare, and none that is not found."""

import itertools
import math
from typing import Any, Final

import h5py
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from pipelines.sources.rows import Rows
from stores.errors import SourceError

FLETCHER_BYTES: Final = 4


def decodes(data: Rows) -> bool:
    """Whether the chunks are unpacked here: all filters but the checksum, which HDF5 is left to compare."""
    return all(described[0] != h5py.h5z.FILTER_FLETCHER32 for described in data.filters)


def read_chunks(data: Rows, chunk: tuple[int, ...], start: int, array: NDArray[Any]) -> None:
    """Fill `array` with rows from `start` on. A chunk never becomes more than it was declared to be, and is unpacked
    once for all reads that need it in turn.
    """
    stop, step = start + len(array), chunk[0]
    others = [range(0, size, width) for size, width in zip(data.shape[1:], chunk[1:], strict=True)]
    for begin in range(start // step * step, stop, step):
        if data.unpacked[0] != begin:
            data.unpacked = (begin, {rest: _unpack(data, chunk, (begin, *rest)) for rest in itertools.product(*others)})
        low, high = max(start, begin), min(stop, begin + step)
        for rest, values in data.unpacked[1].items():
            cut = tuple(slice(first, first + width) for first, width in zip(rest, chunk[1:], strict=True))
            target = array[(slice(low - start, high - start), *cut)]
            target[...] = values[(slice(low - begin, high - begin), *(slice(0, size) for size in target.shape[1:]))]


def _unpack(data: Rows, chunk: tuple[int, ...], place: tuple[int, ...]) -> NDArray[Any]:
    """One chunk [*chunk]. Raises SourceError when it is not found (HDF5 would read zeros) or is another size."""
    mask, packed = data.id.read_direct_chunk(place)
    size = math.prod(chunk) * data.dtype.itemsize
    if not packed or mask:
        raise SourceError(f"{data.name}: the chunk at {place} is not found")
    for described in reversed(data.filters):
        packed = _inflate(packed, size) if described[0] == h5py.h5z.FILTER_DEFLATE else _unshuffle(packed, data)
    if len(packed) != size:
        raise SourceError(f"{data.name}: the chunk at {place}: {size:,} bytes declared, {len(packed):,} or more there")
    return np.frombuffer(packed, data.dtype).reshape(chunk)


def _inflate(packed: bytes, size: int) -> bytes:
    """Unpack, but never more than one byte past `size`."""
    stream = isal_zlib.decompressobj()
    try:
        found: bytes = stream.decompress(packed, max_length=size + 1)
    except isal_zlib.error as error:  # type: ignore[misc]
        raise SourceError(f"a chunk is not what gzip wrote: {error}") from error
    if len(found) == size and not stream.eof:
        found += stream.decompress(stream.unconsumed_tail, max_length=1)
    if not stream.eof and len(found) <= size:
        raise SourceError("a chunk ends before what gzip wrote does")
    return found


def _unshuffle(packed: bytes, data: Rows) -> bytes:
    """Bytes of equal weight lie together; put each value's together again."""
    width = data.dtype.itemsize
    if len(packed) % width:
        raise SourceError(f"{data.name}: a chunk of {len(packed):,} bytes is not whole values of {width}")
    return np.frombuffer(packed, np.uint8).reshape(width, -1).T.tobytes()


def require_found(data: Rows, chunk: tuple[int, ...], start: int, stop: int) -> None:
    """Look every chunk of these rows up as reading will: a damaged index can list a chunk and not find it, and what is
    not found reads as zeros. Raises SourceError, or what h5py raises.
    """
    step, *steps = chunk
    others = [range(0, size, width) for size, width in zip(data.shape[1:], steps, strict=True)]
    for place in itertools.product(range(start // step * step, stop, step), *others):
        packed = data.id.read_direct_chunk(place)[1]
        if not packed:
            raise SourceError(f"{data.name}: the chunk at {place} is not found")
        if any(described[0] == h5py.h5z.FILTER_DEFLATE for described in data.filters):
            size = math.prod(chunk) * data.dtype.itemsize
            if data.filters[-1][0] == h5py.h5z.FILTER_FLETCHER32:
                packed = packed[:-4]
            if len(_inflate(packed, size + FLETCHER_BYTES)) > size + FLETCHER_BYTES:
                raise SourceError(f"{data.name}: the chunk at {place} unpacks to more than the {size:,} bytes declared")
