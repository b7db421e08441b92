"""Acting and whole training steps, for `run.sh`: correctness, chunks a second, samples a second and peak memory.

Runs on any device, so that tests keep it alive without a GPU; only a GPU's figures mean anything.

Legend: B batch, K chunk.
"""

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

from statevla.bench.latency import Case, bench_latency, make_policy, scenes
from statevla.config import Config, load_config
from statevla.data.batch import Batch, ObservationBatch
from statevla.models.mamba import Mamba
from statevla.policies.policy import Policy
from statevla.policies.prepare import Actor, Scene
from statevla.systems.flow_matching import draw_noise
from statevla.systems.temporal_jepa import JepaModel

PICTURE = 128
ACTING_CASES = (("conv", "bfloat16"), ("conv", "float32"), ("siglip", "bfloat16"))
GRAPH_LIMIT = 1e-3
"""Replayed against eager: the same kernels, though a library may choose others while capturing."""


def graphs_agree(device: str, preset: str) -> dict[str, float]:
    """Largest difference of an action between a captured and an eager call, over six scenes one after the other.

    Raises:
        SystemExit: it is above the limit.
    """
    errors = {}
    for vision, dtype in ACTING_CASES:
        for context in ("z", "z+tokens"):
            case = Case(vision, dtype, context, preset)
            policy = make_policy(case, device)
            eager = Actor(policy.model, graphs=False)
            worst = 0.0
            for number in range(6):
                scene = one_scene(policy, number)
                got, wanted = policy.actor.act(scene), eager.act(scene)
                worst = max(worst, (got.chunk - wanted.chunk)[..., :6].abs().max().item())
            if not worst <= GRAPH_LIMIT:
                raise SystemExit(f"acting, {case.name}: a replayed graph differs from eager by {worst:.2e}: WRONG")
            errors[case.name] = worst
    return errors


def one_scene(policy: Policy, number: int) -> Scene:
    """The inputs of one call."""
    observation = scenes(policy)[number]
    batch = policy.observe([observation]).to(policy.device)
    noise = draw_noise(
        1, policy.config.model.action_seq_len, torch.Generator().manual_seed(number), policy.device
    ).epsilon
    return Scene(batch.images, batch.robot_state, policy.tokens[observation.instruction][None], noise)


def acting(device: str, preset: str, vision: str, dtype: str, calls: int) -> dict[str, Any]:
    """`statevla bench latency` of one model: chunks/s, p50, p95, jitter."""
    result: dict[str, Any] = bench_latency(vision=vision, device=device, dtype=dtype, preset=preset, calls=calls)
    details: dict[str, Any] = result["details"]
    return details


def training(device: str, preset: str, backend: str, batch: int, steps: int) -> dict[str, Any]:
    """Phase-1 steps of the whole model: pixels in, AdamW out, bfloat16 autocast. Samples a second and peak memory.

    backend: one of ours, or `mamba_ssm` for that package's own module with its fused path in place of ours.
    """
    cuda = device == "cuda"
    try:
        model = jepa(load_config(preset), backend).to(device)
        data = random_batch(batch, PICTURE).to(torch.device(device))
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype=torch.bfloat16):
                total = model.loss(model(data, {})).total
            total.backward()
            optimizer.step()
            model.update_target(0.996)

        for _ in range(2):
            step()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / steps
        peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
        return {"ms": 1e3 * seconds, "samples_per_s": batch / seconds, "peak_gib": peak}
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    finally:
        if cuda:
            torch.cuda.empty_cache()


def jepa(config: Config, backend: str) -> JepaModel:
    """The phase-1 model with one backend in every layer; the weights are the same for all."""
    torch.manual_seed(0)
    model = JepaModel(config)
    for module in model.modules():
        for name, layer in list(module.named_children()):
            if isinstance(layer, Mamba):
                setattr(module, name, theirs(layer) if backend == "mamba_ssm" else ours(layer, backend))
    return model


def ours(layer: Mamba, backend: str) -> nn.Module:
    layer.backend = backend
    return layer


def theirs(layer: Mamba) -> nn.Module:
    """mamba-ssm's module with the weights of `layer`."""
    from mamba_ssm import Mamba as Theirs

    other: nn.Module = Theirs(layer.d_model, d_state=layer.d_state, d_conv=layer.d_conv, expand=layer.expand)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    return other.requires_grad_(layer.D.requires_grad)


def random_batch(rows: int, size: int) -> Batch:
    """Random transitions of canonical shapes."""
    g = torch.Generator().manual_seed(0)

    def observe() -> ObservationBatch:
        images = torch.randint(0, 256, (rows, 2, size, size, 3), dtype=torch.uint8, generator=g)
        return ObservationBatch(images, torch.randn(rows, 9, generator=g), torch.randn(rows, 512, generator=g))

    chunk: Tensor = torch.rand(rows, 10, 7, generator=g) * 2 - 1
    index = torch.arange(rows)
    return Batch(
        obs=observe(),
        next_obs=observe(),
        has_next=torch.ones(rows, dtype=torch.bool),
        action=chunk[:, 0],
        chunk=chunk,
        is_pad=torch.zeros(rows, 10, dtype=torch.bool),
        episode=index,
        frame=index,
    )
