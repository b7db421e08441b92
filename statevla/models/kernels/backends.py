"""Which kernel runs a Mamba layer: `auto`, or one asked for by name, with the reason logged once.

`cuda`       mamba-ssm with causal-conv1d, on an NVIDIA GPU, where both are installed
`triton`     the project's own kernels, on an NVIDIA GPU
`cpu`        the native C++ kernels
`loop`       plain PyTorch, any device; what `auto` falls back to, with a warning
`reference`  the slow one that the tests trust
"""

import functools
import logging
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from statevla.models.kernels import native
from stores.errors import UsageError

log = logging.getLogger(__name__)

BackendName = Literal["cuda", "triton", "cpu", "loop", "reference"]
REQUESTS = ("auto", *get_args(BackendName))


@dataclass(frozen=True)
class Backend:
    """The kernel that runs, and why it was taken."""

    name: BackendName
    reason: str


def resolve_backend(requested: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Decide which kernel runs `requested` on this device and dtype; the first time, log it with the reason.

    Raises:
        UsageError: `requested` is no backend, or one named outright cannot run here (says what to install).
    """
    return _resolve(requested, device.type, dtype)


def backend_name(requested: str, device: str, dtype: torch.dtype) -> BackendName:
    """`resolve_backend`'s name; `torch.compile` takes it as known instead of tracing the search."""
    return _resolve(requested, device, dtype).name


# What torch.compiler.assume_constant_result does, which first loads all of the compiler: half of a command's start.
backend_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _resolve(requested: str, device: str, dtype: torch.dtype) -> Backend:
    if requested not in REQUESTS:
        raise UsageError(f"mamba backend {requested!r} is none of {', '.join(REQUESTS)}")
    if requested != "auto":
        obstacle = obstacle_to(requested, device, dtype)
        if obstacle is not None:
            raise UsageError(f"mamba backend {requested!r} cannot run on {device} with {dtype}: {obstacle}")
        backend = Backend(_name(requested), "asked for")
        log.info("mamba backend %s on %s: asked for", backend.name, device)
        return backend
    wanted = ("cuda", "triton") if device == "cuda" else ("cpu",)
    obstacles: list[str] = []
    for name in wanted:
        obstacle = obstacle_to(name, device, dtype)
        if obstacle is None:
            reason = "; ".join(["first choice that can run", *obstacles])
            log.info("mamba backend %s on %s %s: %s", name, device, dtype, reason)
            return Backend(_name(name), reason)
        obstacles.append(f"{name}: {obstacle}")
    reason = "; ".join(obstacles)
    log.warning("mamba backend loop (slow, O(B L E N) memory) on %s %s, because %s", device, dtype, reason)
    return Backend("loop", reason)


def _name(text: str) -> BackendName:
    for name in get_args(BackendName):
        if name == text:
            return name  # type: ignore[no-any-return]
    raise UsageError(f"mamba backend {text!r} is none of {', '.join(REQUESTS)}")


def obstacle_to(name: str, device: str, dtype: torch.dtype) -> str | None:
    """Why backend `name` cannot run on this device and dtype and what to install; None when it can."""
    if name == "cpu":
        return _obstacle_to_cpu(device, dtype)
    if name == "triton":
        return _obstacle_to_triton(device, dtype)
    if name == "cuda":
        return _obstacle_to_cuda(device, dtype)
    return None


def _obstacle_to_cpu(device: str, dtype: torch.dtype) -> str | None:
    if device != "cpu":
        return "it runs on the CPU only; take backend 'auto'"
    if dtype not in native.IO_CODES:
        return f"it computes {', '.join(map(str, native.IO_CODES))}, not {dtype}"
    loaded = native.load()
    return loaded if isinstance(loaded, str) else None


def _obstacle_to_triton(device: str, dtype: torch.dtype) -> str | None:
    if device != "cuda":
        return "it runs on an NVIDIA GPU only; move the model to one or take backend 'auto'"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it computes float32, float16 and bfloat16, not {dtype}"
    return _launch("triton", dtype)


def _obstacle_to_cuda(device: str, dtype: torch.dtype) -> str | None:
    if device != "cuda":
        return "it runs on an NVIDIA GPU only; move the model to one or take backend 'auto'"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it computes float32, float16 and bfloat16, not {dtype}"
    return _launch("cuda", dtype)


HINTS: dict[str, str] = {
    "triton": "Triton comes with PyTorch's CUDA builds and needs a driver and a C compiler: docs/install-gpu.md",
    "cuda": "mamba-ssm and causal-conv1d must be made for exactly this PyTorch: docs/install-gpu.md",
}


@functools.cache
def _launch(name: str, dtype: torch.dtype) -> str | None:
    """Run the backend on something tiny. What imports may still not compile, load or fit the driver, and each of them
    fails with errors of its own: whatever it is, it is the reason."""
    try:
        tiny(name, dtype)
    except Exception as error:
        return f"a first launch failed ({type(error).__name__}: {str(error).strip()[:200]}). {HINTS[name]}"
    return None


def tiny(name: str, dtype: torch.dtype) -> None:
    """A layer without its first projection, at the smallest sizes on the GPU, to its end."""
    from statevla.models.kernels import cuda, inner_op, triton_kernels

    def draw(*size: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.ones(size, dtype=kind, device="cuda")

    inner, states, rank, taps = 16, 8, 8, 4  # widths that causal-conv1d takes
    xz = draw(1, 4, 2 * inner, kind=dtype)
    parameters = (
        draw(inner, 1, taps),
        draw(inner),
        draw(rank + 2 * states, inner),
        draw(inner, rank),
        draw(inner),
        draw(inner, states),
        draw(inner),
    )
    with torch.no_grad():
        if name == "triton":
            inner_op.forward(triton_kernels, xz, *parameters, keep=False)
        else:
            cuda.layer(xz, *parameters, draw(inner // 2, inner))
    torch.cuda.synchronize()
