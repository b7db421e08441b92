"""Check, then measure, on a GPU: `python -m statevla.bench.gpu --report FILE`.

Needs PyTorch with Triton, NumPy, safetensors, transformers and the packages that those bring, and no network. Order:
every backend against float64, the scan at every tuned size, replayed graphs against eager acting, acting, training
steps with memory, layers, peers. What fails is recorded and the rest goes on; the report is whole after every item.
``--device cpu --quick`` goes the same way at toy sizes, to keep the code alive; its figures mean nothing.
"""

import argparse
import sys
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from statevla.bench.gpu import acting, correct, layers, training
from statevla.bench.gpu.report import Report
from statevla.bench.gpu.timing import ceilings
from statevla.bench.machine import describe_machine

SECTIONS = ("correct", "scan", "graphs", "acting", "training", "layers", "peers")
GOALS: dict[str, Any] = {
    "chunks_per_s": {"conv": 300, "siglip bfloat16": 150},
    "training": {"times_mamba_ssm": 1.3, "peak_gb": {"64": 4, "128": 6, "256": 10}},
}
"""Memory: a quarter of the 16, 24 and 40 GB that the StateVLA documents name."""


def measure(report: Report, device: str, quick: bool, sections: tuple[str, ...]) -> None:
    """All items in the order of their worth."""
    gpu = device == "cuda"
    preset, calls, steps = ("tiny", 3, 1) if quick else ("base", 500, 10)
    batches = (2,) if quick else training.BATCHES
    names = layers.contenders(device)
    if "correct" in sections:
        for name in [*(n for n in names if n != "mamba_ssm"), "loop"]:
            for dtype in correct.LIMITS:
                for shape in correct.SHAPES:
                    title = "correct: {} {} B{} L{} D{} N{}".format(name, str(dtype).removeprefix("torch."), *shape)
                    report.put(title, partial(correct.layer, name, dtype, shape, device))
    if "scan" in sections:
        report.put("ceilings", partial(ceilings, device, quick))
        if gpu and "triton" in names:
            tune(report, quick)
    if "graphs" in sections:
        for case in correct.GRAPH_CASES:
            report.put(f"graph is eager: {' '.join(case)}", partial(correct.graphs, device, preset, *case))
    if "acting" in sections:
        for vision, kind in acting.CASES:
            run = partial(acting.acting, device, preset, vision, kind, calls)
            report.put(f"acting {vision} {kind}", run)
    if "training" in sections:
        for phase in (1, 2):
            for batch in batches:
                run = partial(training.training, device, preset, phase, "auto", batch, steps)
                report.put(f"training step, phase {phase}, batch {batch}", run)
        if gpu:
            run = partial(training.profile, device, preset, "auto", batches[-1])
            report.put(f"kernels of a phase 1 step, batch {batches[-1]}", run)
    if "layers" in sections and not quick:
        for name in names:
            report.put(f"stack {name}, batch 64", partial(layers.steps, name, 64, device))
            report.put(f"stack latency {name}, batch 1", partial(layers.latency, name, device))
    if "peers" in sections:
        peers(report, device, preset, batches, steps, names)


def tune(report: Report, quick: bool) -> None:
    """The scan with every tile it was tuned over: right first, then timed."""
    from statevla.models.kernels.triton_kernels import Tile

    report.content["tiles"] = {}
    if not quick:
        choices = {
            "FORWARD": ("forward_ms", 256, (Tile(2, 2, 4), Tile(2, 1, 4), Tile(4, 2, 4))),
            "FORWARD_SOME": ("forward_ms", 8, (Tile(4, 1, 4), Tile(8, 1, 8), Tile(2, 1, 4))),
            "FORWARD_FEW": ("forward_ms", 1, (Tile(8, 1, 8), Tile(4, 1, 4), Tile(16, 1, 8))),
            "BACKWARD": ("backward_ms", 256, (Tile(4, 4, 4), Tile(4, 2, 4))),
            "AGAIN": ("backward_ms", 256, (Tile(2, 2, 4), Tile(1, 1, 4))),
        }
        for kernel, (part, batch, tiles) in choices.items():
            layers.tune(report, kernel, part, batch, tiles)
    for batch in (1, 64, 256):
        report.put(f"scan, batch {batch}, 16 states", partial(layers.bare_scan, batch))
    report.put("scan, batch 1024, 64 states, 12 steps", partial(layers.bare_scan, 1024, 64, layers.FLOW_LENGTH))


def peers(report: Report, device: str, preset: str, batches: tuple[int, ...], steps: int, names: list[str]) -> None:
    """mamba-ssm's own module and its kernels where they are; the plain PyTorch loop where not, no fair opponent."""
    others = [name for name in names if name in ("cuda", "mamba_ssm")]
    report.content["peer"] = "mamba_ssm" if others else "our plain loop: mamba-ssm is not here"
    for batch in batches[1:] or batches:
        for name in others:
            run = partial(training.training, device, preset, 1, name, batch, steps)
            theirs = report.put(f"training step, phase 1, {name}, batch {batch}", run)
            ours = report.items.get(f"training step, phase 1, batch {batch}", {})
            if "samples_per_s" in ours and "samples_per_s" in theirs:
                report.content[f"times {name}, batch {batch}"] = ours["samples_per_s"] / theirs["samples_per_s"]
    if not others:
        run = partial(training.training, device, preset, 1, "loop", batches[0], min(steps, 2))
        report.put(f"training step, phase 1, loop, batch {batches[0]}", run)


def main() -> int:
    """Parse, measure, print; 1 when an item failed."""
    parser = argparse.ArgumentParser(prog="python -m statevla.bench.gpu", description="Check, then measure, on a GPU.")
    parser.add_argument("--report", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds after which no item starts (480)")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by comma: " + ", ".join(SECTIONS))
    told = parser.parse_args()
    sections = tuple(told.only.split(","))
    if not set(sections) <= set(SECTIONS):
        parser.error(f"--only {told.only}: expected some of {', '.join(SECTIONS)}")
    if told.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU; docs/install-gpu.md")
    head = {
        "machine": describe_machine(),
        "cuda": torch.version.cuda,
        "triton": version("triton") if find_spec("triton") else None,
        "device": told.device,
        "backends": {name: obstacle or "runs" for name, obstacle in layers.runnable(told.device).items()},
        "goals": GOALS,
    }
    report = Report(told.report, told.budget, head)
    measure(report, told.device, told.quick, sections)
    print(report.table())
    print(f"{len(report.items)} items, {len(report.failed)} failed, report: {told.report}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
