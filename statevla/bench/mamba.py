"""Speed of the Mamba layers, against the work in them that no scan can avoid, and against other implementations.

The limit (floor) is the same stack with the scan taken out: norms, the four matrix products and the fused convolution.
Figures are milliseconds a layer, so that stacks of different depth and peers that are measured on one layer compare.

Letters: B batch, L time steps, D width.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from statevla.bench.machine import describe_machine, usable_cores
from statevla.models.kernels import native, ops, reference
from statevla.models.kernels.backends import resolve_backend
from statevla.models.mamba import Mamba
from stores.errors import UsageError

WIDTH, LENGTH, DEPTH, STATES = 256, 395, 12, 16
ROUNDS: Final = {1: 15, 16: 5}
"""Turns by batch size: one sequence takes milliseconds, in which other work on the machine shows."""


class _Block(nn.Module):
    """RMSNorm → layer → residual, as the context encoder has it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = nn.RMSNorm(WIDTH, eps=1e-5), layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.norm(x))  # type: ignore[no-any-return]


class _Floor(Mamba):
    """A Mamba layer without scan and gate: dt's projection goes straight to the output projection."""

    def forward(self, x: Tensor) -> Tensor:
        inner, _ = self.in_proj(x).chunk(2, dim=-1)
        u = ops.conv_silu(inner, self.conv1d.weight[:, 0], self._conv_bias())
        return self.out_proj(self.dt_proj(self.x_proj(u)[..., : self.dt_rank]))  # type: ignore[no-any-return]


def bench_mamba(*, quick: bool = False, peers: bool = True) -> dict[str, Any]:
    """Median milliseconds a layer, forward and backward, batch 16 (2 when quick) on all usable cores.

    Returns name, unit, ours, limit, ratio (limit / ours: 1 is the floor), peers, machine, details. ``details`` has
    every batch size, thread count and direction of stack, floor and bare scan, with stack / floor, and the scan's error
    against float64. The peers take one layer and one sequence: transformers' slow path needs seconds for sixteen.

    Raises:
        UsageError: the native kernels are not built.
    """
    if not native.available():
        raise UsageError(f"nothing to measure: {native.load()}")
    batches = (1, 2) if quick else (1, 16)
    depth, rounds = (2, {1: 3, 2: 3}) if quick else (DEPTH, ROUNDS)
    before, cores = torch.get_num_threads(), usable_cores()
    details: dict[str, Any] = {
        "backend": resolve_backend("auto", torch.device("cpu"), torch.float32).name,
        "instruction_set": native.instruction_set(),
        "shape": {"length": LENGTH, "width": WIDTH, "states": STATES, "depth": depth},
        "error_against_float64": _scan_error(),
    }
    try:
        for threads in sorted({1, cores}):
            torch.set_num_threads(threads)
            for batch in batches:
                details[f"batch {batch}, threads {threads}"] = _stack_and_floor(batch, depth, rounds[batch]) | _scan(
                    batch, rounds[batch]
                )
        others = _peers(rounds=1 if quick else 3) if peers else {}
    finally:
        torch.set_num_threads(before)
    headline = details[f"batch {batches[-1]}, threads {cores}"]
    ours, limit = headline["stack forward+backward"], headline["floor forward+backward"]
    return {
        "name": "mamba",
        "unit": f"ms a layer, forward and backward, batch {batches[-1]} x {LENGTH} steps (less is better)",
        "ours": ours,
        "limit": limit,
        "ratio": limit / ours,
        "peers": others,
        "machine": describe_machine(),
        "details": details,
    }


def _medians(contenders: dict[str, Callable[[], object]], rounds: int, layers: int = 1) -> dict[str, float]:
    """Milliseconds a layer; the contenders take turns, the first turn is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3 / layers)
    return {name: round(statistics.median(values), 4) for name, values in times.items()}


def _forward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            model(x)

    return run


def _forward_backward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        model(x).sum().backward()

    return run


def _stack_and_floor(batch: int, depth: int, rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    stack = nn.Sequential(*(_Block(Mamba(WIDTH, d_state=STATES)) for _ in range(depth)))
    floor = nn.Sequential(*(_Block(_Floor(WIDTH, d_state=STATES)) for _ in range(depth)))
    x = torch.randn(batch, LENGTH, WIDTH)
    contenders = {
        "stack forward": _forward(stack, x),
        "floor forward": _forward(floor, x),
        "stack forward+backward": _forward_backward(stack, x),
        "floor forward+backward": _forward_backward(floor, x),
    }
    found = _medians(contenders, rounds, depth)
    for direction in ("forward", "forward+backward"):
        found[f"stack / floor {direction}"] = round(found[f"stack {direction}"] / found[f"floor {direction}"], 3)
    return found


def _scan_inputs(batch: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """u, dt, dt_bias, a, b, c, d, z with the spread that a fresh layer gives them."""
    torch.manual_seed(1)
    layer = Mamba(WIDTH, d_state=STATES)
    inner, acc = layer.d_inner, reference.accumulation_dtype(dtype)
    sizes = [(batch, LENGTH, width) for width in (inner, inner, STATES, STATES, inner)]
    u, dt, b, c, z = (torch.randn(size, dtype=torch.float64).to(dtype) for size in sizes)
    a = -torch.exp(layer.A_log.detach().to(acc))
    return [u, dt, layer.dt_proj.bias.detach().to(acc), a, b, c, layer.D.detach().to(acc), z]


def _scan(batch: int, rounds: int) -> dict[str, float]:
    """The scan by itself, with softplus, skip and gate, in its operator."""
    inputs = [x.requires_grad_() for x in _scan_inputs(batch)]

    def forward() -> None:
        with torch.no_grad():
            ops.selective_scan(*inputs)

    ones = torch.ones_like(inputs[0])

    def both() -> None:
        torch.autograd.grad(ops.selective_scan(*inputs)[0], inputs, ones)

    return _medians({"scan forward": forward, "scan forward+backward": both}, rounds)


def _scan_error() -> dict[str, float]:
    """Largest error of the float32 scan, relative to the largest entry: output, and the worst of the gradients."""
    single = [x.requires_grad_() for x in _scan_inputs(1)]
    double = [x.detach().double().requires_grad_() for x in single]
    out, _ = ops.selective_scan(*single)
    exact, _ = reference.selective_scan(*double)
    weight = torch.randn_like(out)
    ours = torch.autograd.grad(out, single, weight)
    true = torch.autograd.grad(exact, double, weight.double())

    def worst(a: Tensor, b: Tensor) -> float:
        return ((a.double() - b).abs().max() / b.abs().max()).item()

    gradients = max(worst(a, b) for a, b in zip(ours, true, strict=True))
    return {"output": worst(out.detach(), exact.detach()), "gradients": gradients}


def _peers(rounds: int) -> dict[str, float]:
    """One layer of each implementation, one sequence, forward and backward; those not installed are left out."""
    torch.manual_seed(0)
    x = torch.randn(1, LENGTH, WIDTH)
    layers: dict[str, nn.Module] = {
        "ours_one_layer": Mamba(WIDTH, d_state=STATES),
        "torch_loop": Mamba(WIDTH, d_state=STATES, backend="loop"),
    }
    for name, make in {"mambapy": _mambapy, "transformers_slow": _transformers}.items():
        try:
            layers[name] = make()
        except ImportError:
            continue
    return _medians({name: _forward_backward(_Block(layer), x) for name, layer in layers.items()}, rounds)


def _mambapy() -> nn.Module:
    from mambapy.mamba import MambaBlock, MambaConfig

    layer: nn.Module = MambaBlock(MambaConfig(d_model=WIDTH, n_layers=1, d_state=STATES))
    return layer


def _transformers() -> nn.Module:
    """Its path without CUDA kernels and without mambapy: a loop over time."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = MambaConfig(hidden_size=WIDTH, state_size=STATES, num_hidden_layers=1, use_mambapy=False)
    layer: nn.Module = MambaMixer(config, layer_idx=0)
    return layer.train()
