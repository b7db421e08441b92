"""What made a run: a line each time that one starts or goes on, since a run may be resumed by other code elsewhere."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from statevla.runs import layout
from statevla.version import __version__
from stores.disk.durable import append_line

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("torch", "numpy", "transformers", "zarr", "mamba-ssm", "causal-conv1d", "triton")
GIT_SECONDS: Final = 10


def note_start(run: Path, folder: str, step: int, device: str, world: int) -> None:
    """Add a line to the run's record of starts. step: where it goes on; device: of this process; world: ranks."""
    append_line(layout.starts(run, folder), json.dumps(describe_start(step, device, world), sort_keys=True))


def describe_start(step: int, device: str, world: int) -> dict[str, Any]:
    """When, by which command, by which code, with which packages, on what."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "statevla": __version__,
        "revision": revision(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": device,
        "ranks": world,
    }


def revision(root: Path = ROOT) -> str | None:
    """The commit of a checkout, "+changes" after it where tracked files differ; None where `root` is no checkout."""
    if not (root / ".git").exists():
        return None  # installed; a repository further up would be somebody else's
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=GIT_SECONDS
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
