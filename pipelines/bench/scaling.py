"""What stores of any size take, on paper: bytes, objects, requests, rows and memory, from the layout's own constants.

What belongs to pictures and numbers follows from what a real store holds (`measure`), or from LIBERO's as it was
measured; everything else is computed by the layout's own functions. `predict` of a small real store's plan is compared
with that store in the tests.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from statevla.config import DataConfig
from statevla.data.slots import slots_of
from statevla.trainers.latents import ROWS_A_CHUNK, ROWS_A_SHARD
from stores.manifest import Manifest
from stores.numbers import frame_objects, frame_specs
from stores.reader import Store
from stores.schema import CHUNK, SEGMENT_FRAMES
from stores.sharded import ShardedSpec
from stores.shards import BLOCK, END
from stores.spec import LIBERO, ObsSpec

HEADERS: Final = 700
"""Bytes of a segment's JSON member; of arrays, the npy header."""
NPY: Final = 128
METADATA_BYTES: Final = 600
"""Of a Zarr array."""
SHARD_EPISODES: Final = 16
EPISODE_ROW: Final = 60.0
SEGMENT_ROW: Final = 330.0
"""Bytes of a row of episodes.parquet and of segments.parquet (member tables included), as our writers leave them."""
OPEN_ROW: Final = 142e6 / 1_000_000
"""Memory of an open store by segment, and (next) ready for its first batch: docs/benchmarks.md, By size."""
READY_ROW: Final = 184e6 / 1_000_000
FEATURES: Final = (196, 768)
LATENT: Final = 256


@dataclass(frozen=True)
class Plan:
    """How large a data set is. frames: of an episode. picture: encoded bytes of one, with q95 4:4:4 at 128 × 128."""

    episodes: int
    frames: float
    picture: float = 7_900.0
    window: int = SEGMENT_FRAMES
    chunk: int = CHUNK
    spec: ObsSpec = LIBERO
    episodes_a_shard: float = SHARD_EPISODES
    segment_row: float = SEGMENT_ROW
    episode_row: float = EPISODE_ROW


PLANS: Final = {
    "LIBERO-130": Plan(6_500, 170),
    "DROID": Plan(76_000, 250),
    "1M episodes": Plan(1_000_000, 300),
}
"""130 tasks of 50 demonstrations; 76,000 episodes; the round number that the design must not fear."""


def padded(size: float) -> float:
    """Of a member in a tar, header included."""
    return BLOCK + math.ceil(size / BLOCK) * BLOCK


def predict(plan: Plan) -> dict[str, float]:
    """What a store of `plan` takes. seconds: nothing here; rates are the machine's."""
    spec, cameras = plan.spec, len(plan.spec.camera_names)
    frames, steps = plan.episodes * plan.frames, plan.episodes * (plan.frames - 1)
    of_episode = math.ceil((plan.frames - 1) / plan.window)
    segments = plan.episodes * of_episode
    observed = steps + segments  # each segment holds one observation more than steps
    actions = steps + segments * (plan.chunk - 1)
    numbers = 4 * (observed * spec.robot_state_dim + actions * spec.action_dim) + actions
    # A member's data ends anywhere in its last block: half a block of padding each.
    members = observed * cameras * (BLOCK + plan.picture + BLOCK / 2)
    members += segments * (4 * (BLOCK + BLOCK / 2) + HEADERS + 3 * NPY) + numbers
    shards = math.ceil(plan.episodes / plan.episodes_a_shard)
    rows = round(frames)
    features = ShardedSpec((rows, *FEATURES), "float16", 1, 208)
    latents = ShardedSpec((rows, LATENT), "float32", ROWS_A_CHUNK, ROWS_A_SHARD)
    zarr = sum(array.chunks * array.chunk_bytes + METADATA_BYTES for array in frame_specs(rows, spec).values())
    pixels = 3 * sum(height * width for height, width in spec.image_sizes) or 2 * 3 * 128 * 128
    data = DataConfig()
    table = segments * plan.segment_row + plan.episodes * plan.episode_row
    return {
        "frames": frames,
        "segments": segments,
        "shards": shards,
        "shard_bytes": members + shards * len(END),
        "frames_zarr_bytes": zarr,
        "index_bytes": table,
        "objects": shards * 2 + len(frame_objects(rows, spec)) + 4,
        "bytes": members + zarr + table,
        "decoded_bytes": frames * pixels,
        "latents_bytes": sum(latents.shard_bytes(m) for m in (0,)) * latents.shards,
        "latents_objects": latents.shards,
        "features_bytes": cameras * frames * features.chunk_bytes,
        "features_objects": cameras * features.shards,
        "requests_to_open": 8.0,
        "requests_an_epoch": segments + shards,
        "request_bytes": members / segments,
        "ram_open": segments * OPEN_ROW,
        "ram_ready": segments * READY_ROW,
        "ram_blocks": slots_of(data.lanes * data.block_segments, 64) * (plan.window + 1) * pixels,
    }


def plan_of(store: Store) -> Plan:
    """The plan that a real store follows, its pictures' mean size from a segment of every shard."""
    counts, config = store.manifest.counts, store.manifest.config
    columns = store.segment_columns
    codes, names = columns.codes("shard")
    firsts = [int((codes == code).argmax()) for code in range(len(names))]
    sizes = [len(data) for i in firsts for pictures in store.read_segment(i).images.values() for data in pictures]
    objects = {item.path: item.bytes for item in store.manifest.objects}
    return Plan(
        counts["episodes"], counts["frames"] / counts["episodes"], sum(sizes) / len(sizes), int(config["window"]),
        int(config["chunk"]), store.spec, counts["episodes"] / len(names),
        objects["segments.parquet"] / counts["segments"], objects["episodes.parquet"] / counts["episodes"],
    )  # fmt: skip


def compare(store: Store) -> dict[str, dict[str, float]]:
    """What `predict` says of a real store, beside what it is."""
    manifest: Manifest = store.manifest
    said = predict(plan_of(store))
    objects = {item.path: item.bytes for item in manifest.objects}

    def below(folder: str) -> float:
        return float(sum(size for path, size in objects.items() if path.startswith(f"{folder}/")))

    true = {
        "frames": float(manifest.counts["frames"]), "segments": float(manifest.counts["segments"]),
        "shard_bytes": below("shards"), "frames_zarr_bytes": below("frames.zarr"),
        "bytes": float(sum(objects.values())),
    }  # fmt: skip
    return {name: {"predicted": said[name], "is": value} for name, value in true.items()}


def bench_scaling(store: Path | str | None = None) -> dict[str, Any]:
    """The table of `PLANS`; with a store, also one of its own, compared with what it is."""
    found: dict[str, Any] = {name: predict(plan) for name, plan in PLANS.items()}
    ratio = 1.0
    if store is not None:
        opened = Store.open(store)
        compared = compare(opened)
        found["store"] = {"plan": dataclasses.asdict(dataclasses.replace(plan_of(opened), spec=LIBERO)), **compared}
        found["store"]["plan"].pop("spec")
        ratio = compared["bytes"]["predicted"] / compared["bytes"]["is"]
    return {
        "name": "scaling",
        "unit": "bytes of a store of 1M episodes",
        "ours": found["1M episodes"]["bytes"],
        "limit": None,
        "ratio": ratio,
        "peers": {},
        "machine": "on paper",
        "details": found,
    }
