"""A phase-2 epoch from kept states of the frozen encoder, against encoding every frame at every step.

The limit is the same training step on one batch that stays in memory: no loading at all. The states are random numbers
in a temporary folder: values change no speed, and computing real ones is what `details.encode_frames_per_s` is about.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from statevla.bench.machine import describe_machine
from statevla.config import load_config
from statevla.data.batch import Batch
from statevla.data.loaders import SegmentLoader
from statevla.data.machine import cache_bytes
from statevla.data.views import open_latents
from statevla.models.optim import parameter_groups
from statevla.systems import flow_matching
from statevla.systems.system import Given
from statevla.trainers.latents import ROWS_A_CHUNK, ROWS_A_SHARD
from stores.derived import Derived, begin, open_derived
from stores.reader import Store
from stores.sharded import ShardedSpec, write_shard

WARM: Final = 2
MADE: Final = {"bench": "latents"}


def bench_latents(
    store: Store | Path | str, *, preset: str = "base", batch_size: int = 64, steps: int = 20, encoded_steps: int = 3
) -> dict[str, Any]:
    """Samples a second of training steps: from states, from pictures, and on a batch that stays in memory.

    steps, encoded_steps: that are timed (medians), after two that are not. Returns name, unit, ours, limit, ratio
    (ours / limit), peers, machine, details; `details.speedup` is ours over encoding at every step.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    config = load_config(preset)
    torch.manual_seed(0)
    model = flow_matching.build(config, Given(store.spec, store.stats()))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05, model.undecayed), lr=1e-4, fused=True)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    generator = torch.Generator().manual_seed(0)

    def step(batch: Batch) -> None:
        loss = model.loss(model(batch, model.draw(len(batch), generator))).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    loader = SegmentLoader(store, "train", batch_size, 0, config.data, config.model.action_seq_len, model.needs)
    encode = _rate(loader.batches(), lambda batch: model.encode(batch.obs), batch_size, encoded_steps)
    encoded = _rate(loader.batches(), step, batch_size, encoded_steps)
    with _random_latents(store, config.model.embed_dim) as found:
        loader.source.view = open_latents(found, cache_bytes(config.data))
        ours = _rate(loader.batches(), step, batch_size, steps)
        batches = loader.batches()
        _, held = next(batches)
        batches.close()
        limit = _rate(_again(held), step, batch_size, steps)
        load_only = _rate(loader.batches(), lambda batch: None, batch_size, steps)
    frames = store.manifest.counts["frames"]
    return {
        "name": "latents",
        "unit": "samples/s",
        "ours": ours,
        "limit": limit,
        "ratio": ours / limit,
        "peers": {"encoding at every step": encoded},
        "machine": describe_machine(),
        "details": {
            "speedup": ours / encoded,
            "encode_frames_per_s": encode,
            "frames": frames,
            "seconds_to_encode_all_once": frames / encode,
            "loader_alone": load_only,
            "preset": preset,
            "batch_size": batch_size,
        },
    }


def _rate(
    batches: Generator[tuple[Any, Batch], None, None], step: Callable[[Batch], Any], rows: int, count: int
) -> float:
    """Rows a second by the median of `count` steps, the wait for each batch included."""
    times = []
    for _ in range(WARM + count):
        began = time.perf_counter()
        step(next(batches)[1])
        times.append(time.perf_counter() - began)
    batches.close()
    return rows / statistics.median(times[WARM:])


def _again(batch: Batch) -> Generator[tuple[None, Batch], None, None]:
    while True:
        yield None, batch


@contextlib.contextmanager
def _random_latents(store: Store, width: int) -> Iterator[Derived]:
    spec = ShardedSpec((store.manifest.counts["frames"], width), "float32", ROWS_A_CHUNK, ROWS_A_SHARD)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="statevla-bench-") as root:
        folder = begin(root, "latents", "bench", MADE, {"z": spec})
        for m in range(spec.shards):
            write_shard(folder.root, "z", spec, m, [rng.normal(size=(spec.rows(m), width)).astype(np.float32)])
        folder.commit({})
        yield open_derived(root, "latents", MADE, "statevla bench latents", name="bench")
