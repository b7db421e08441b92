"""The native CPU kernels through ctypes: loading the library, and calls on tensors that are already checked.

Letters: B batch, L time steps, E inner channels, N states a channel, K taps. `csrc/abi.h` is the other side.

PyTorch's own OpenMP pool runs the tasks: the address of GOMP_parallel is taken from the libgomp that is already in
the process, so no second one is loaded and `torch.set_num_threads` is respected. Without one (a PyTorch built on
another threading library) the kernels run on the calling thread.
"""

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statevla.models.kernels.inputs import CHUNK, Rows, ScanInputs, Sums

log = logging.getLogger(__name__)

ABI_VERSION = 2
IO_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
_VOID, _INT = ctypes.c_void_p, ctypes.c_int64


def _rows(*names: str) -> list[tuple[str, type]]:
    """Fields of a tensor [B L width]: pointer and two strides."""
    fields: list[tuple[str, type]] = []
    for name in names:
        fields += [(name, ctypes.c_void_p), (f"{name}_b", ctypes.c_int64), (f"{name}_t", ctypes.c_int64)]
    return fields


def _sizes(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int64) for name in names]


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


class ScanArgs(ctypes.Structure):
    """`ScanArgs` of abi.h."""

    _fields_ = (
        *_sizes("io", "threads", "B", "L", "E", "N"),
        *_rows("u", "dt", "z", "b", "c"),
        *_pointers("dt_bias", "a", "d", "h0", "h_last", "kept"),
        *_rows("out", "dout"),
        *_pointers("dh_last"),
        *_rows("du", "ddt", "dz", "db", "dc"),
        *_pointers("ddt_bias", "da", "dd", "dh0"),
    )


class ConvArgs(ctypes.Structure):
    """`ConvArgs` of abi.h."""

    _fields_ = (
        *_sizes("io", "threads", "B", "L", "E", "K"),
        *_rows("x"),
        *_pointers("weight", "bias"),
        *_rows("out", "dout", "dx"),
        *_pointers("dweight", "dbias"),
    )


def _library_path() -> Path:
    return Path(__file__).resolve().parent / "_native.so"


@functools.cache
def load() -> ctypes.CDLL | str:
    """The library, or a sentence saying why there is none."""
    path = _library_path()
    if not path.is_file():
        return "the native kernels are not built; run `python -m statevla.models.kernels.build` (needs g++)"
    try:
        library = ctypes.CDLL(str(path))
        versions = (library.statevla_abi_version(), library.statevla_chunk())
        sizes = (library.statevla_sizes(0), library.statevla_sizes(1))
    except (OSError, AttributeError) as error:
        return f"{path.name} does not load ({error}); run `python -m statevla.models.kernels.build`"
    if versions != (ABI_VERSION, CHUNK) or sizes != (ctypes.sizeof(ScanArgs), ctypes.sizeof(ConvArgs)):
        return f"{path.name} is of another version; run `python -m statevla.models.kernels.build`"
    library.statevla_isa.restype = ctypes.c_char_p
    library.statevla_use_openmp.argtypes = [ctypes.c_void_p]
    library.statevla_use_openmp(_gomp_parallel())
    library.statevla_gather.argtypes = [_VOID, _INT, _VOID, _INT, _INT, _VOID]
    return library


def _gomp_parallel() -> int | None:
    """Address of GOMP_parallel in the OpenMP library that PyTorch loaded, None where there is none."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        lines = []
    loaded = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    for path in sorted(loaded):
        if Path(path).name.startswith(("libgomp", "libiomp5", "libomp")):
            try:
                return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value
            except (OSError, AttributeError):
                continue
    log.warning("PyTorch's OpenMP library was not found: the native kernels run on one thread")
    return None


def available() -> bool:
    """Whether the native kernels can be called."""
    return not isinstance(load(), str)


def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        RuntimeError: it is not there; callers ask `load` or `available` first.
    """
    loaded = load()
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


def instruction_set() -> str:
    """Name of the instruction set in use: baseline, avx2 or avx512."""
    return str(library().statevla_isa().decode())


def use_instruction_set(name: str) -> bool:
    """Take another instruction set for the whole process (tests, measurements); False if this processor lacks it."""
    return bool(library().statevla_use_isa(name.encode()) == 0)


def _row(args: ctypes.Structure, name: str, tensor: Tensor) -> None:
    setattr(args, name, tensor.data_ptr())
    setattr(args, f"{name}_b", tensor.stride(0))
    setattr(args, f"{name}_t", tensor.stride(1))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _call(name: str, args: ctypes.Structure) -> None:
    if getattr(library(), name)(ctypes.byref(args)) != 0:
        raise MemoryError(f"{name} could not allocate its working memory")


def _scan_args(x: ScanInputs) -> ScanArgs:
    """The fields that forward and backward share; the tensors must outlive the call."""
    args = ScanArgs(IO_CODES[x.u.dtype], torch.get_num_threads(), *x.u.shape, x.a.shape[1])
    for name, tensor in (("u", x.u), ("dt", x.dt), ("z", x.z), ("b", x.b), ("c", x.c)):
        _row(args, name, tensor)
    args.dt_bias, args.a, args.d = x.dt_bias.data_ptr(), x.a.data_ptr(), x.d.data_ptr()
    return args


def scan_forward(x: ScanInputs, out: Tensor, h0: Tensor | None, h_last: Tensor | None, kept: Tensor | None) -> None:
    """Fill `out` [B L E], and where given `h_last` [B E N] and `kept` (`kept_size` numbers)."""
    args = _scan_args(x)
    _row(args, "out", out)
    args.h0, args.h_last, args.kept = _address(h0), _address(h_last), _address(kept)
    _call("statevla_scan_forward", args)


def scan_backward(
    x: ScanInputs,
    kept: Tensor,
    dout: Tensor,
    dh_last: Tensor | None,
    rows: Rows,
    sums: Sums,
    dh0: Tensor | None,
    out: Tensor | None = None,
) -> None:
    """Fill `rows` = (du, ddt, dz, db, dc), `sums` = (ddt_bias, da, dd) and where given `dh0`."""
    if out is not None:
        raise ValueError("the native backward scan does not make the output again")
    args = _scan_args(x)
    _row(args, "dout", dout)
    for name, tensor in zip(("du", "ddt", "dz", "db", "dc"), rows, strict=True):
        _row(args, name, tensor)
    args.kept, args.dh_last, args.dh0 = kept.data_ptr(), _address(dh_last), _address(dh0)
    args.ddt_bias, args.da, args.dd = (tensor.data_ptr() for tensor in sums)
    _call("statevla_scan_backward", args)


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Fill `out` [B L E]."""
    args = ConvArgs(IO_CODES[x.dtype], torch.get_num_threads(), *x.shape, weight.shape[1])
    _row(args, "x", x)
    _row(args, "out", out)
    args.weight, args.bias = weight.data_ptr(), bias.data_ptr()
    _call("statevla_conv_forward", args)


def conv_backward(
    x: Tensor, weight: Tensor, bias: Tensor, dout: Tensor, dx: Tensor, dweight: Tensor, dbias: Tensor
) -> None:
    """Fill `dx` [B L E], `dweight` [E K] and `dbias` [E]."""
    args = ConvArgs(IO_CODES[x.dtype], torch.get_num_threads(), *x.shape, weight.shape[1])
    _row(args, "x", x)
    _row(args, "dout", dout)
    _row(args, "dx", dx)
    args.weight, args.bias = weight.data_ptr(), bias.data_ptr()
    args.dweight, args.dbias = dweight.data_ptr(), dbias.data_ptr()
    _call("statevla_conv_backward", args)


def gather(source: NDArray[Any], rows: NDArray[np.int64], out: NDArray[Any]) -> None:
    """``out[i] = source[rows[i]]``, past the processor's caches: for batches that are larger than they should be in
    there. All three contiguous, source and out of one dtype and shape of rows.

    Raises:
        IndexError: a row that `source` does not have; nothing was written.
    """
    count, size = len(rows), out[:1].nbytes
    if library().statevla_gather(source.ctypes.data, len(source), rows.ctypes.data, count, size, out.ctypes.data) != 0:
        raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of an array of {len(source)}")
