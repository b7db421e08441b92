"""A training step in the real loop against the sum of its parts, and how much of its time it waits for data.

`ours` are samples/s of `statevla.trainers.trainer.train` on a store, between two lines of its own metrics. `limit` is
the same step on batches that are there already: forward and backward pass, clipping and optimizer, moving average.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import torch

from statevla.bench.machine import describe_machine
from statevla.config import load_config
from statevla.runs import layout
from statevla.runs.metrics import read_metrics
from statevla.systems.table import find_system, sections
from statevla.trainers.run import Run
from statevla.trainers.schedule import step_generator
from statevla.trainers.step import differentiate
from statevla.trainers.trainer import train
from stores.reader import Store

PHASES: Final = ("temporal_jepa", "flow_matching")
STEPS: Final = 24
"""Of the loop: the first half starts threads and fills caches, the second is measured."""


def bench_step(
    store: Path | str, *, preset: str = "tiny", batch_size: int = 64, device: str = "cpu", steps: int = STEPS
) -> dict[str, Any]:
    """Both phases on a store. Returns name, unit, ours, limit, ratio (of phase 1), machine, details by phase.

    details: ``parts`` in ms, ``data_wait`` as a share of the loop's time, ``peak_gb`` of the device's tensors (CUDA).
    """
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        encoder: Path | None = None
        for name in PHASES:
            details[name] = _phase(name, store, run_dir, encoder, preset, batch_size, device, steps)
            encoder = layout.checkpoints(run_dir, find_system(name).folder) / layout.LATEST
    first = details[PHASES[0]]
    return {
        "name": "step", "unit": "samples/s", "ours": first["ours"], "limit": first["limit"], "ratio": first["ratio"],
        "machine": describe_machine(),
        "details": {"preset": preset, "batch_size": batch_size, "device": device, "steps": steps, **details},
    }  # fmt: skip


def _phase(
    name: str, store: Path | str, run_dir: Path, encoder: Path | None, preset: str, batch: int, device: str, steps: int
) -> dict[str, Any]:
    half = steps // 2
    config = load_config(
        preset, None,
        (f"training.batch_size={batch}", f"training.device={device}", f"training.max_steps={2 * half}",
         f"training.log_interval={half}", "data.latents=false"), sections(),
    )  # fmt: skip
    train(name, config, store, run_dir, encoder_checkpoint=encoder)
    line = [each for each in read_metrics(layout.metrics(run_dir, find_system(name).folder)) if each["kind"] == "train"]
    parts, peak = _parts(Run(find_system(name), config, Store.open(store), run_dir, encoder), steps)
    limit = batch / sum(parts.values())
    ours = float(line[-1]["samples_per_s"])
    return {
        "ours": ours, "limit": limit, "ratio": ours / limit, "data_wait": line[-1]["data_wait"],
        "parts": {part: 1000 * seconds for part, seconds in parts.items()}, "peak_gb": peak,
    }  # fmt: skip


def _parts(run: Run, steps: int) -> tuple[dict[str, float], float | None]:
    """Median seconds of each part of a step on a batch that is there; the peak of the tensors on a GPU, 10⁹ bytes."""
    gpu = run.device.type == "cuda"
    with closing(run.loader.batches()) as batches:
        batch = next(batches)[1].to(run.device)
    if gpu:
        torch.cuda.reset_peak_memory_stats(run.device)
    noise = {name: value.to(run.device) for name, value in run.model.draw(len(batch), step_generator(0, 0)).items()}
    run.model.train()

    def gradients() -> None:
        run.optimizer.zero_grad(set_to_none=True)
        differentiate(
            run.model, batch, noise, run.share, run.parts, lambda part: None,
            torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.autocast),
        )  # fmt: skip

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(run.trained, run.config.training.gradient_clip)
        run.optimizer.step()

    named: dict[str, Callable[[], None]] = {
        "forward and backward": gradients, "clip and optimizer": update,
        "moving average": lambda: run.model.after_step(0, run.total),
    }  # fmt: skip
    times: dict[str, list[float]] = {part: [] for part in named}
    for _ in range(max(steps // 2, 2)):
        for part, work in named.items():
            begin = time.perf_counter()
            work()
            if gpu:
                torch.cuda.synchronize(run.device)
            times[part].append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated(run.device) / 1e9 if gpu else None
    return {part: statistics.median(values) for part, values in times.items()}, peak
