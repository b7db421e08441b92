"""The seam for crash tests: every change of the disk is announced here before it happens.

Outside tests there is no hook and nothing happens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Operation:
    """One change of the disk, about to happen.

    kind: "mkdir", "create", "write", "truncate", "fsync", "fsync_dir", "rename", "exchange", "remove" or "remove_tree".
    target: the new name, for "rename" and "exchange". handle, data: for "write", so that a hook can tear it.
    """

    kind: str
    path: Path
    target: Path | None = None
    handle: BinaryIO | None = None
    data: bytes | memoryview | None = None


Hook = Callable[[Operation], None]
_hook: Hook | None = None


def set_hook(hook: Hook | None) -> None:
    """Install the crash-test hook (None: none). It sees each `Operation` before it happens and may raise or exit."""
    global _hook
    _hook = hook


def announce(
    kind: str,
    path: Path,
    target: Path | None = None,
    handle: BinaryIO | None = None,
    data: bytes | memoryview | None = None,
) -> None:
    """Tell the hook, if there is one, what is about to happen."""
    if _hook is not None:
        _hook(Operation(kind, path, target, handle, data))
