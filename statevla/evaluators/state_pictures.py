"""Pictures painted from states, against what needs no painter: the task's mean picture, the nearest training picture,
and principal components as many as a state has numbers.

Painted in many steps, a picture is one of those that the state allows; in one step from pure noise it is their mean,
which has the smaller error and says what the state holds.

Legend: N frames, C cameras, S side, V = C · S · S · 3 numbers of a frame, B bool of each.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from statevla.config import DataConfig
from statevla.data.batch import ObservationBatch
from statevla.data.loaders import iterate_once
from statevla.evaluators.state_measures import psnr, ssim
from statevla.models.pixels import prepare_pixels
from stores.errors import UsageError
from stores.reader import Store

Moving = dict[str, float | None]
"""By what painted; None where nothing moves."""
SAMPLE = 1200
"""Training frames, evenly over the split, that the baselines are made of."""
POOLED = 8


class Seen(NamedTuple):
    """pixels: uint8 [N C S S 3]. instruction: text of each. episode, frame: int64 [N]. obs: to compute states from."""

    pixels: NDArray[np.uint8]
    instruction: list[str]
    episode: NDArray[np.int64]
    frame: NDArray[np.int64]
    obs: ObservationBatch


def compare_pictures(
    painters: Mapping[str, Callable[[ObservationBatch], torch.Tensor]], components: int, store: Store, side: int,
    cameras: Sequence[int], painted: int, motion: int, moved: float,
) -> tuple[dict[str, float], Moving, dict[str, float], Moving, int]:  # fmt: skip
    """By what made the pictures: PSNR of whole ones and where something moves, SSIM likewise; and how many frames.

    painters: uint8 [N C S S 3] of observations, by name. components: principal ones beside them. cameras: numbers of
    those that are painted. painted: frames of the validation split. motion, moved: a pixel moves where a colour changes
    by more than `moved` within so many frames.
    """
    train = read_frames(store, "train", side, cameras, SAMPLE)
    val = read_frames(store, "val", side, cameras, None)
    later = {(e, f): n for n, (e, f) in enumerate(zip(val.episode.tolist(), val.frame.tolist(), strict=True))}
    pairs = [(n, later[e, f + motion]) for (e, f), n in later.items() if (e, f + motion) in later]
    pairs = pairs[:: max(1, len(pairs) // painted)][:painted]
    if not pairs:
        raise UsageError(
            f"{store.root}: no validation episode has {motion + 1} frames, so that nothing is seen to move"
        )
    chosen = np.array([now for now, _ in pairs], dtype=np.int64)
    seen = val.pixels[chosen] / 255.0
    change = np.abs(val.pixels[[then for _, then in pairs]] / 255.0 - seen).max(axis=-1, keepdims=True) > moved
    where = np.broadcast_to(change, seen.shape)
    rows = torch.from_numpy(chosen)
    obs = val.obs.each(lambda tensor: tensor[rows])
    told = {
        **{name: paint(obs).cpu().numpy() / 255.0 for name, paint in painters.items()},
        "the task's mean picture": _means(train, [val.instruction[n] for n in chosen]),
        "the nearest training picture": train.pixels[_nearest(train.pixels, val.pixels[chosen])] / 255.0,
        f"{components} principal components": _components(train.pixels, seen, components),
    }
    everywhere = np.ones_like(where)
    whole = {name: psnr(seen, picture, everywhere) for name, picture in told.items()}
    moving = {name: psnr(seen, picture, where) if where.any() else None for name, picture in told.items()}
    similar = {name: _ssim(seen, picture, where[..., 0]) for name, picture in told.items()}
    return (
        whole, moving, {name: both[0] for name, both in similar.items()},
        {name: both[1] for name, both in similar.items()}, len(chosen),
    )  # fmt: skip


def read_frames(store: Store, split: str, side: int, cameras: Sequence[int], most: int | None) -> Seen:
    """Frames of a split, pictures of `cameras` at `side` pixels; `most`: about so many of them, evenly; None: all."""
    found: dict[str, list[Any]] = {"pixels": [], "episode": [], "frame": [], "obs": []}
    total = int(store.segment_columns["steps"].sum())
    every = 1 if most is None else max(1, total // most)
    for batch in iterate_once(store, split, 64, 1, DataConfig(cache_gib=0.0)):
        rows = torch.arange(len(batch))[:: every if every < len(batch) else len(batch)]
        obs = batch.obs.each(lambda tensor, rows=rows: tensor[rows])  # type: ignore[misc]
        small = torch.stack([prepare_pixels(obs.images[camera], side) for camera in cameras], dim=1).clamp(-1, 1)
        found["pixels"].append(((small + 1) * 127.5).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy())
        found["episode"].append(batch.episode[rows].numpy())
        found["frame"].append(batch.frame[rows].numpy())
        found["obs"].append(obs)
    episode = np.concatenate(found["episode"])
    texts = [str(text) for text in store.episode_columns["instruction"]]
    joined = ObservationBatch(
        tuple(torch.cat(frames) for frames in zip(*(obs.images for obs in found["obs"]), strict=True)),
        torch.cat([obs.robot_state for obs in found["obs"]]),
        torch.cat([obs.language for obs in found["obs"]]),
    )
    return Seen(
        np.concatenate(found["pixels"]), [texts[e] for e in episode], episode, np.concatenate(found["frame"]), joined
    )


def _means(train: Seen, wanted: list[str]) -> NDArray[np.float64]:
    of_all = train.pixels.mean(axis=0) / 255.0
    means = {}
    for text in set(wanted):
        rows = [n for n, told in enumerate(train.instruction) if told == text]
        means[text] = train.pixels[rows].mean(axis=0) / 255.0 if rows else of_all
    return np.stack([means[text] for text in wanted])


def _pooled(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    cameras = torch.from_numpy(pixels).flatten(0, 1).permute(0, 3, 1, 2).float()
    return nn.functional.adaptive_avg_pool2d(cameras, POOLED).reshape(len(pixels), -1).numpy()


def _nearest(train: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> NDArray[np.int64]:
    theirs, mine = _pooled(train), _pooled(wanted)
    return np.array([((theirs - row) ** 2).sum(axis=1).argmin() for row in mine])


def _components(train: NDArray[np.uint8], seen: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """By the Gram matrix: there are fewer frames than numbers of a frame."""
    flat = train.reshape(len(train), -1).astype(np.float32) / 255
    mean = flat.mean(axis=0)
    centred = flat - mean
    values, vectors = np.linalg.eigh(centred @ centred.T)
    keep = [n for n in np.argsort(values)[::-1][:count] if values[n] > 1e-3]
    directions = centred.T @ vectors[:, keep] / np.sqrt(values[keep])
    told = (seen.reshape(len(seen), -1) - mean) @ directions @ directions.T + mean
    return np.asarray(told.reshape(seen.shape).clip(0, 1))


def _ssim(seen: NDArray[np.float64], told: NDArray[np.float64], moved: NDArray[np.bool_]) -> tuple[float, float | None]:
    """Mean over all windows, and over those whose middle moves; None where there are none."""
    grey = [picture.mean(axis=-1).reshape(-1, *picture.shape[2:4]) for picture in (seen, told)]
    maps = np.stack([ssim(a, b) for a, b in zip(*grey, strict=True)])
    edge = (moved.shape[2] - maps.shape[1]) // 2
    middles = moved.reshape(-1, *moved.shape[2:])[:, edge : edge + maps.shape[1], edge : edge + maps.shape[2]]
    return float(maps.mean()), float(maps[middles].mean()) if middles.any() else None
