"""Mamba backends as layers on a GPU: a stack's training steps and latency, and the bare scan against its traffic.

Letters: B batch, L time steps, D width.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from statevla.bench.gpu import correct
from statevla.bench.gpu.report import Report
from statevla.bench.gpu.timing import forget_peak, milliseconds, peak_gb
from statevla.models.kernels import backends
from statevla.models.kernels.inputs import Rows, ScanInputs, Sums
from statevla.models.mamba import Mamba

if TYPE_CHECKING:
    from statevla.models.kernels.triton_kernels import Tile

WIDTH, LENGTH, DEPTH, STATES = 256, 395, 12, 16
FLOW_LENGTH = 12
"""Tokens of the flow policy, whose layers have 64 states."""


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


def bare_scan(batch: int, states: int = STATES, length: int = LENGTH) -> dict[str, Any]:
    """The Triton scan alone in bfloat16: milliseconds, and of them the part that copying the traffic would take that
    no scan can avoid (forward three in and one out; backward four in and three out) at `copy_gb_per_s`."""
    from statevla.models.kernels import triton_kernels

    x, dout, rows, sums = scan_tensors(batch, states, length)
    out, kept = torch.empty_like(x.u), x.u.new_empty(0, dtype=torch.float32)
    forward_ms = milliseconds(lambda: triton_kernels.scan_forward(x, out, None, None, None), 20)
    backward_ms = milliseconds(
        lambda: triton_kernels.scan_backward(x, kept, dout, None, rows, sums, None, out),
        20,
    )
    one = x.u.numel() * x.u.element_size() / 1e6
    return {
        "forward_ms": forward_ms,
        "backward_ms": backward_ms,
        "forward_gb_per_s": 4 * one / forward_ms,
        "backward_gb_per_s": 7 * one / backward_ms,
    }


def scan_tensors(batch: int, states: int, length: int) -> tuple[ScanInputs, Tensor, Rows, Sums]:
    """Random inputs of the scan, an output's gradient, and empty places for all gradients, laid out as a layer has
    them: z and dz are halves of wider rows, B and C parts of the projection."""
    inner = 2 * WIDTH
    torch.manual_seed(0)

    def draw(width: int) -> Tensor:
        return torch.randn(batch, length, width, device="cuda").bfloat16()

    def state_rows(projected: Tensor) -> tuple[Tensor, Tensor]:
        return projected[..., 16 : 16 + states], projected[..., 16 + states :]

    a = -torch.arange(1, states + 1, device="cuda", dtype=torch.float32).expand(inner, -1).contiguous()
    bias, d = torch.full((inner,), -4.6, device="cuda"), torch.ones(inner, device="cuda")
    b, c = state_rows(draw(16 + 2 * states))
    x = ScanInputs(draw(inner), draw(inner), bias, a, b, c, d, draw(2 * inner)[..., inner:])
    rows = (draw(inner), draw(inner), draw(2 * inner)[..., inner:], *state_rows(draw(16 + 2 * states)))
    return x, draw(inner), rows, (torch.empty_like(bias), torch.empty_like(a), torch.empty_like(d))


def tile(kernel: str, choice: "Tile", states: int, batch: int, length: int) -> dict[str, Any]:
    """One way to divide the scan's work: right first, then timed; it stays chosen.

    Raises:
        Wrong: it is not right.
    """
    from statevla.models.kernels import triton_kernels

    setattr(triton_kernels, kernel, choice)
    found = correct.layer("triton", torch.bfloat16, (min(batch, 32), 37, WIDTH, states), "cuda")  # as many: this tile
    return found | bare_scan(batch, states, length)


def tune(report: Report, kernel: str, part: str, batch: int, choices: "tuple[Tile, ...]", states: int = STATES) -> None:
    """Time `choices` for one kernel and keep the fastest for all that follows."""
    from statevla.models.kernels import triton_kernels

    before = getattr(triton_kernels, kernel)
    length = LENGTH if states == STATES else FLOW_LENGTH
    timed = {}
    for choice in choices:
        name = f"tile {kernel}, {states} states, batch {batch}, {'x'.join(map(str, choice))}"
        found = report.put(name, partial(tile, kernel, choice, states, batch, length))
        if part in found:
            timed[choice] = found[part]
    setattr(triton_kernels, kernel, min(timed, key=lambda c: timed[c]) if timed else before)
    report.content["tiles"][kernel] = getattr(triton_kernels, kernel)
