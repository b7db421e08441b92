"""On what a figure was measured."""

import platform
from pathlib import Path
from typing import Any

import torch

from statevla.data.machine import usable_cores as usable_cores


def describe_machine() -> dict[str, Any]:
    """cpu model, usable cores, gpu (or None), python and torch versions."""
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
