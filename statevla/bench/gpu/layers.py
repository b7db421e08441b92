"""Mamba backends as layers on a GPU: a stack's training steps and latency, and the bare scan against its traffic.

Letters: B batch, L time steps, D width.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from statevla.bench.gpu.report import Report
from statevla.bench.gpu.timing import forget_peak, milliseconds, peak_gb
from statevla.models.kernels import backends, ops
from statevla.models.mamba import Mamba

WIDTH, LENGTH, DEPTH, STATES = 256, 395, 12, 16
CHANNELS = (8, 16, 32)


class Block(nn.Module):
    """RMSNorm → layer → residual."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = nn.RMSNorm(WIDTH, eps=1e-5), layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.norm(x))  # type: ignore[no-any-return]


def runnable(device: str) -> dict[str, str | None]:
    """Fast backends by name, each with what keeps it from running (None: nothing)."""
    names = ("triton", "cuda") if device == "cuda" else ("cpu",)
    return {name: backends.obstacle_to(name, device, torch.bfloat16) for name in names}


def contenders(device: str) -> list[str]:
    """Backends that can run here, and mamba-ssm's own module where that package is."""
    names = [name for name, obstacle in runnable(device).items() if obstacle is None]
    return [*names, "mamba_ssm"] if "cuda" in names else names


def stack(backend: str, device: str) -> nn.Sequential:
    """12 blocks; `mamba_ssm` is that package's own module with its fused path."""
    torch.manual_seed(0)
    if backend == "mamba_ssm":
        from mamba_ssm import Mamba as Theirs

        layers = [Theirs(WIDTH, d_state=STATES, d_conv=4, expand=2) for _ in range(DEPTH)]
    else:
        layers = [Mamba(WIDTH, d_state=STATES, backend=backend) for _ in range(DEPTH)]
    return nn.Sequential(*(Block(layer) for layer in layers)).to(device)


def steps(backend: str, batch: int, device: str) -> dict[str, Any]:
    """Samples a second and peak memory of a stack's training steps in bfloat16 autocast."""
    model = stack(backend, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x = torch.randn(batch, LENGTH, WIDTH, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()

    step()
    forget_peak(device)
    took = milliseconds(step, 10, device)
    return {"ms": took, "samples_per_s": batch / took * 1e3, "peak_gb": peak_gb(device)}


def latency(backend: str, device: str) -> dict[str, Any]:
    """One observation through the stack without gradients, in float32 and in bfloat16 autocast."""
    model = stack(backend, device).eval()
    x = torch.randn(1, LENGTH, WIDTH, device=device)
    result = {}
    with torch.no_grad():
        result["float32_ms"] = milliseconds(lambda: model(x), 30, device)
        with torch.autocast(device, dtype=torch.bfloat16):
            result["bfloat16_ms"] = milliseconds(lambda: model(x), 30, device)
    return result


def bare_scan(channels: int, batch: int, states: int = STATES, length: int = LENGTH) -> dict[str, Any]:
    """The Triton scan alone in bfloat16 with `channels` a program, and the GB/s of the traffic it cannot avoid."""
    from statevla.models.kernels import triton_kernels

    triton_kernels.CHANNELS = channels
    inner = 2 * WIDTH
    torch.manual_seed(0)
    u, dt, z = (torch.randn(batch, length, inner, device="cuda").bfloat16() for _ in range(3))
    b, c = (torch.randn(batch, length, states, device="cuda").bfloat16() for _ in range(2))
    a = -torch.arange(1, states + 1, device="cuda", dtype=torch.float32).expand(inner, -1)
    inputs = [u, dt, torch.full((inner,), -4.6, device="cuda"), a, b, c, torch.ones(inner, device="cuda"), z]
    inputs = [x.detach().requires_grad_() for x in inputs]
    grad = torch.randn_like(u)

    def forward() -> None:
        with torch.no_grad():
            ops.selective_scan(*inputs)

    def both() -> None:
        torch.autograd.grad(ops.selective_scan(*inputs)[0], inputs, grad)

    forward_ms, both_ms = milliseconds(forward, 20), milliseconds(both, 20)
    one = u.numel() * u.element_size()  # forward: three in, one out; backward: four in, three out
    return {
        "forward_ms": forward_ms,
        "forward_backward_ms": both_ms,
        "forward_gb_per_s": 4 * one / forward_ms / 1e6,
        "forward_backward_gb_per_s": 11 * one / both_ms / 1e6,
    }


def choose_channels(report: Report, right: set[int]) -> int:
    """Time the bare scan with each number of channels that is right; the fastest is kept for all that follows."""
    from statevla.models.kernels import triton_kernels

    before = triton_kernels.CHANNELS
    timed = {}
    for channels in sorted(right):
        found = report.put(f"scan, batch 64, {channels} channels a program", partial(bare_scan, channels, 64))
        if "forward_backward_ms" in found:
            timed[channels] = found["forward_backward_ms"]
    triton_kernels.CHANNELS = min(timed, key=lambda c: timed[c]) if timed else before
    return triton_kernels.CHANNELS
