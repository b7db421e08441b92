"""How near `statevla verify` is to its floor: one thread taking the sha256 of bytes that are in memory.

Measured in one run, alternating, on a store of random shards in the page cache: verify with one thread, held to one
core, reads every object and compares size and sha256.
"""

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pipelines.bench.ingest import held_to_cores
from stores.cloud.storage import PIECE, LocalStorage
from stores.disk import durable
from stores.errors import UsageError
from stores.manifest import hash_objects
from stores.verify import check_object

SHARD_BYTES: Final = 32 * 2**20


def bench_verify(megabytes: int = 256, repeats: int = 3) -> dict[str, Any]:
    """Bytes/s of rehashing a store of `megabytes`, and what fraction of the sha256 rate that is (`ratio`).

    Raises UsageError on impossible counts.
    """
    if min(megabytes, repeats) < 1:
        raise UsageError(f"megabytes, repeats: expected 1 or more, got {megabytes}, {repeats}")
    with tempfile.TemporaryDirectory(prefix="statevla-bench-") as name, held_to_cores(1) as cores:
        root = Path(name)
        paths = [f"shards/{number}.tar" for number in range(-(-megabytes * 2**20 // SHARD_BYTES))]
        with durable.unsafe_without_fsync():
            for path in paths:
                durable.write_bytes(root / path, os.urandom(SHARD_BYTES))
        objects = hash_objects(root, paths)
        storage, sizes = LocalStorage(root), LocalStorage(root).sizes()
        piece = os.urandom(PIECE)
        total = sum(item.bytes for item in objects)

        def verify() -> None:
            problems = [check_object(storage, item, sizes) for item in objects]
            if any(problems):
                raise AssertionError(problems)

        def floor() -> None:
            digest = hashlib.sha256()
            for _ in range(total // PIECE):
                digest.update(piece)
            digest.digest()

        runs: dict[str, Callable[[], None]] = {"floor": floor, "ours": verify}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
    rates = {name: total / statistics.median(taken[1:]) for name, taken in seconds.items()}
    return {
        "name": "verify",
        "unit": "B/s",
        "ours": rates["ours"],
        "limit": rates["floor"],
        "ratio": rates["ours"] / rates["floor"],
        "peers": {},
        "bytes": total,
        "threads": 1,
        "repeats": repeats,
        "machine": f"{len(cores)} of {os.cpu_count()} cores",
    }
