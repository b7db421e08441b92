"""Loading from afar: the stream of a store behind 50 ms of latency, against the same stream from the folder itself.

The servers run in processes of their own. Where this process may use several cores, the last one is theirs, and the
reader has the others in every turn, so that a server's work is not taken from one contender only.
"""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from statevla.bench.far import LATENCY, apart, serve_folder, serve_s3
from statevla.bench.machine import describe_machine, usable_cores
from statevla.bench.stream import drain
from statevla.config import DataConfig
from statevla.data.loaders import SegmentLoader
from statevla.data.needs import PAIRS
from statevla.data.remote import open_cache
from statevla.data.sequential import SequentialLoader
from stores.cloud.cache import CachedStorage
from stores.cloud.publish import publish_store
from stores.cloud.storage import open_storage
from stores.errors import UsageError
from stores.reader import Store


def bench_remote(
    store: Store | Path | str, *, batch_size: int = 64, repeats: int = 3, threads: int | None = None
) -> dict[str, Any]:
    """Medians of `repeats` interleaved epochs of pairs of frames: from the folder, by HTTP, from S3 (where moto is
    installed), each with an empty cache; and again with what the first left. Beside them shards read from end to end
    (``data.stream=sequential``) from each of the three: nothing is kept, so every epoch is the first.

    Returns name, unit, ours (HTTP, empty cache), limit (the folder), ratio, peers (none), machine, details.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    if "://" in store.root:
        raise UsageError(f"{store.root}: this serves a local store to itself; name a folder")
    chunk = int(store.manifest.config["chunk"])
    rates: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        reader, server = stack.enter_context(_shared_cores())
        threads = len(reader) if threads is None else threads
        web = stack.enter_context(apart(serve_folder, Path(store.root), LATENCY, cores=server))
        places: dict[str, tuple[str, dict[str, Any]]] = {"http": (web, {})}
        why = None
        try:
            import moto.server  # noqa: F401
            import s3fs  # noqa: F401

            endpoint = stack.enter_context(apart(serve_s3, LATENCY, cores=server))
            options: dict[str, Any] = {"key": "bench", "secret": "bench", "endpoint_url": endpoint}
            import fsspec

            fsspec.filesystem("s3", **options).mkdir("bench")
            publish_store(store.root, "s3://bench/store", **options)
            places["s3"] = ("s3://bench/store", options)
        except ImportError as error:
            why = f"not measured: {error}"
        plain = DataConfig(loader_threads=threads, cache_gib=0.0)
        for _ in range(repeats):
            local = SegmentLoader(store, "train", batch_size, 0, plain, chunk, PAIRS)
            rates.setdefault("folder", []).append(_rate(local, batch_size, 0))
            rates.setdefault("folder, sequential", []).append(_sequential(store, batch_size, plain))
            for name, (url, given) in places.items():
                with tempfile.TemporaryDirectory(prefix="statevla-bench-") as folder:
                    data = replace(plain, remote_cache=folder, remote_cache_gib=8.0)
                    far = Store.open(CachedStorage(open_storage(url, **given), open_cache(data)))
                    loader = SegmentLoader(far, "train", batch_size, 0, data, chunk, PAIRS)
                    rates.setdefault(name, []).append(_rate(loader, batch_size, 0))
                    rates.setdefault(f"{name}, kept", []).append(_rate(loader, batch_size, 1))
                with tempfile.TemporaryDirectory(prefix="statevla-bench-") as folder:
                    data = replace(plain, remote_cache=folder, remote_cache_gib=8.0)
                    far = Store.open(CachedStorage(open_storage(url, **given), open_cache(data)))
                    rates.setdefault(f"{name}, fetched alone", []).append(_fetched(far, loader, data.remote_requests))
                whole = _sequential(Store.open(open_storage(url, **given)), batch_size, plain)
                rates.setdefault(f"{name}, sequential", []).append(whole)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "name": "stream from afar",
        "unit": "samples/s",
        "ours": middle["http"],
        "limit": middle["folder"],
        "ratio": middle["http"] / middle["folder"],
        "peers": {},
        "machine": describe_machine(),
        "details": {
            "latency_s": LATENCY,
            "ratios": {name: value / middle["folder"] for name, value in middle.items()},
            "s3": why or "moto",
            "requests_at_once": plain.remote_requests,
            "threads": threads,
            "cores_of_the_reader": len(reader),
            "batch_size": batch_size,
            "all": rates,
        },
    }


def _rate(loader: SegmentLoader, batch_size: int, epoch: int) -> float:
    pace = drain(loader, batch_size, epoch)
    return pace.samples / pace.seconds


def _sequential(store: Store, batch_size: int, data: DataConfig) -> float:
    """Samples/s of an epoch of shards in order, by as many processes as `data` has threads, their start included."""
    chunk, data = int(store.manifest.config["chunk"]), replace(data, stream="sequential")
    pace = drain(SequentialLoader(store, "train", batch_size, 0, data, chunk, PAIRS), batch_size)
    return pace.samples / pace.seconds


def _fetched(store: Store, loader: SegmentLoader, requests: int) -> float:
    """Samples/s at which the segments of `loader` come into the empty cache of the far `store`, `requests` at once."""
    started = time.perf_counter()
    with ThreadPoolExecutor(requests) as pool:
        for _ in pool.map(store.fetch_segment, loader.segments.tolist()):
            pass
    return int(loader.order.counts.sum()) / (time.perf_counter() - started)


@contextlib.contextmanager
def _shared_cores() -> Iterator[tuple[set[int], set[int] | None]]:
    """(cores of the reader, cores of the servers); the reader's hold for the time being."""
    if usable_cores() < 2 or not hasattr(os, "sched_setaffinity"):
        yield set(range(usable_cores())), None
        return
    before = os.sched_getaffinity(0)
    server = {max(before)}
    os.sched_setaffinity(0, before - server)
    try:
        yield before - server, server
    finally:
        os.sched_setaffinity(0, before)
