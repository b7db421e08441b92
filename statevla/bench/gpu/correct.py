"""Numbers before speed: every backend against the float64 reference, and a replayed graph against eager acting.

Letters: B batch, L time steps, D width, N states a channel.
"""

from typing import Any

import torch
from torch import Tensor

from statevla.bench.gpu.acting import CASES, one_scene
from statevla.bench.gpu.report import Wrong
from statevla.bench.latency import Case, make_policy
from statevla.models.mamba import Mamba
from statevla.policies.prepare import Actor

SHAPES = ((2, 64, 64, 16), (3, 37, 24, 16), (1, 12, 48, 64), (2, 1, 16, 16))
"""B, L, D, N with a tail in every block, and one step."""

LIMITS = {torch.float32: 2e-4, torch.bfloat16: 4e-2}  # of the largest entry; matrix products in TF32 are off
GRAPH_LIMIT = 1e-3
"""Replayed against eager: the same kernels, though a library may choose others while capturing."""


def layer(backend: str, dtype: torch.dtype, shape: tuple[int, int, int, int], device: str) -> dict[str, Any]:
    """Largest error of a layer's output and gradients, relative to the largest entry of each; fresh random numbers.

    Raises:
        Wrong: it is above the limit, or not a number.
    """
    batch, length, width, states = shape
    torch.manual_seed(0)
    ours = Mamba(width, d_state=states, backend=backend).to(device, dtype)
    x = torch.randn(batch, length, width, device=device).to(dtype)
    weight = torch.randn(batch, length, width, device=device, dtype=torch.float64)

    def results(module: Mamba, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        y = module(x)
        return [y.detach(), *torch.autograd.grad((y.double() * weight).sum(), [x, *module.parameters()])]

    got = results(ours, x)
    exact = ours.double()
    exact.backend = "reference"
    wanted = results(exact, x.double())
    pairs = zip(got, wanted, strict=True)
    error = max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    if not error <= LIMITS[dtype]:
        raise Wrong(f"error {error:.2e} of the largest entry, limit {LIMITS[dtype]:.0e}")
    return {"error": error, "limit": LIMITS[dtype]}


def graphs(device: str, preset: str, vision: str, dtype: str, context: str) -> dict[str, Any]:
    """Largest difference of an action between a captured and an eager call, over six scenes one after the other.

    Raises:
        Wrong: it is above the limit, or all six scenes led to the same chunk.
    """
    policy = make_policy(Case(vision, dtype, context, preset), device)
    eager = Actor(policy.model, graphs=False)
    worst, first, moved = 0.0, None, 0.0
    for number in range(6):
        scene = one_scene(policy, number)
        got, wanted = policy.actor.act(scene), eager.act(scene)
        worst = max(worst, (got.chunk - wanted.chunk)[..., :6].abs().max().item())
        first = wanted.chunk if first is None else first
        moved = max(moved, (wanted.chunk - first).abs().max().item())
    if not worst <= GRAPH_LIMIT:
        raise Wrong(f"a replayed graph differs from eager by {worst:.2e}, limit {GRAPH_LIMIT:.0e}")
    if moved == 0:
        raise Wrong("six scenes gave the same chunk")
    return {"difference": worst, "limit": GRAPH_LIMIT}


GRAPH_CASES = tuple((vision, dtype, context) for vision, dtype in CASES for context in ("z", "z+tokens"))
