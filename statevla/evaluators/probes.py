"""What a state holds: how well a linear map reads things off it, on episodes that the map never saw.

A probe is ridge regression from the state, both sides standardized on the training episodes. R² within episodes takes
each episode's mean out first: what tells episodes apart (scene, task) earns nothing there. Positions of things are not
in a store; who has its recordings can give them.

Legend: N frames, D width of a state, Y numbers to read, H steps of a rollout.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from statevla.config import Config
from statevla.data.loaders import SplitReader
from statevla.data.needs import NOW
from statevla.encoders.vision import load_backbone, require_identity
from statevla.models.encoder import StateEncoder
from statevla.models.monitors import correlation_excess, rank_me, within_episodes
from statevla.models.standardize import Standardize
from statevla.policies.prepare import choose_device
from statevla.runs.files import MODEL, load_strict, read_tensors
from statevla.runs.layout import evaluation
from statevla.runs.state import CheckpointState, read_state, require_store
from statevla.runs.stores import find_store
from statevla.systems.find import find_encoder
from statevla.systems.stamo import StamoModel
from statevla.systems.system import Given
from statevla.systems.table import config_of, system_of
from statevla.systems.temporal_jepa import JepaModel
from stores.disk.durable import make_dir, write_json
from stores.errors import UsageError
from stores.reader import Store

Array = NDArray[np.float64]
Places = Callable[[int], Mapping[str, Array]]
"""Episode number -> further values of its frames by name, each [T, Y]."""

RIDGE: Final = 1e-3
"""Weight of the penalty a frame, on standardized numbers."""
ROWS: Final = 32
"""Frames of a batch, neighbours in the store; batches lie evenly over a split."""
ROLLOUT: Final = (1, 2, 4, 8)
"""Steps of the rollouts, as far as a chunk reaches."""


@dataclass(frozen=True)
class Frames:
    """States of a split and what stands beside them, in store order.

    z, target: float64 [N, D], of the encoder (all its tokens end to end) and of its moving average, if it has one.
    values: by name, float64 [N, Y]. episode, frame, task: int64 [N]. actions: float32 [N, K, A] standardized; is_pad:
    bool [N, K].
    """

    z: Array
    target: Array
    values: dict[str, Array]
    episode: NDArray[np.int64]
    frame: NDArray[np.int64]
    task: NDArray[np.int64]
    actions: NDArray[np.float32]
    is_pad: NDArray[np.bool_]


@dataclass(frozen=True)
class Probe:
    """r2: over all held-out frames, 1 is all of the variance and 0 none. within: the same within episodes. width: Y."""

    r2: float
    within: float
    width: int


@dataclass(frozen=True)
class Rollout:
    """Mean squared error of the state `steps` ahead: predicted from the actions, from another frame's actions, and of
    saying that nothing changes. frames: how many.
    """

    steps: int
    predicted: float
    shuffled: float
    copied: float
    frames: int


@dataclass(frozen=True)
class Probes:
    """All of it. instruction: share of held-out frames whose instruction a linear map tells right; chance: of guessing.
    dots: for a picture, first two main components, task and share of the episode gone by.
    """

    checkpoint: str
    system: str
    step: int
    frames: dict[str, int]
    z_std: float
    z_rank: float
    z_correlation: float
    z_within: float
    probes: dict[str, Probe]
    instruction: float
    chance: float
    rollouts: tuple[Rollout, ...]
    shares: tuple[float, float]
    dots: tuple[tuple[float, float, int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def ridge(x: Array, y: Array, penalty: float) -> Array:
    """Weights [D, Y] that minimize ‖x w − y‖² + penalty ‖w‖²."""
    return np.asarray(np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y), np.float64)


def standardized(train: Array, test: Array) -> tuple[Array, Array]:
    """Both by the mean and deviation of the first; what never varies there is 0."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    scale = np.where(std < 1e-8, np.inf, std)
    return (train - mean) / scale, (test - mean) / scale


def explained(wanted: Array, found: Array) -> float:
    """1 − residual over variance, summed over columns that vary; 0 where none does."""
    total = float(((wanted - wanted.mean(axis=0)) ** 2).sum())
    return 0.0 if total < 1e-12 else 1 - float(((wanted - found) ** 2).sum()) / total


def minus_episode_means(values: Array, episode: NDArray[np.int64]) -> Array:
    """Each column less its mean within the episode."""
    _, place = np.unique(episode, return_inverse=True)
    sums: Array = np.zeros((int(place.max()) + 1, values.shape[1]))
    np.add.at(sums, place, values)
    counts: Array = np.bincount(place).astype(np.float64)
    return np.asarray(values - (sums / counts[:, None])[place], np.float64)


def probe(train: Frames, test: Frames, name: str) -> Probe:
    """Of one quantity."""
    x, x_test = standardized(train.z, test.z)
    y, y_test = standardized(train.values[name], test.values[name])
    varies = y.any(axis=0)
    y, y_test = y[:, varies], y_test[:, varies]
    found = x_test @ ridge(x, y, RIDGE * len(x))
    return Probe(
        explained(y_test, found),
        explained(minus_episode_means(y_test, test.episode), minus_episode_means(found, test.episode)),
        int(varies.sum()),
    )


def tell_instruction(train: Frames, test: Frames) -> tuple[float, float]:
    """Share of frames whose instruction the largest of the regressed indicators names, and that of the most common."""
    x, x_test = standardized(train.z, test.z)
    tasks = np.unique(np.concatenate([train.task, test.task]))
    y = (train.task[:, None] == tasks).astype(np.float64)
    found = tasks[(x_test @ ridge(x, y - y.mean(axis=0), RIDGE * len(x)) + y.mean(axis=0)).argmax(axis=1)]
    return float((found == test.task).mean()), float(np.bincount(test.task).max() / len(test.task))


@torch.no_grad()
def rollouts(model: JepaModel, frames: Frames, device: torch.device) -> tuple[Rollout, ...]:
    """ẑ by the predictor, step after step, with the actions that were taken; against the target's state there."""
    found = []
    for steps in ROLLOUT:
        if steps > frames.actions.shape[1]:
            continue
        ahead = np.arange(len(frames.z) - steps)
        same = (frames.episode[ahead] == frames.episode[ahead + steps]) & (
            frames.frame[ahead] + steps == frames.frame[ahead + steps]
        )
        rows = ahead[same]
        if len(rows) < 2:
            continue
        z = torch.tensor(frames.z[rows], dtype=torch.float32, device=device)
        actions = torch.tensor(frames.actions[rows], device=device)
        wanted = torch.tensor(frames.target[rows + steps], dtype=torch.float32, device=device)
        others = actions.roll(len(rows) // 2, dims=0)
        ends = []
        for each in (actions, others):
            state = z
            for step in range(steps):
                state = model.predictor(state, each[:, step])
            ends.append(float((state - wanted).square().mean()))
        found.append(Rollout(steps, ends[0], ends[1], float((z - wanted).square().mean()), len(rows)))
    return tuple(found)


Coder = StateEncoder | StamoModel
"""What makes states of observations."""


@torch.no_grad()
def read_frames(
    coder: Coder, model: nn.Module, store: Store, split: str, config: Config, most: int, device: torch.device,
    places: Places | None = None,
) -> Frames:  # fmt: skip
    """About `most` frames of a split, whole batches evenly over it: in store order one task comes after the other.

    places: what else to probe; only what every episode has.
    """
    columns: dict[str, list[NDArray[Any]]] = {}
    instructions = sorted(store.manifest.instructions)
    tasks = np.array([instructions.index(str(text)) for text in store.episode_columns["instruction"]])
    standardize = Standardize("action", store.stats(), store.spec).to(device)
    reader = SplitReader(store, split, ROWS, config.model.action_seq_len, config.data, needs=NOW)
    for batch in reader.batches(0, max(1, -(-int(reader.counts.sum()) // most))):
        obs = batch.obs.to(device)
        z = coder.state(obs).flatten(1)
        target = model.target.state(obs) if isinstance(model, JepaModel) else z
        given = {
            "z": z, "target": target, "robot_state": batch.obs.robot_state,
            "action": batch.action, "actions": standardize(batch.chunk.to(device)), "is_pad": batch.is_pad,
            "episode": batch.episode, "frame": batch.frame,
        }  # fmt: skip
        for name, value in given.items():
            columns.setdefault(name, []).append(value.cpu().numpy())
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    steps = store.episode_columns["steps"][joined["episode"]]
    values = {
        "robot_state": joined["robot_state"].astype(np.float64),
        "action": joined["action"].astype(np.float64),
        "progress": (joined["frame"] / np.maximum(steps - 1, 1))[:, None].astype(np.float64),
    }
    if places is not None:
        values |= _places_beside(joined["episode"], joined["frame"], places)
    return Frames(
        joined["z"].astype(np.float64), joined["target"].astype(np.float64), values, joined["episode"],
        joined["frame"], tasks[joined["episode"]], joined["actions"].astype(np.float32), joined["is_pad"],
    )  # fmt: skip


def _places_beside(episode: NDArray[np.int64], frame: NDArray[np.int64], places: Places) -> dict[str, Array]:
    found = {int(number): places(int(number)) for number in np.unique(episode)}
    names = set.intersection(*(set(each) for each in found.values()))
    return {
        name: np.stack([found[int(e)][name][int(f)] for e, f in zip(episode, frame, strict=True)])
        for name in sorted(names)
    }


def probe_checkpoint(
    checkpoint: Path,
    store: Store,
    *,
    device: str = "cpu",
    most: int = 4096,
    random: bool = False,
    places: Places | None = None,
) -> Probes:
    """Probe the state encoder of a checkpoint: fit on train episodes, measured on validation ones.

    most: frames of each split. random: an untrained encoder of the same configuration instead, what training must beat.
    places: further values to read off the state.
    Raises UsageError for a system without a state encoder, StaleKey for a checkpoint of another store.
    """
    state = read_state(checkpoint)
    require_store(state, store.content_hash, checkpoint, str(store.root))
    config, where = config_of(state, checkpoint), torch.device(device)
    model = _load(state, checkpoint, config, store, where, random)
    coder = model if isinstance(model, StamoModel) else getattr(model, "encoder", None)
    if not isinstance(coder, Coder):
        raise UsageError(
            f"{checkpoint}: {state.system} has no state encoder to probe; name one of temporal_jepa's or stamo's"
        )
    train, test = (read_frames(coder, model, store, split, config, most, where, places) for split in ("train", "val"))
    told, chance = tell_instruction(train, test)
    z = torch.from_numpy(test.z)
    axes, shares = main_components(test.z)
    gone = test.values["progress"][:, 0]
    return Probes(
        checkpoint=str(checkpoint), system=state.system, step=0 if random else state.step,
        frames={"train": len(train.z), "val": len(test.z)},
        z_std=float(z.std(dim=0).mean()), z_rank=rank_me(z), z_correlation=correlation_excess(z),
        z_within=within_episodes(z, torch.from_numpy(test.episode)),
        probes={name: probe(train, test, name) for name in test.values if name in train.values},
        instruction=told, chance=chance,
        rollouts=rollouts(model, test, where) if isinstance(model, JepaModel) else (), shares=shares,
        dots=tuple(
            (float(a), float(b), int(t), float(g))
            for (a, b), t, g in list(zip(axes, test.task, gone, strict=True))[:: max(len(axes) // 600, 1)]
        ),
    )  # fmt: skip


def probes_of_run(
    path: Path | None,
    store: Path | str | None = None,
    *,
    device: str = "auto",
    most: int = 4096,
    random: bool = False,
    out: Path | None = None,
    places: Callable[[Store], Places] | None = None,
) -> tuple[dict[str, Any], Path]:
    """`probe_checkpoint` of what `path` means, written as ``probes.json``; the result and its folder.

    path: None for the only state encoder of the store. store: None for the one that `path` was trained on. places: of
    the store that is probed.
    """
    if path is None:
        told: Path | str | None = find_store(store)
        checkpoint = find_encoder(None, Store.open(str(told)).content_hash)
    else:
        checkpoint = find_encoder(path, "")
        told = store if store is not None else read_state(checkpoint).config["data"]["store"]
    where = str(choose_device(device))
    opened = Store.open(find_store(told))
    beside = None if places is None else places(opened)
    probes = probe_checkpoint(checkpoint, opened, device=where, most=most, random=random, places=beside)
    found = probes.to_dict()
    name = f"probes-{checkpoint.parent.name}-{checkpoint.name}{'-random' if random else ''}"
    folder = evaluation(checkpoint, name) if out is None else out
    make_dir(folder)
    write_json(folder / "probes.json", found)
    return found, folder


def main_components(z: Array) -> tuple[Array, tuple[float, float]]:
    """Places [N, 2] on the two directions of most variance, and the share of the variance of each."""
    centred = z - z.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    total = max(float((s**2).sum()), 1e-12)
    return u[:, :2] * s[:2], (float(s[0] ** 2) / total, float(s[1] ** 2) / total if len(s) > 1 else 0.0)


def _load(
    state: CheckpointState, folder: Path, config: Config, store: Store, device: torch.device, random: bool
) -> nn.Module:
    backbone = load_backbone(config.model, device)
    require_identity(backbone, state.backbone, str(folder))
    torch.manual_seed(config.training.seed)
    model = system_of(state, folder).build(config, Given(store.spec, store.stats(), backbone))
    if not random:
        load_strict(model, read_tensors(folder, state, MODEL), str(folder / MODEL))
    return model.to(device).eval().requires_grad_(False)


def table(found: Mapping[str, Any]) -> dict[str, Any]:
    """`Probes.to_dict` for people: without the picture's points."""
    return {name: value for name, value in found.items() if name != "dots"}
