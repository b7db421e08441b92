"""How much memory this machine has left."""

from pathlib import Path
from typing import Final

GIB: Final = 2**30


def free_gib() -> float:
    """Memory [GiB] that is available, the page cache included; infinite where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    told = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
    return float("inf") if told is None else told / GIB
