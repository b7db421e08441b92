"""Training from shards read from end to end, by webdataset: for clusters whose nodes have no disk to speak of.

Shards are shuffled, dealt to ranks and to worker processes, streamed, cut into transitions, and mixed in a buffer:
every byte is read in order, in large requests, and nothing is kept. What is given up against the indexed order: a batch
holds what the buffer holds, the order depends on the numbers of ranks and processes and on ``data.shuffle_buffer``, and
a resumed run does not go on where it was in the epoch but begins another pass. Every pass of a rank and process meets
each transition of its shards once; ranks with fewer shards begin their next pass earlier.

Nothing is skipped: a shard's samples are counted against the index and its bytes against the manifest's sha256, and
what cannot be read ends the run.

Legend: B rows of this rank's batches, K chunk.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from statevla.config import DataConfig
from statevla.data.batch import Batch, ObservationBatch
from statevla.data.frames import Ints, Table, assemble, make_table
from statevla.data.labelled import choose_labelled
from statevla.data.loaders import split_segments
from statevla.data.machine import loader_threads
from statevla.data.needs import Needs
from statevla.data.order import Order
from statevla.data.prefetch import Position
from stores.errors import StateVLAError, StoreCorrupt, UsageError
from stores.images import decode_image
from stores.printable import word
from stores.reader import Segment, Store

PIECE: Final = 4 * 2**20
"""Bytes of a request."""
AHEAD: Final = 4
"""Requests of a shard on their way at once."""
READY_BATCHES: Final = 4
"""Batches that a process may have ready."""
START: Final = Position(0, 0)
_SHARD: Final = "a shard"


def require_sequential(store: Store, data: DataConfig, needs: Needs, chunk: int, batch_size: int, world: int) -> None:
    """Raise UsageError for what shards read in order cannot give, naming the key."""
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "data.stream: sequential reads by the package webdataset, which is not installed: "
            "pip install 'statevla[stream]'"
        ) from error
    stored = int(store.manifest.config["chunk"])
    refused = (
        (data.features is not None, f"data.features: {data.features} are read by frame number"),
        (data.cache == "decoded", "data.cache: decoded pictures are read by frame number"),
        (data.oversample_gripper > 1, f"data.oversample_gripper: {data.oversample_gripper} draws steps by the index"),
        (data.labelled_times > 1, f"data.labelled_times: {data.labelled_times} draws steps by the index"),
        (needs.goal != "none", "goals are other frames of the episode, read by frame number"),
        (bool(needs.beside), f"views {', '.join(needs.beside)} are read by frame number"),
        (bool(needs.states), "kept states are read by frame number"),
        (chunk > stored, f"model.action_seq_len: {chunk} is more than the {stored} actions that the shards hold"),
        (batch_size % world != 0, f"training.batch_size: {batch_size} is not shared equally by {world} ranks"),
    )
    for wrong, why in refused:
        if wrong:
            raise UsageError(f"{why}; data.stream=sequential cannot give that, data.stream=indexed does")


@dataclass(frozen=True)
class Row:
    """One transition, pictures still encoded. number: of its segment in the store. step: in the segment."""

    segment: Segment
    number: int
    step: int


class SequentialLoader:
    """Endless training batches of one rank. As `statevla.data.loaders.SegmentLoader`, but for the order.

    Raises UsageError as `require_sequential`, and where there are fewer shards than ranks.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        batch_size: int,
        seed: int,
        data: DataConfig,
        chunk: int,
        needs: Needs,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        require_sequential(store, data, needs, chunk, batch_size, world)
        self.store, self.seed, self.data, self.needs, self.rank, self.world = store, seed, data, needs, rank, world
        table = make_table(store, chunk, seed if data.shuffle_instructions else None)
        self.table = choose_labelled(store, table, data, seed)
        chosen, counts = split_segments(store, self.table, split, with_next_only=needs.require)
        self.counts = np.zeros(len(self.table.steps), np.int64)
        self.counts[chosen] = counts
        total = int(self.counts.sum())
        if total < batch_size:
            raise UsageError(
                f"training.batch_size: {batch_size} is more than the {total} transitions of split {split!r}"
            )
        codes, names = store.segment_columns.codes("shard")
        self.shards = [names[code] for code in np.unique(codes[self.counts > 0]).tolist()]
        if len(self.shards) < world:
            raise UsageError(
                f"data.stream: sequential deals whole shards, and {store.root} has {len(self.shards)} of split "
                f"{split!r}, fewer than {world} ranks; use fewer ranks, or data.stream=indexed"
            )
        self.processes = min(loader_threads(data), len(self.shards) // world)
        batches = total // batch_size
        self.order = Order(self.counts, seed, batch_size, world, 1, batches, total - batches * batch_size)
        self.lanes = range(rank, world, world)

    @property
    def batches_per_epoch(self) -> int:
        """Of all ranks together; an epoch is as many transitions as the split has."""
        return self.order.batches

    def state(self, position: Position) -> dict[str, int | str]:
        """What to save with a checkpoint: how far it was, not what comes next."""
        return {"epoch": position.epoch, "batch": position.batch, "content_hash": self.store.content_hash}

    def batches(self, start: Position = START) -> Generator[tuple[Position, Batch], None, None]:
        """Batches without end, each with the position after it; another order for every `start`."""
        words = np.random.SeedSequence([self.seed, start.epoch, start.batch]).generate_state(1, np.uint64)
        loader = torch.utils.data.DataLoader(
            self._pipeline(int(words[0])), batch_size=None, num_workers=self.processes, prefetch_factor=READY_BATCHES
        )
        epoch, number, pin = start.epoch, start.batch, torch.cuda.is_available()
        found = iter(loader)
        try:
            for batch in found:
                if isinstance(batch, StateVLAError):
                    raise batch
                number += 1
                if number == self.order.batches:
                    epoch, number = epoch + 1, 0
                yield Position(epoch, number), batch.pin() if pin else batch
        finally:
            del found, loader  # ends the processes

    def _pipeline(self, seed: int) -> Any:
        import webdataset

        buffer = max(self.data.shuffle_buffer // self.processes, 1)
        shards = len(self.shards)
        cut = _Cut(self.store, self.counts, self.shards)
        stages = webdataset.DataPipeline(
            webdataset.SimpleShardList(self.shards),
            webdataset.detshuffle(shards, shards, seed=seed),
            lambda urls: itertools.islice(urls, self.rank, None, self.world),
            webdataset.split_by_worker,
            _opener(self.store, cut),
            webdataset.tariterators.tar_file_expander,
            webdataset.tariterators.group_by_keys,
            cut,
            webdataset.detshuffle(buffer, buffer, seed=seed),
        ).repeat()
        return _Batches(stages, self.table, self.order.share, self.needs.ahead, self.store.root)


class _Shard:
    """One shard as a stream that is read once; its size and sha256 are the manifest's at the end, or it raises."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.item = store, store.object(name)
        self._digest, self._rest = hashlib.sha256(), b""
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="statevla-shard")
        self._starts = iter(range(0, self.item.bytes, PIECE))
        self._coming: deque[Future[bytes]] = deque()

    def _next(self) -> bytes:
        while len(self._coming) < AHEAD and (start := next(self._starts, None)) is not None:
            size = min(PIECE, self.item.bytes - start)
            self._coming.append(self._pool.submit(self.store.storage.read_range, self.item.path, start, size))
        data = self._coming.popleft().result() if self._coming else b""
        self._digest.update(data)
        return data

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end."""
        parts, wanted = [], size
        while wanted:
            if not self._rest and not (data := self._next()):
                break
            self._rest = self._rest or data
            parts.append(self._rest[:wanted])
            self._rest = self._rest[wanted:]
            wanted -= len(parts[-1])
        return b"".join(parts)

    def finish(self) -> None:
        """Read what is left. Raises StoreCorrupt when the whole is not what the manifest says."""
        while self._next():
            pass
        if self._digest.hexdigest() != self.item.sha256:
            raise StoreCorrupt(
                f"{self.store.root}: {self.item.path}: its content is not what was written (sha256 differs from the "
                f"manifest); run `statevla verify {word(self.store.root)}`, then ingest again"
            )

    def close(self) -> None:
        """End its requests."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __str__(self) -> str:
        return _SHARD


def _opener(store: Store, cut: "_Cut") -> Callable[[Iterable[dict[str, str]]], Iterator[dict[str, Any]]]:
    """A stage of the pipeline: names of shards to open streams; goes on when all of one was taken, and checked."""

    def run(urls: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
        for item in urls:
            shard = _Shard(store, item["url"])
            try:
                yield {**item, "stream": shard}
                shard.finish()
            finally:
                shard.close()

    return run


class _Cut:
    """A stage of the pipeline: samples, in the order of their shard, to the transitions of the split in them.

    A shard's samples are its rows of segments.parquet, by offset: the index says what each is, and how many there are.
    """

    def __init__(self, store: Store, counts: Ints, shards: list[str]) -> None:
        self.store, self.counts = store, counts
        codes, names = store.segment_columns.codes("shard")
        order = np.lexsort((store.segment_columns["offset"], codes))
        ends = np.searchsorted(codes[order], np.arange(len(names) + 1))
        self.rows = {names[c]: order[ends[c] : ends[c + 1]] for c in range(len(names)) if names[c] in set(shards)}

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[Row]:
        for url, own in itertools.groupby(samples, lambda sample: str(sample["__url__"])):
            rows, found = self.rows[url], 0
            for number, sample in zip(rows.tolist(), own, strict=False):
                found += 1
                if count := int(self.counts[number]):
                    members = {name: data for name, data in sample.items() if not name.startswith("__")}
                    segment = self.store.parse_segment(number, sample["__key__"], members)
                    yield from (Row(segment, number, step) for step in range(count))
            if found != len(rows) or next(own, None) is not None:
                raise StoreCorrupt(
                    f"{self.store.root}: {url}: expected {len(rows)} samples as the index says, got others; "
                    f"run `statevla verify {word(self.store.root)}`"
                )


class _Batches(torch.utils.data.IterableDataset[Batch | StateVLAError]):
    """Transitions to batches, decoded; an error comes as the last item, because processes hand on no exceptions."""

    def __init__(self, rows: Iterable[Row], table: Table, size: int, ahead: int, root: str) -> None:
        super().__init__()
        self.rows, self.table, self.size, self.ahead, self.root = rows, table, size, ahead, root

    def __iter__(self) -> Iterator[Batch | StateVLAError]:
        torch.set_num_threads(1)
        rows = iter(self.rows)
        try:
            while chosen := list(itertools.islice(rows, self.size)):
                yield batch_of(chosen, self.table, self.ahead)
        except Exception as error:  # webdataset appends stream and name to the arguments of whatever passes through it
            text = str(error.args[0] if error.args else error).removesuffix(f" @ {_SHARD}")
            if isinstance(error, StateVLAError):
                yield type(error)(text)
            else:
                yield StoreCorrupt(
                    f"{self.root}: a shard cannot be read in order: {type(error).__name__}: {text}; "
                    f"run `statevla verify {word(self.root)}`"
                )


def batch_of(rows: list[Row], table: Table, ahead: int) -> Batch:
    """One batch of transitions, their pictures decoded."""
    segment = np.array([row.number for row in rows], np.int64)
    step = np.array([row.step for row in rows], np.int64)
    chunk = np.stack([row.segment.action[row.step : row.step + table.chunk] for row in rows])
    is_pad = np.stack([row.segment.is_pad[row.step : row.step + table.chunk] for row in rows])

    def observe(later: Ints, language: torch.Tensor) -> ObservationBatch:
        at = (step + later).tolist()
        images = []
        for camera, size in zip(table.spec.camera_names, table.spec.image_sizes, strict=True):
            out = torch.empty((len(rows), *size, 3), dtype=torch.uint8)
            for target, row, t in zip(out.numpy(), rows, at, strict=True):
                where = f"{row.segment.where}, {camera} {t}"
                decode_image(row.segment.images[camera][t], row.segment.codec, target, where)
            images.append(out)
        state = np.stack([row.segment.robot_state[t] for row, t in zip(rows, at, strict=True)])
        return ObservationBatch(tuple(images), torch.from_numpy(state), language)

    return assemble(table, segment, step, chunk, is_pad, observe, ahead)
