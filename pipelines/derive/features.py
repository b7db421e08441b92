"""``statevla features``: patch features of a frozen tower for every frame of a store, kept as a derived folder.

A unit is one shard of every camera, made by one worker from the pictures of its frames; what is finished stays when a
run is interrupted. Rows are frames, in sharded Zarr v3 (`stores.sharded`), one chunk a frame where frames are large: so
any frame, and any run of frames, is read with its own bytes and no others.

Legend: N frames, P patches, V feature width, S rows a shard.
"""

import functools
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.run import run_units
from statevla.data.frames import make_table
from statevla.data.walk import walk_pictures
from statevla.encoders.features import CLASS_TOKEN, DTYPES, MAKE, made_from, quantize
from statevla.encoders.tower import FrozenTower
from statevla.encoders.vision import VISION
from statevla.models.tokenizer import pool_patches
from stores.derived import begin, made_otherwise, open_derived, room_needed
from stores.disk import durable
from stores.disk.lock import lock
from stores.disk.room import require_room
from stores.errors import StaleKey, StateVLAError, StoreCorrupt, StoreMissing, UsageError
from stores.layout import FEATURES
from stores.manifest import content_hash
from stores.progress import Progress, ProgressEvent, told
from stores.reader import Store
from stores.sharded import ShardedSpec, write_shard

CHUNK_BYTES: Final = 1 << 16
"""Small frames share a chunk up to this size; a checksum is then of more than a few bytes."""
SHARD_BYTES: Final = 64 << 20
SHARD_ROWS: Final = 1024
"""A shard is at most this large: what an interrupted worker loses."""


@dataclass(frozen=True)
class FeatureConfig:
    """encoder: a row of `VISION`, or a hub name or folder of a model of one. device: ``auto``, cpu or cuda."""

    store: Path | str
    encoder: str
    dtype: str = "float16"
    pool: int = 1
    device: str = "auto"
    batch: int = 32
    threads: int = 2
    name: str | None = None


@dataclass(frozen=True)
class _Unit:
    """Shard m. staged: where it is left, a folder of this driver's own: a worker that outlives its driver so changes
    nothing of a later one's. made_from: what the driver seals, as pairs. device: the one that the driver chose.
    """

    config: FeatureConfig
    staged: Path
    specs: dict[str, ShardedSpec]
    made_from: tuple[tuple[str, Any], ...]
    device: str
    m: int


def make_features(
    config: FeatureConfig,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    dry_run: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compute what is not there yet. Returns folder, encoder, revision, frames, patches, width, bytes, computed
    and how a training reads them (train_with), among others.

    The driver's device, and so the precision, goes for all workers. replace: what is there under that name and was made
    another way, an unfinished part too; it may have taken a day, and a device that is not here.
    Raises UsageError where it is and is not to be replaced, for an encoder that is unknown or cannot be had and a store
    that is a URL; StateVLAError when the disk has no room or features are not finite in float16; StaleKey when the
    store is changed meanwhile, or a worker has another store or tower than the driver. Another writer of the store is
    waited for.
    """
    if "://" in str(config.store):
        raise UsageError(f"{config.store}: cannot be written in place; run this on a local copy, then publish it")
    if config.dtype not in DTYPES or config.pool not in (1, 2, 4):
        raise UsageError(f"--dtype {config.dtype}, --pool {config.pool}: expected one of {DTYPES} and 1, 2 or 4")
    store = Store.open(config.store)
    device = _device(config.device)
    kind, tower = _load(config.encoder, device)
    specs, shape = _specs(store, config, tower)
    made = _made_from(store, kind, tower, config)
    name = config.name or _name(kind, config)
    size = sum(sum(spec.files().values()) for spec in specs.values())
    summary = {
        "folder": f"{FEATURES}/{name}", "encoder": kind, "model": tower.name, "revision": tower.revision,
        "dtype": config.dtype, "pool": config.pool, "frames": store.manifest.counts["frames"], "patches": shape[0],
        "width": shape[1], "bytes": size, "train_with": f"--set data.features={name}",
    }  # fmt: skip
    if dry_run or _are_there(store, made, name):
        return {**summary, "computed": 0}
    with lock(config.store, "statevla features", told(progress, "features", "frames")):
        if content_hash(config.store) != store.content_hash:
            raise StaleKey(f"{config.store}: another ingest has changed it meanwhile; run the same command again")
        if _are_there(store, made, name):  # of another run, which was waited for
            return {**summary, "computed": 0}
        differs = [] if replace else made_otherwise(config.store, FEATURES, name, made)
        if differs:
            raise UsageError(
                f"{config.store}: {FEATURES}/{name} are there, made from another {', '.join(differs)}; give these "
                "another name (--name), or replace those (--replace)"
            )
        needed = room_needed(config.store, FEATURES, name, specs)
        require_room(Path(config.store, FEATURES, name), needed, "these features")
        with begin(config.store, FEATURES, name, made, specs) as unfinished:
            missing = sorted({m for array in specs for m in unfinished.missing(array)})
            first = next(iter(specs.values()))
            done = first.shape[0] - sum(first.rows(m) for m in missing)
            sealed = tuple(sorted(made.items()))
            staged = durable.temp_name(unfinished.root / "shards")
            units = [(f"{name}-{m:06d}", _Unit(config, staged, specs, sealed, device, m)) for m in missing]
            alone = scheduler is None and workers == 0
            make = functools.partial(_write_shard, store, tower) if alone else _make_shard
            for _, m in run_units(make, units, workers, scheduler):
                _take(staged, unfinished.root, specs, m)
                done += first.rows(m)
                if progress is not None:
                    progress(ProgressEvent("features", done, first.shape[0], "frames", kind))
            about = {
                "model": tower.name,
                "cameras": list(store.spec.camera_names),
                "patches": shape[0],
                "width": shape[1],
            }
            durable.remove(staged)
            unfinished.commit(about)
    return {**summary, "computed": len(missing)}


def _are_there(store: Store, made: dict[str, Any], name: str) -> bool:
    try:
        open_derived(store.storage, FEATURES, made, MAKE, name)
    except (StoreMissing, StaleKey, StoreCorrupt):
        return False
    return True


def _take(staged: Path, folder: Path, specs: dict[str, ShardedSpec], m: int) -> None:
    """Give shard m of every array its name. Raises StateVLAError where its worker left it somewhere else."""
    for array, spec in specs.items():
        path = Path(array, spec.shard_name(m))
        if not (staged / path).is_file():
            raise StateVLAError(f"{staged / path}: a worker made it, and it is not here: all must see the same files")
        durable.make_dir((folder / path).parent)
        durable.rename(staged / path, folder / path)


def _make_shard(unit: _Unit) -> int:
    """`_write_shard` on a worker. Raises StaleKey when its store or tower is not the driver's."""
    return _write_shard(*_opened(unit.config, unit.device, unit.made_from), unit)


@functools.lru_cache(maxsize=1)
def _opened(config: FeatureConfig, device: str, made_from: tuple[tuple[str, Any], ...]) -> tuple[Store, FrozenTower]:
    """Store and tower, kept from shard to shard: a worker may outlive many drivers, so only while the same is sealed.

    Raises StaleKey when what is here is something else: another content of the store, other weights, another precision.
    """
    store = Store.open(config.store)
    kind, tower = _load(config.encoder, device)
    found, wanted = _made_from(store, kind, tower, config), dict(made_from)
    differs = sorted(field for field in {*found, *wanted} if found.get(field) != wanted.get(field))
    if differs:
        here, there = ({field: made.get(field) for field in differs} for made in (found, wanted))
        raise StaleKey(
            f"{config.store}: features of {config.encoder}: expected {there}, which the driver would seal, this worker "
            f"({socket.gethostname()}) has {here}; give both the same store, weights and device"
        )
    return store, tower


def _made_from(store: Store, kind: str, tower: FrozenTower, config: FeatureConfig) -> dict[str, Any]:
    precision = str(tower.dtype).removeprefix("torch.")
    return made_from(
        store, kind, tower.revision, tower.preprocessing, config.dtype, config.pool, precision, tower.prefix > 0
    )


def _write_shard(store: Store, tower: FrozenTower, unit: _Unit) -> int:
    """Leave shard m of every array where the driver takes it from."""
    config = unit.config
    spec = next(iter(unit.specs.values()))
    start, rows = unit.m * spec.shard, spec.rows(unit.m)
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in unit.specs}
    table = make_table(store, 1)
    for _, pictures in walk_pictures(store, table, start, start + rows, config.batch, config.threads):
        for camera, frames in zip(store.spec.camera_names, pictures, strict=True):
            tokens = tower.tokens(torch.from_numpy(frames))
            features = pool_patches(tokens[:, tower.prefix :], config.pool)
            kept = _stored(camera, features, config.dtype)
            if tower.prefix:
                kept[CLASS_TOKEN.format(camera=camera)] = tokens[:, 0].half().cpu().numpy()
            for name, values in kept.items():
                found[name].append(values)
    for name, pieces in found.items():
        write_shard(unit.staged, name, unit.specs[name], unit.m, pieces)
    return unit.m


def _stored(camera: str, features: torch.Tensor, dtype: str) -> dict[str, NDArray[Any]]:
    if dtype == "int8":
        values, scale = quantize(features)
        arrays = {camera: values.cpu().numpy(), f"{camera}_scale": scale.cpu().numpy()}
    else:
        arrays = {camera: features.half().cpu().numpy()}
    if not all(np.isfinite(values).all() for values in arrays.values()):
        raise StateVLAError(f"features of {camera}: not finite, or too large for float16; use another encoder")
    return arrays


def _specs(store: Store, config: FeatureConfig, tower: FrozenTower) -> tuple[dict[str, ShardedSpec], tuple[int, int]]:
    """Arrays by name, all cut at the same frames; and P and V, by asking the tower."""
    height, width = store.spec.image_sizes[0]
    features = pool_patches(tower.patch_features(torch.zeros(1, height, width, 3, dtype=torch.uint8)), config.pool)
    patches, size = int(features.shape[1]), int(features.shape[2])
    row = patches * size * np.dtype(config.dtype).itemsize
    chunk = max(1, min(CHUNK_BYTES // row, SHARD_ROWS))
    shard = chunk * max(1, min(SHARD_BYTES // (chunk * row), SHARD_ROWS // chunk))
    frames = store.manifest.counts["frames"]
    specs = {name: ShardedSpec((frames, patches, size), config.dtype, chunk, shard) for name in store.spec.camera_names}
    if config.dtype == "int8":
        specs |= {f"{name}_scale": ShardedSpec((frames, patches), "float16", shard, shard) for name in specs}
    if tower.prefix:
        named = {CLASS_TOKEN.format(camera=name) for name in store.spec.camera_names}
        specs |= {name: ShardedSpec((frames, size), "float16", shard, shard) for name in sorted(named)}
    return specs, (patches, size)


def _load(encoder: str, device: str) -> tuple[str, FrozenTower]:
    """The row's name and the tower: bfloat16 on a GPU, float32 elsewhere."""
    kind = encoder if encoder in VISION else _kind(encoder)
    tower = VISION[kind](None if encoder == kind else encoder)
    if not isinstance(tower, FrozenTower):
        raise UsageError(f"--encoder {encoder}: its preprocessing is not known")
    return kind, tower.to(device, torch.bfloat16 if device == "cuda" else None)


def _kind(model: str) -> str:
    """The row whose name the model's type begins with."""
    from transformers import AutoConfig

    from statevla.encoders.hub import require_weights, usable

    with usable(
        lambda reason: f"--encoder {model}: expected {', '.join(VISION)}, or a model's name or folder ({reason})"
    ):
        found = str(AutoConfig.from_pretrained(model, local_files_only=require_weights(model)).model_type)
    for kind in VISION:
        if found.startswith(kind):
            return kind
    raise UsageError(f"--encoder {model}: a model of type {found}; expected one of {', '.join(VISION)}")


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this torch finds no CUDA device; use cpu")
    return name


def _name(kind: str, config: FeatureConfig) -> str:
    """``siglip``, ``dinov2-int8-pool2``; of another model than the row's own, with that model's last name."""
    parts = [kind] if config.encoder == kind else [kind, Path(config.encoder).name]
    parts += ["int8"] if config.dtype == "int8" else []
    parts += [f"pool{config.pool}"] if config.pool > 1 else []
    return "-".join(parts)
