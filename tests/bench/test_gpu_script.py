"""`benchmarks/gpu/run.py` at toy size without a GPU: the same way through the code, no figures that mean anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_dry_run_on_the_cpu(tmp_path: Path) -> None:
    report = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu/run.py", "--device", "cpu", "--quick", "--report", str(report)]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(report.read_text())
    assert max(found["graph_against_eager"].values()) == 0  # without a GPU both are eager
    measured = found["measurements"]
    assert {name for name, value in measured.items() if "failed" in value} == set()
    assert measured["training step auto, batch 2"]["samples_per_s"] > 0
    assert len([name for name in measured if name.startswith("acting ")]) == 3
