"""The same transitions, loaded by what one would write without this toolkit: peers of `statevla.bench.stream`.

Each gives batches of both cameras at t and t + 1, robot states, language vector and chunk, collated by torch's
DataLoader. `stock` and `one_a_sample` are WebDataset pipelines; `resizing` keeps decoded pictures in memory.
"""

import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from statevla.bench.pace import Pace, timed
from stores.errors import UsageError
from stores.images import SUBSAMPLING
from stores.reader import Segment, Store
from stores.schema import IMAGE_SUFFIX

SHUFFLE_BUFFER: Final = 2048
"""Transitions in a pipeline's shuffle buffer; ours holds about lanes x block_segments x W = 2048."""
SIDE: Final = 224
"""Pixels a side that `resizing` makes of every picture."""
RESIZED: Final = 512
"""Transitions of its turn: seconds, as it makes hundreds a second."""

Sample = dict[str, Any]
Turn = Callable[[], Pace]


@contextlib.contextmanager
def stream_peers(store: Store, batch_size: int, workers: int) -> Iterator[dict[str, Turn]]:
    """A turn of each peer, by name; shards of their own are gone afterwards. workers: processes where it may have some.

    Raises UsageError for a store that lies elsewhere.
    """
    if "://" in store.root:
        raise UsageError(f"{store.root}: the peers read a local store; copy it, or leave them out")
    count = min(workers, len(_shards(store)))
    turns = {f"webdataset + PIL, {count} processes": partial(stock, store, batch_size, count)}
    with tempfile.TemporaryDirectory(prefix="statevla-bench-") as folder:
        if store.manifest.config["codec"] in SUBSAMPLING:
            shards = write_one_a_sample(store, Path(folder), workers)
            for processes in (0, workers):
                name = f"webdataset + simplejpeg, a transition a sample, {processes} processes"
                turns[name] = partial(one_a_sample, shards, batch_size, processes)
        turns[f"decoded in memory, resized to {SIDE} a sample"] = partial(resizing, store, batch_size)
        yield {name: partial(timed, turn) for name, turn in turns.items()}


def train_segments(store: Store) -> list[int]:
    """Numbers of the segments to train on."""
    train = store.episode_columns["split"].astype(str) == "train"
    return [int(number) for number in np.flatnonzero(train[store.segment_columns["episode"]])]


def language_of(store: Store) -> dict[str, Tensor]:
    """Vector of each instruction."""
    return {text: torch.from_numpy(store.language.vector(text).copy()) for text in store.manifest.instructions}


def transitions(segment: Segment, chunk: int) -> Iterator[tuple[int, Sample]]:
    """(t, numbers of a transition that has a successor) of a segment."""
    state, action, is_pad = segment.robot_state, segment.action, segment.is_pad
    for t in range(min(len(state) - 1, segment.meta["steps"])):
        yield t, {
            "robot_state": state[t], "next_robot_state": state[t + 1], "action": action[t],
            "chunk": action[t : t + chunk], "is_pad": is_pad[t : t + chunk],
        }  # fmt: skip


def stock(store: Store, batch_size: int, workers: int) -> int:
    """One pass over our own shards: decode whole samples with PIL, cut transitions, shuffle buffer."""
    import webdataset

    keys = {str(store.segment_columns["key"][number]) for number in train_segments(store)}
    chunk, suffix = int(store.manifest.config["chunk"]), IMAGE_SUFFIX[store.manifest.config["codec"]]
    dataset = (
        webdataset.WebDataset(_shards(store), shardshuffle=False, workersplitter=webdataset.split_by_worker)
        .select(_InSplit(keys))
        .decode("rgb8")
        .compose(_Transitions(language_of(store), store.spec.camera_names, chunk, suffix))
        .shuffle(SHUFFLE_BUFFER)
    )
    return _drain(dataset, batch_size, workers)


def write_one_a_sample(store: Store, folder: Path, shards: int) -> list[str]:
    """Shards in which a sample is a transition with its four pictures as the store has them, by webdataset's writer."""
    import webdataset

    chunk, vectors = int(store.manifest.config["chunk"]), language_of(store)
    paths = [str(folder / f"{number:04d}.tar") for number in range(max(1, shards))]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(webdataset.TarWriter(path)) for path in paths]
        for place, number in enumerate(train_segments(store)):
            segment = store.read_segment(number)
            for t, numbers in transitions(segment, chunk):
                sample: Sample = {"__key__": f"{number:08d}-{t:03d}"}
                for camera, pictures in segment.images.items():
                    sample |= {f"{camera}.jpg": pictures[t], f"{camera}_next.jpg": pictures[t + 1]}
                language = vectors[segment.meta["instruction"]].numpy()
                sample |= {f"{name}.npy": _npy(value) for name, value in {**numbers, "language": language}.items()}
                writers[place % len(writers)].write(sample)
    return paths


def one_a_sample(shards: list[str], batch_size: int, workers: int) -> int:
    """One pass over `write_one_a_sample`'s: shuffle buffer of encoded samples, then decode with simplejpeg."""
    import webdataset

    dataset = (
        webdataset.WebDataset(shards, shardshuffle=False, workersplitter=webdataset.split_by_worker)
        .shuffle(SHUFFLE_BUFFER)
        .map(_decode)
    )
    return _drain(dataset, batch_size, workers)


def resizing(store: Store, batch_size: int) -> int:
    """At most `RESIZED` transitions in random order, their pictures made float32 of `SIDE` pixels one by one."""
    dataset = _Resizing(store)
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:RESIZED].tolist()
    batches = DataLoader(Subset(dataset, rows), batch_size=batch_size)
    return sum(len(batch["action"]) for batch in batches)


def _drain(dataset: Dataset[Sample], batch_size: int, workers: int) -> int:
    return sum(len(batch["action"]) for batch in DataLoader(dataset, batch_size=batch_size, num_workers=workers))


def _shards(store: Store) -> list[str]:
    return [str(Path(store.root, name)) for name in sorted({str(name) for name in store.segment_columns["shard"]})]


def _npy(value: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return buffer.getvalue()


def _decode(sample: Sample) -> Sample:
    return {
        name: simplejpeg.decode_jpeg(value, colorspace="RGB")
        if name.endswith(".jpg")
        else np.load(io.BytesIO(value), allow_pickle=False)
        for name, value in ((name.removesuffix(".npy"), value) for name, value in sample.items())
        if isinstance(value, bytes)
    }


class _InSplit:
    """Keep segments with these keys, before anything is decoded."""

    def __init__(self, keys: set[str]) -> None:
        self.keys = keys

    def __call__(self, sample: Sample) -> bool:
        return sample["__key__"] in self.keys


class _Transitions:
    """Decoded segments -> one dict a transition, with the fields of a batch row with a successor."""

    def __init__(self, vectors: dict[str, Tensor], cameras: Iterable[str], chunk: int, suffix: str) -> None:
        self.vectors, self.cameras, self.chunk, self.suffix = vectors, tuple(cameras), chunk, suffix

    def __call__(self, segments: Iterator[Sample]) -> Iterator[Sample]:
        for sample in segments:
            state, action, is_pad = sample["robot_state.npy"], sample["action.npy"], sample["is_pad.npy"]
            images = [
                np.stack([sample[f"{camera}.{t:02d}.{self.suffix}"] for camera in self.cameras])
                for t in range(len(state))
            ]
            language = self.vectors[sample["json"]["instruction"]]
            for t in range(min(len(state) - 1, sample["json"]["steps"])):
                yield {
                    "images": images[t], "next_images": images[t + 1], "robot_state": state[t],
                    "next_robot_state": state[t + 1], "language": language, "action": action[t],
                    "chunk": action[t : t + self.chunk], "is_pad": is_pad[t : t + self.chunk],
                }  # fmt: skip


class _Resizing(Dataset[Sample]):
    """Decoded segments in memory; a row resizes its own pictures."""

    def __init__(self, store: Store) -> None:
        chunk, vectors = int(store.manifest.config["chunk"]), language_of(store)
        self.frames: list[tuple[NDArray[Any], ...]] = []
        self.rows: list[tuple[int, int, Sample]] = []
        chosen = itertools.islice(train_segments(store), 2 * RESIZED // store.manifest.config["window"] + 2)
        for place, number in enumerate(chosen):
            segment = store.read_segment(number)
            self.frames.append(segment.decode())
            told = {"language": vectors[segment.meta["instruction"]]}
            for t, numbers in transitions(segment, chunk):
                own = {name: np.array(value) for name, value in numbers.items()}  # a segment's are read-only
                self.rows.append((place, t, {**own, **told}))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        place, t, numbers = self.rows[index]
        pairs = torch.from_numpy(np.stack([camera[t : t + 2] for camera in self.frames[place]]))  # [C 2 H W 3]
        pixels = pairs.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        small = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return {"images": small.reshape(*pairs.shape[:2], 3, SIDE, SIDE), **numbers}
