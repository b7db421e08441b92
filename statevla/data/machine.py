"""What of a loader follows the machine where nothing is configured: threads, memory, the cache of remote stores.

None of it changes a batch.
"""

import functools
import os
import shutil
from pathlib import Path
from typing import Final

from statevla.config import DataConfig
from statevla.memory import GIB, free_gib
from stores.disk.trouble import nearest

MOST_THREADS: Final = 8
SHARE_OF_MEMORY: Final = 8
MOST_MEMORY: Final = 16 * GIB
SHARE_OF_DISK: Final = 4
MOST_DISK: Final = 64 * GIB


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_threads(data: DataConfig) -> int:
    """``data.loader_threads``, or as many as there are cores, up to 8."""
    return data.loader_threads or min(usable_cores(), MOST_THREADS)


def cache_bytes(data: DataConfig) -> float:
    """``data.cache_gib`` in bytes, or an eighth of the memory that was free when first asked, up to 16 GiB."""
    return _free_memory() / SHARE_OF_MEMORY if data.cache_gib is None else data.cache_gib * GIB


@functools.cache
def _free_memory() -> float:
    return min(free_gib() * GIB, float(MOST_MEMORY * SHARE_OF_MEMORY))


def remote_cache_folder(data: DataConfig) -> Path:
    """``data.remote_cache``, or ``statevla/remote`` in the user's folder for caches."""
    if data.remote_cache is not None:
        return Path(data.remote_cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "statevla" / "remote"


def remote_cache_bytes(data: DataConfig, kept: int) -> int:
    """``data.remote_cache_gib`` in bytes, or a quarter of the disk's room, up to 64 GiB; `kept` bytes are the cache's
    already.
    """
    if data.remote_cache_gib is not None:
        return int(data.remote_cache_gib * GIB)
    room = shutil.disk_usage(nearest(remote_cache_folder(data))).free + kept
    return max(min(room // SHARE_OF_DISK, MOST_DISK), 1)


def in_words(data: DataConfig) -> str:
    """What was chosen, for a run's log."""
    threads, memory = loader_threads(data), cache_bytes(data) / GIB
    return (
        f"loader: {threads} threads (data.loader_threads), up to {memory:.1f} GiB of decoded frames a split "
        "(data.cache_gib)"
    )
