"""Whole training steps on a GPU, pixels in, AdamW out: samples a second and peak memory of both phases.

Legend: B batch, K chunk.
"""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from statevla.bench.gpu.timing import forget_peak, peak_gb, wait
from statevla.config import Config, load_config
from statevla.data.batch import Batch, ObservationBatch
from statevla.models.mamba import Mamba
from statevla.models.optim import parameter_groups
from statevla.systems import flow_matching
from statevla.systems.system import Given, Objective
from statevla.systems.temporal_jepa import JepaModel

PICTURE = 128
BATCHES = (32, 64, 128, 256)
TOP = 14
"""Kernels of the profile that are named; the rest is summed."""


def training(device: str, preset: str, phase: int, backend: str, batch: int, steps: int) -> dict[str, Any]:
    """Steps in bfloat16 autocast with clipping, on one random batch that is copied from pinned memory every time.

    backend: one of ours, or `mamba_ssm` for that package's own module with its fused path in place of ours.
    """
    step = make_step(device, preset, phase, backend, batch)
    for _ in range(3):
        step()
    wait(device)
    forget_peak(device)
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        wait(device)
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times)
    return {"ms": 1e3 * seconds, "samples_per_s": batch / seconds, "peak_gb": peak_gb(device)}


def make_step(
    device: str, preset: str, phase: int, backend: str, batch: int, *, mixed: bool = True
) -> Callable[[], None]:
    """One optimizer step of a fresh model, as the trainer takes it. mixed: in bfloat16 autocast."""
    config = load_config(preset)
    torch.manual_seed(0)
    model: Objective = JepaModel(config) if phase == 1 else flow_matching.build(config, Given())
    with_backend(model, backend).to(device)
    data = random_batch(batch, PICTURE, config)
    data = data.pin() if device == "cuda" else data
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05, model.undecayed), lr=1e-4, fused=True)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        noise = {name: value.to(device) for name, value in model.draw(batch, generator).items()}
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            total = model.loss(model(data.to(torch.device(device)), noise)).total
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0).item()  # the trainer waits here, too
        optimizer.step()
        model.after_step(0, 1)

    return step


def profile(device: str, preset: str, backend: str, batch: int) -> dict[str, Any]:
    """Milliseconds of a phase-1 step by GPU kernel, the longest first, and of all together."""
    step = make_step(device, preset, 1, backend, batch)
    for _ in range(3):
        step()
    wait(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        step()
        wait(device)
    found = {event.key[:90]: event.device_time_total / 1e3 for event in recorded.key_averages()}
    longest = sorted(found, key=lambda name: -found[name])
    named = {name: round(found[name], 3) for name in longest[:TOP]}
    return {"all_ms": sum(found.values()), "rest_ms": sum(found[name] for name in longest[TOP:]), "kernels": named}


def with_backend(model: nn.Module, backend: str) -> nn.Module:
    """The model with one backend in every Mamba layer; the weights are the same for all."""
    for module in model.modules():
        for name, layer in list(module.named_children()):
            if isinstance(layer, Mamba) and backend == "mamba_ssm":
                setattr(module, name, theirs(layer))
            elif isinstance(layer, Mamba):
                layer.backend = backend
    return model


def theirs(layer: Mamba) -> nn.Module:
    """mamba-ssm's module with the weights of `layer`."""
    from mamba_ssm import Mamba as Theirs

    other: nn.Module = Theirs(layer.d_model, d_state=layer.d_state, d_conv=layer.d_conv, expand=layer.expand)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    return other.requires_grad_(layer.D.requires_grad)


def random_batch(rows: int, size: int, config: Config) -> Batch:
    """Random transitions of canonical shapes, on the CPU."""
    g = torch.Generator().manual_seed(0)
    steps = config.model.action_seq_len

    def observe() -> ObservationBatch:
        images = torch.randint(0, 256, (rows, 2, size, size, 3), dtype=torch.uint8, generator=g).unbind(1)
        return ObservationBatch(images, torch.randn(rows, 9, generator=g), torch.randn(rows, 512, generator=g))

    chunk: Tensor = torch.rand(rows, steps, 7, generator=g) * 2 - 1
    index = torch.arange(rows)
    return Batch(
        obs=observe(),
        next_obs=observe(),
        ahead=torch.ones(rows, dtype=torch.int64),
        action=chunk[:, 0].contiguous(),
        chunk=chunk,
        is_pad=torch.zeros(rows, steps, dtype=torch.bool),
        episode=index,
        frame=index,
    )
