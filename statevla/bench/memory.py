"""What a training step takes of a CPU machine's memory: `python -m statevla.bench.memory`, both phases by batch size.

Each measurement is a process of its own: a fresh model, one random batch of 128-pixel pictures, whole optimizer steps
as the trainer takes them on a CPU (float32). Counted is the process' resident memory at its peak, less what it held
before the model was made (PyTorch itself); the loader's frames come on top (docs/training.md).
"""

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from statevla.bench.machine import describe_machine

BATCHES: Final = (32, 64, 128, 256)
STEPS: Final = 2
"""The second one has the optimizer's moments."""


def step_memory(preset: str, phase: int, batch: int) -> dict[str, float]:
    """In this process. Returns peak_gb and before_gb (10⁹ bytes)."""
    from statevla.bench.gpu.training import make_step

    importlib.import_module("torch._dynamo")  # which the first optimizer loads, and which is not the step's
    before = _kilobytes("VmRSS")
    step = make_step("cpu", preset, phase, "auto", batch, mixed=False)
    for _ in range(STEPS):
        step()
    return {"peak_gb": (_kilobytes("VmHWM") - before) * 1024 / 1e9, "before_gb": before * 1024 / 1e9}


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def apart(preset: str, phase: int, batch: int) -> dict[str, float] | None:
    """`step_memory` in a process of its own; None where that was killed, for want of memory."""
    call = f"step_memory({preset!r}, {phase}, {batch})"
    code = f"import json; from statevla.bench.memory import step_memory; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.PIPE)
    if done.returncode < 0:
        return None
    done.check_returncode()
    found: dict[str, float] = json.loads(done.stdout)
    return found


def markdown(rows: Sequence[tuple[int, Any, Any]]) -> str:
    """(batch, of phase 1, of phase 2) in lines."""
    cells = [
        [str(batch), *("killed" if one is None else f"{one['peak_gb']:.2f}" for one in both)] for batch, *both in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [["batch", "phase 1", "phase 2"], ["---"] * 3, *cells])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m statevla.bench.memory", description=__doc__)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="by comma")
    told = parser.parse_args(arguments)
    rows = []
    for batch in map(int, told.batches.split(",")):
        rows.append((batch, apart(told.preset, 1, batch), apart(told.preset, 2, batch)))
        print(rows[-1], file=sys.stderr, flush=True)
    print(f"preset {told.preset}, float32, {describe_machine()}\n\n{markdown(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
