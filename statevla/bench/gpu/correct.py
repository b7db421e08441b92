"""Numbers before speed: every backend against the float64 reference, and a replayed graph against eager acting.

Letters: B batch, L time steps, D width, N states a channel.
"""

from concurrent.futures import ThreadPoolExecutor
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
    """Largest difference of an action between a captured and an eager call: over six scenes one after the other, and
    over calls of four threads at once, each on a stream of its own.

    Raises:
        Wrong: it is above the limit, or all six scenes led to the same chunk.
    """
    policy = make_policy(Case(vision, dtype, context, preset), device)
    eager = Actor(policy.model, graphs=False)
    seen = [one_scene(policy, number) for number in range(6)]
    wanted = [eager.act(scene).chunk for scene in seen]

    def difference(number: int) -> float:
        stream = torch.cuda.Stream() if device == "cuda" else None  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):  # None: the current one
            got = policy.actor.act(seen[number]).chunk
            return (got - wanted[number])[..., :6].abs().max().item()

    worst = max(
        (policy.actor.act(scene).chunk - w)[..., :6].abs().max().item() for scene, w in zip(seen, wanted, strict=True)
    )
    with ThreadPoolExecutor(4) as pool:
        among_threads = max(pool.map(difference, [number % 6 for number in range(60)]))
    if not max(worst, among_threads) <= GRAPH_LIMIT:
        raise Wrong(f"replayed against eager: {worst:.2e}, of threads {among_threads:.2e}; limit {GRAPH_LIMIT:.0e}")
    if all(torch.equal(chunk, wanted[0]) for chunk in wanted):
        raise Wrong("six scenes gave the same chunk")
    return {"difference": worst, "among_threads": among_threads, "limit": GRAPH_LIMIT}


GRAPH_CASES = tuple((vision, dtype, context) for vision, dtype in CASES for context in ("z", "z+tokens"))
