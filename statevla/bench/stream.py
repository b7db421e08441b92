"""Loading speed: training batches a second from a store's shards, against the decoding that nobody can avoid.

The limit is decoding the same images on the same cores with nothing around it: the encoded bytes already in memory, no
fetching, no shuffling, no batches. The peers (`statevla.bench.stream_peers`) make the same transitions in other ways.
"""

import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from statevla.bench.machine import describe_machine, usable_cores
from statevla.bench.pace import Pace, timed
from statevla.bench.stream_peers import stream_peers
from statevla.config import DataConfig
from statevla.data.decoded import decode_store
from statevla.data.loaders import SegmentLoader
from statevla.data.needs import PAIRS
from statevla.data.prefetch import Position
from statevla.data.sequential import SequentialLoader
from statevla.data.slots import slots_of
from statevla.data.views import open_decoded
from stores.errors import UsageError
from stores.reader import Segment, Store

LEAST: Final = 12_000
"""Transitions of a turn, or a little more: seconds, so that it is the stream that is measured and not its beginning."""
IN_TURN: Final = 4
"""Batches that are alive at once: two that the stream has ready, the one that is trained on, the one that is made."""
WARM: Final = 2
"""Epochs before a turn: threads run, and all memory that is used again has been touched once."""


def bench_stream(
    store: Store | Path | str,
    *,
    batch_size: int = 64,
    repeats: int = 3,
    threads: int | None = None,
    peer: bool = True,
    data: DataConfig | None = None,
) -> dict[str, Any]:
    """Medians of `repeats` interleaved turns; one turn is as many epochs of pairs of frames as make `LEAST` of them,
    after `WARM` epochs that do not count. Each peer makes one pass.

    data: lanes and blocks; default: the defaults. threads: decoding threads of ours and of the limit, processes of the
    peers; default the usable cores. Returns name, unit, ours, limit, ratio (ours / limit), peers, machine, details.
    `details.cached` is a turn from frames kept in memory (``data.cache_gib``), `details.decoded` one from a mapped file
    (``data.cache=decoded``). Raises UsageError for a store of which a stream holds the half at once.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    threads = usable_cores() if threads is None else threads
    chunk = int(store.manifest.config["chunk"])
    data = replace(data or DataConfig(), loader_threads=threads, cache_gib=0.0)
    loader = SegmentLoader(store, "train", batch_size, 0, data, chunk, PAIRS)
    held = slots_of(data.lanes * data.block_segments, batch_size)
    if len(loader.segments) < 2 * held:
        raise UsageError(
            f"{store.root}: {len(loader.segments)} segments to train on, of which a stream holds {held}: it would "
            f"decode few of them again; measure a store of {2 * held} or more"
        )
    segments = [store.read_segment(int(i)) for i in loader.segments]
    transitions = int(loader.order.counts.sum())
    epochs = -(-LEAST // transitions)
    contenders: dict[str, Callable[[], Pace]] = {
        "ours": lambda: drain(loader, batch_size, epochs=epochs, warm=WARM),
        "limit": lambda: _decode_all(segments, threads, transitions, epochs),
    }
    with contextlib.ExitStack() as stack:
        if peer:
            contenders |= stack.enter_context(stream_peers(store, batch_size, threads))
        paces: dict[str, list[Pace]] = {name: [] for name in contenders}
        for name in itertools.chain.from_iterable([list(contenders)] * repeats):
            paces[name].append(contenders[name]())
    rates = {name: [pace.samples / pace.seconds for pace in turns] for name, turns in paces.items()}
    processor = {name: [pace.samples / pace.processor for pace in turns] for name, turns in paces.items()}
    cached = SegmentLoader(store, "train", batch_size, 0, replace(data, cache_gib=1e6), chunk, PAIRS)
    again = [drain(cached, batch_size, epochs=epochs, warm=WARM) for _ in range(repeats)]
    mapped, gathered, fresh = _decoded(store, batch_size, threads, repeats)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "name": "stream",
        "unit": "samples/s",
        "ours": middle["ours"],
        "limit": middle["limit"],
        "ratio": middle["ours"] / middle["limit"],
        "peers": {name: value for name, value in middle.items() if name not in ("ours", "limit")},
        "machine": describe_machine(),
        "details": {
            "transitions": transitions,
            "segments": len(segments),
            "segments_held": held,
            "dropped_an_epoch": loader.order.dropped,
            "images": sum(len(names) for segment in segments for names in segment.images.values()),
            "image_sizes": store.spec.image_sizes,
            "codec": store.manifest.config["codec"],
            "batch_size": batch_size,
            "threads": threads,
            "repeats": repeats,
            "epochs_a_turn": epochs,
            # By processor time, all threads: what a crowd on the machine leaves alone.
            "processor_ratio": statistics.median(processor["ours"]) / statistics.median(processor["limit"]),
            "cached": statistics.median(pace.samples / pace.seconds for pace in again),
            "decoded": {
                "ours": mapped,
                "gather limit": gathered,
                "ratio": mapped / gathered,
                "gather into other memory": fresh,
                "ratio to it": mapped / fresh,
            },
            "all": rates,
        },
    }


def _decoded(store: Store, batch_size: int, threads: int, repeats: int) -> tuple[float, float, float]:
    """Samples/s from a mapped file of decoded pictures; of gathering the same rows from memory into one batch, which
    stays in the processor's cache; and into a batch that was last used `IN_TURN` before, as whoever uses them needs.
    """
    chunk = int(store.manifest.config["chunk"])
    with tempfile.TemporaryDirectory(prefix="statevla-bench-") as root:
        view = open_decoded(decode_store(store, Path(root), threads), 0.0)
        loader = SegmentLoader(store, "train", batch_size, 0, DataConfig(loader_threads=threads), chunk, PAIRS)
        loader.source.view = view
        ours = [drain(loader, batch_size, epochs=WARM, warm=WARM) for _ in range(repeats)]
        pictures = [np.array(camera.values) for camera in view.cameras]
    batches = [[np.empty((2 * batch_size, *camera.shape[1:]), np.uint8) for camera in pictures] for _ in range(IN_TURN)]
    one, turns = (
        [_gather(pictures, chosen, loader.batches_per_epoch) for _ in range(repeats + 1)][1:]
        for chosen in (batches[:1], batches)
    )
    mine = statistics.median(pace.samples / pace.seconds for pace in ours)
    return mine, batch_size * statistics.median(one), batch_size * statistics.median(turns)


def _gather(pictures: list[NDArray[np.uint8]], batches: list[list[NDArray[np.uint8]]], count: int) -> float:
    """Batches/s of `count` gatherings of random rows into `batches` in turn."""
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    for number in range(count):
        targets = batches[number % len(batches)]
        chosen = rng.integers(0, len(pictures[0]), len(targets[0]))
        for camera, target in zip(pictures, targets, strict=True):
            np.take(camera, chosen, axis=0, out=target, mode="clip")
    return count / (time.perf_counter() - began)


def drain(
    loader: SegmentLoader | SequentialLoader, batch_size: int, epoch: int = 0, *, epochs: int = 1, warm: int = 0
) -> Pace:
    """Of `epochs` epochs in one stream. Without `warm` epochs before them, the start of threads and the first decoding
    count, and so do the first visits to memory, which on a virtual machine cost as much as decoding into it.
    """
    with contextlib.closing(loader.batches(Position(epoch, 0))) as batches:
        for _ in itertools.islice(batches, warm * loader.batches_per_epoch):
            pass
        rest = itertools.islice(batches, epochs * loader.batches_per_epoch)
        return timed(lambda: batch_size * sum(1 for _ in rest))


def _decode_all(segments: list[Segment], threads: int, transitions: int, epochs: int) -> Pace:
    """Every image `epochs` times, into one reused buffer a thread."""
    largest = max(len(segment.robot_state) for segment in segments)

    def decode(part: list[Segment]) -> None:
        buffers = [np.empty((largest, *size, 3), np.uint8) for size in segments[0].spec.image_sizes]
        for segment in part * epochs:
            segment.decode(out=[buffer[: len(segment.robot_state)] for buffer in buffers])

    with ThreadPoolExecutor(threads) as pool:

        def run() -> int:
            list(pool.map(decode, [segments[i::threads] for i in range(threads)]))
            return epochs * transitions

        return timed(run)
