"""Mamba backends as layers on an NVIDIA GPU: correctness first, then speed and memory. `run.py` beside this calls it.

Letters: B batch, L time steps, D width.

Correctness compares output and every gradient with the reference in float64 and stops on the first failure. Then:
training steps (forward, backward, AdamW) of the 12-layer context encoder's stack in bfloat16 autocast, latency of one
observation, and the bare scan against the memory traffic that nobody can avoid. A measurement that runs out of memory
or comes after the time budget says so in its place.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from statevla.models.kernels import backends, ops, triton_kernels
from statevla.models.mamba import Mamba

WIDTH, LENGTH, DEPTH, STATES = 256, 395, 12, 16
BATCHES = (64, 128, 256)
CHANNELS = (8, 16, 32)
LIMITS = {torch.float32: 2e-4, torch.bfloat16: 4e-2}  # of the largest entry; matrix products in TF32 are off


class Block(nn.Module):
    """RMSNorm → layer → residual."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = nn.RMSNorm(WIDTH, eps=1e-5), layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.norm(x))  # type: ignore[no-any-return]


def runnable() -> dict[str, str | None]:
    """Backend names, each with what keeps it from running (None: nothing)."""
    return {name: backends.obstacle_to(name, "cuda", torch.bfloat16) for name in ("triton", "cuda")}


def stack(backend: str) -> nn.Sequential:
    """12 blocks on the GPU; `mamba_ssm` is that package's own module with its fused path."""
    torch.manual_seed(0)
    if backend == "mamba_ssm":
        from mamba_ssm import Mamba as Theirs

        layers = [Theirs(WIDTH, d_state=STATES, d_conv=4, expand=2) for _ in range(DEPTH)]
    else:
        layers = [Mamba(WIDTH, d_state=STATES, backend=backend) for _ in range(DEPTH)]
    return nn.Sequential(*(Block(layer) for layer in layers)).cuda()


def check(backend: str, dtype: torch.dtype, batch: int, length: int, width: int, states: int) -> float:
    """Largest error of output and gradients, relative to the largest entry of each.

    Raises:
        SystemExit: it is above the limit.
    """
    torch.manual_seed(0)
    layer = Mamba(width, d_state=states).to("cuda", dtype)
    x = torch.randn(batch, length, width, device="cuda").to(dtype)
    weight = torch.randn(batch, length, width, device="cuda", dtype=torch.float64)

    def results(layer: Mamba, x: Tensor, name: str) -> list[Tensor]:
        layer.backend = name
        x = x.detach().requires_grad_()
        y = layer(x)
        gradients = torch.autograd.grad((y.double() * weight).sum(), [x, *layer.parameters()])
        return [y.detach(), *gradients]

    ours = results(layer, x, backend)
    exact = results(layer.double(), x.double(), "reference")
    pairs = zip(ours, exact, strict=True)
    error = max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    if not error <= LIMITS[dtype]:
        raise SystemExit(f"{backend} in {dtype} at B {batch}, L {length}, D {width}, N {states} is WRONG: {error:.2e}")
    return error


def correctness() -> dict[str, float]:
    """Errors of every backend that can run, over shapes with tails in every block."""
    errors = {}
    for backend, obstacle in runnable().items():
        if obstacle is not None:
            continue
        for dtype in LIMITS:
            for batch, length, width, states in ((2, 64, 64, 16), (3, 37, 24, 16), (1, 12, 48, 64), (2, 1, 16, 16)):
                name = f"{backend} {str(dtype).removeprefix('torch.')} B{batch} L{length} D{width} N{states}"
                errors[name] = check(backend, dtype, batch, length, width, states)
    return errors


def milliseconds(run: Callable[[], object], rounds: int) -> float:
    """Median over rounds, by events on the GPU, after three warm-ups."""
    times = []
    for turn in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if turn >= 3:
            times.append(float(start.elapsed_time(end)))
    return statistics.median(times)


def training(backend: str, batch: int) -> dict[str, Any]:
    """Samples a second and peak memory of training steps in bfloat16 autocast."""
    try:
        model = stack(backend)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        x = torch.randn(batch, LENGTH, WIDTH, device="cuda")

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(x).float().square().mean()
            loss.backward()
            optimizer.step()

        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        took = milliseconds(step, rounds=10)
        return {
            "ms": took,
            "samples_per_s": batch / took * 1e3,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        }
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    finally:
        torch.cuda.empty_cache()


def latency(backend: str) -> dict[str, float]:
    """One observation through the stack without gradients, in float32 and in bfloat16 autocast."""
    model = stack(backend).eval()
    x = torch.randn(1, LENGTH, WIDTH, device="cuda")
    result = {}
    with torch.no_grad():
        result["float32_ms"] = milliseconds(lambda: model(x), rounds=30)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            result["bfloat16_ms"] = milliseconds(lambda: model(x), rounds=30)
    return result


def bare_scan(channels: int, batch: int) -> dict[str, float]:
    """The Triton scan alone in bfloat16 with `channels` a program, and the GB/s of the traffic it cannot avoid."""
    triton_kernels.CHANNELS = channels
    inner = 2 * WIDTH
    torch.manual_seed(0)
    u, dt, z = (torch.randn(batch, LENGTH, inner, device="cuda").bfloat16() for _ in range(3))
    b, c = (torch.randn(batch, LENGTH, STATES, device="cuda").bfloat16() for _ in range(2))
    a = -torch.arange(1, STATES + 1, device="cuda", dtype=torch.float32).expand(inner, -1)
    inputs = [u, dt, torch.full((inner,), -4.6, device="cuda"), a, b, c, torch.ones(inner, device="cuda"), z]
    inputs = [x.detach().requires_grad_() for x in inputs]
    grad = torch.ones_like(u)

    def forward() -> None:
        with torch.no_grad():
            ops.selective_scan(*inputs)

    def both() -> None:
        torch.autograd.grad(ops.selective_scan(*inputs)[0], inputs, grad)

    forward_ms, both_ms = milliseconds(forward, 10), milliseconds(both, 10)
    one = u.numel() * u.element_size()  # forward: three in, one out; backward: four in, three out
    return {
        "forward_ms": forward_ms,
        "forward_backward_ms": both_ms,
        "forward_gb_per_s": 4 * one / forward_ms / 1e6,
        "forward_backward_gb_per_s": 11 * one / both_ms / 1e6,
    }


def contenders() -> list[str]:
    """Backends that can run here, and mamba-ssm's own module where that package is."""
    names = [name for name, obstacle in runnable().items() if obstacle is None]
    return [*names, "mamba_ssm"] if "cuda" in names else names


def choose_channels(put: Callable[[str, Callable[[], Any]], Any]) -> int:
    """Time the bare scan with each number of channels a program, keep the fastest for all that follows."""
    done = {c: put(f"scan, batch 64, {c} channels a program", partial(bare_scan, c, 64)) for c in CHANNELS}
    timed = {c: value["forward_backward_ms"] for c, value in done.items() if "failed" not in value}
    if timed:
        triton_kernels.CHANNELS = min(timed, key=lambda c: timed[c])
    return triton_kernels.CHANNELS
