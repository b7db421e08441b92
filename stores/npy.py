"""NumPy's ``.npy`` format 1.0 for the small arrays inside segments: no pickle, headers parsed once."""

import ast
import functools
import io
import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.errors import StoreCorrupt

_MAGIC: Final = b"\x93NUMPY\x01\x00"


def encode_npy(array: NDArray[Any]) -> bytes:
    """Any non-object array -> the bytes that ``np.save`` would write, C order."""
    return _header(array.dtype.str, array.shape) + array.tobytes()


def decode_npy(data: bytes, name: str) -> NDArray[Any]:
    """Inverse of `encode_npy`; a read-only view of `data`. Raises StoreCorrupt naming `name`."""
    if len(data) < 10 or not data.startswith(_MAGIC):
        raise StoreCorrupt(f"{name}: expected an .npy 1.0 array, got {data[:8]!r}")
    start = 10 + struct.unpack_from("<H", data, 8)[0]
    try:
        dtype, shape = _parse(data[:start])
        return np.frombuffer(data, dtype, offset=start).reshape(shape)
    except (ValueError, KeyError, SyntaxError, TypeError) as error:
        raise StoreCorrupt(f"{name}: broken .npy array: {error}") from error


@functools.lru_cache(maxsize=1024)
def _header(descr: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@functools.lru_cache(maxsize=1024)
def _parse(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    fields = ast.literal_eval(header[10:].decode("latin-1"))
    dtype = np.dtype(fields["descr"])
    if fields["fortran_order"] or dtype.hasobject:
        raise ValueError(f"expected a C-order array of numbers, got {fields}")
    return dtype, tuple(int(n) for n in fields["shape"])
