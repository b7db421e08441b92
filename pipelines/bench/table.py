"""``statevla bench NAME``: one literal table from a name to the function that measures it."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from stores.errors import UsageError


@dataclass(frozen=True)
class BenchOptions:
    """What a measurement may be told. store, source: None for the defaults of `find_store` and the suite's folder.
    segments: of `index` and `order`, of a synthetic store. remote: of `stream`, of which workers are the threads.
    copies: of `ingest`. checkpoint, vision, dtype, device: of `latency`; see `statevla.bench.latency`; `order` takes a
    checkpoint too, `step` a device.
    """

    store: Path | str | None
    source: Path | None
    checkpoint: Path | None
    workers: int
    vision: str | None = None
    dtype: str | None = None
    device: str = "cpu"
    segments: int | None = None
    remote: bool = False
    copies: int | None = None


def run_bench(name: str, options: BenchOptions) -> dict[str, Any]:
    """Measure `name`: name, unit, ours, limit, ratio (the share of the limit reached), peers, machine, details.

    Raises UsageError for an unknown name and for an option that this measurement does not take, and what it raises.
    """
    if name not in BENCHES:
        raise UsageError(f"bench {name!r}: expected one of {', '.join(BENCHES)}")
    measure, takes = BENCHES[name]
    usual = BenchOptions(None, None, None, 0)
    given = [each.name for each in fields(options) if getattr(options, each.name) != getattr(usual, each.name)]
    if unused := [f"--{option}" for option in given if option not in takes.split()]:
        known = ", ".join(f"--{option}" for option in takes.split()) or "none"
        raise UsageError(f"bench {name} has no use for {', '.join(unused)}; it takes {known}")
    if options.segments is not None:
        _require_synthetic(options)
    return measure(options)


def _require_synthetic(options: BenchOptions) -> None:
    """Raise UsageError unless a synthetic store of so many segments can be made, and no other is named beside it."""
    from pipelines.bench.index import PER_SHARD

    if options.segments is not None and options.segments < PER_SHARD:
        raise UsageError(f"--segments: expected {PER_SHARD} (one shard) or more, got {options.segments}")
    if options.store is not None:
        raise UsageError("--segments makes a synthetic store, --store names one that is there: give one of them")


def _stream(options: BenchOptions) -> dict[str, Any]:
    from statevla.bench.remote import bench_remote
    from statevla.bench.stream import bench_stream
    from statevla.runs.stores import find_store

    measure = bench_remote if options.remote else bench_stream
    return measure(find_store(options.store), threads=options.workers or None)


def _order(options: BenchOptions) -> dict[str, Any]:
    from statevla.bench.order import bench_order
    from statevla.policies.policy import Policy
    from statevla.runs.stores import find_store
    from statevla.systems.find import find_policy

    if options.segments is None:
        policy = None if options.checkpoint is None else Policy.load(find_policy(options.checkpoint))
        return bench_order(find_store(options.store), policy=policy)
    if options.checkpoint is not None:
        raise UsageError("bench order: --segments makes a store without pictures, on which --checkpoint has no losses")
    import tempfile

    from pipelines.bench.index import PER_SHARD, make_synthetic

    with tempfile.TemporaryDirectory(prefix="statevla-bench-") as folder:
        root = Path(folder, "store")
        make_synthetic(root, options.segments // PER_SHARD * PER_SHARD)
        return bench_order(root, pictures=False)


def _scaling(options: BenchOptions) -> dict[str, Any]:
    from pipelines.bench.scaling import bench_scaling

    return bench_scaling(options.store)


def _features(options: BenchOptions) -> dict[str, Any]:
    from statevla.bench.features import bench_features

    return bench_features()


def _latents(options: BenchOptions) -> dict[str, Any]:
    from statevla.bench.latents import bench_latents
    from statevla.runs.stores import find_store

    return bench_latents(find_store(options.store))


def _ingest(options: BenchOptions) -> dict[str, Any]:
    from pipelines.bench.ingest import COPIES, bench_ingest

    if options.source is None:
        raise UsageError("bench ingest: name a folder of HDF5 demonstrations with --source")
    return bench_ingest(options.source, workers=max(options.workers, 1), copies=options.copies or COPIES)


def _ingest_large(options: BenchOptions) -> dict[str, Any]:
    from pipelines.bench.large import bench_large

    if options.source is None:
        raise UsageError("bench ingest-large: name a folder of HDF5 demonstrations with --source")
    return bench_large(options.source, workers=max(options.workers, 1))


def _verify(options: BenchOptions) -> dict[str, Any]:
    from pipelines.bench.verify import bench_verify

    return bench_verify()


def _index(options: BenchOptions) -> dict[str, Any]:
    from pipelines.bench.index import SIZES, bench_index

    return bench_index(SIZES if options.segments is None else (options.segments,))


def _mamba(options: BenchOptions) -> dict[str, Any]:
    from statevla.bench.mamba import bench_mamba

    return bench_mamba()


def _libero(options: BenchOptions) -> dict[str, Any]:
    from statevla.bench.libero import bench_libero

    return bench_libero(workers=max(options.workers, 1))


def _latency(options: BenchOptions) -> dict[str, Any]:
    from statevla.bench.latency import bench_latency

    return bench_latency(
        checkpoint=options.checkpoint, vision=options.vision, dtype=options.dtype, device=options.device
    )


def _step(options: BenchOptions) -> dict[str, Any]:
    from statevla.bench.step import bench_step
    from statevla.runs.stores import find_store

    return bench_step(find_store(options.store), device=options.device)


BENCHES: Final[dict[str, tuple[Callable[[BenchOptions], dict[str, Any]], str]]] = {
    "stream": (_stream, "store workers remote"),
    "order": (_order, "store segments checkpoint"),
    "scaling": (_scaling, "store"),
    "features": (_features, ""),
    "latents": (_latents, "store"),
    "step": (_step, "store device"),
    "ingest": (_ingest, "source workers copies"),
    "ingest-large": (_ingest_large, "source workers"),
    "verify": (_verify, ""),
    "index": (_index, "segments"),
    "mamba": (_mamba, ""),
    "libero": (_libero, "workers"),
    "latency": (_latency, "checkpoint vision dtype device"),
}
"""What measures it, and which of the options it takes."""
