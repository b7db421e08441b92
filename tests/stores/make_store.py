"""A tiny but complete store of random episodes, built with the store's own writers: for tests of whatever reads stores.

Legend: F frames and S steps of an episode, H side of the square images.
"""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stores import schema
from stores import statistics as norm
from stores.cloud.storage import Storage, open_storage
from stores.images import encode_image
from stores.language import LanguageRow, write_language
from stores.layout import EPISODES_FILE, LANGUAGE_FILE, SEGMENTS_FILE
from stores.manifest import Manifest, hash_objects, read_manifest
from stores.numbers import frame_objects, frames_writer
from stores.segments import SegmentMembers, segment_key, segment_members, segment_spans
from stores.shards import SegmentIndex, write_shard
from stores.spec import LIBERO, ObsSpec, libero_spec
from stores.tables import write_table

SOURCES = ("put_the_red_block_in_the_bin_demo", "put_the_blue_block_on_the_plate_demo")


@dataclass(frozen=True)
class MadeEpisode:
    """What went into the store: images uint8 [F, C, H, H, 3], robot_state [F, 9], action [S, 7] float32."""

    source: str
    demo: str
    split: str
    images: NDArray[np.uint8]
    robot_state: NDArray[np.float32]
    action: NDArray[np.float32]

    @property
    def task(self) -> str:
        return self.source.removesuffix("_demo")

    @property
    def instruction(self) -> str:
        return self.task.replace("_", " ")


def make_episodes(episodes: int, frames: int, image: int, seed: int) -> list[MadeEpisode]:
    """`episodes` smooth random episodes of `frames` frames, give or take; every second one lacks its last action."""
    made = []
    for e in range(episodes):
        rng = np.random.default_rng([seed, e])
        count = frames + e % 3
        steps = count - e % 2
        gradient = np.linspace(0, 150, image)[:, None, None] + np.linspace(0, 50, image)[None, :, None]
        tint = rng.integers(0, 40, (count, len(LIBERO.cameras), 1, 1, 3))
        state = np.cumsum(rng.normal(0, 0.02, (count, LIBERO.robot_state_dim)), axis=0).astype(np.float32)
        action = rng.uniform(-1, 1, (steps, LIBERO.action_dim)).astype(np.float32)
        action[:, 6] = np.where(np.arange(steps) < steps // 2, -1, 1)
        split = "val" if e % 4 == 3 else "train"
        images = (gradient + tint).astype(np.uint8)
        made.append(MadeEpisode(SOURCES[e * 2 // episodes], f"demo_{e}", split, images, state, action))
    return made


def write_frames(root: Path, fields: Mapping[str, NDArray[Any]], spec: ObsSpec) -> list[str]:
    """``frames.zarr`` of all frames at once; returns the paths below `root` of its objects."""
    with frames_writer(root, len(fields["index"]), spec) as writer:
        writer.add(fields)
    return frame_objects(len(fields["index"]), spec)


def make_tiny_store(
    path: Path | str,
    episodes: int = 4,
    frames: int = 40,
    image: int = 32,
    *,
    window: int = schema.SEGMENT_FRAMES,
    chunk: int = schema.CHUNK,
    codec: str = "jpeg",
    seed: int = 0,
    stats: bool = True,
) -> list[MadeEpisode]:
    """Write a store at `path` and return what went in. One shard a source; with train statistics unless told not to."""
    path = Path(path)
    made = make_episodes(episodes, frames, image, seed)
    indexes: dict[str, list[SegmentIndex]] = {}
    for source in dict.fromkeys(episode.source for episode in made):
        members = [m for e in made if e.source == source for m in _members(e, window, chunk, codec)]
        indexes[source] = write_shard(path / f"shards/{source}-000.tar", members).segments
    write_table(path / EPISODES_FILE, _episode_rows(made, window), schema.EPISODES)
    write_table(path / SEGMENTS_FILE, _segment_rows(made, window, indexes), schema.SEGMENTS)
    write_language(path / LANGUAGE_FILE, _language(made))
    frames_written = write_frames(path, _frames(made), LIBERO)
    paths = [EPISODES_FILE, SEGMENTS_FILE, LANGUAGE_FILE, *frames_written, *(f"shards/{s}-000.tar" for s in indexes)]
    objects = tuple(hash_objects(path, paths))
    manifest = Manifest(
        suite="tiny",
        obs_spec=libero_spec(image).to_dict(),
        config={
            "window": window,
            "chunk": chunk,
            "codec": codec,
            "quality": 95,
            "split_seed": seed,
            "train_split": 0.75,
            "alignment": "auto",
            "language": {"encoder": "random", "revision": "test"},
        },
        provenance={"code_version": "test", "formats": {}, "libraries": {}},
        sources=tuple(
            {
                "file": f"{s}.hdf5",
                "sha256": "0" * 64,
                "bytes": 0,
                "alignment": "after",
                "episodes": 1,
                "made_by": {"by hand": 1},
            }
            for s in indexes
        ),
        counts={
            "episodes": len(made),
            "frames": sum(len(e.images) for e in made),
            "steps": sum(len(e.action) for e in made),
            "segments": sum(len(index) for index in indexes.values()),
            "bytes": sum(item.bytes for item in objects),
            "quarantined": 0,
        },
        instructions=tuple(sorted({e.instruction for e in made})),
        splits={split: sum(e.split == split for e in made) for split in ("train", "val")},
        objects=objects,
    )
    manifest.save(path)
    if stats:
        norm.save_stats(path, manifest.content_hash, train_statistics(made))
    return made


def train_statistics(made: Sequence[MadeEpisode]) -> norm.Normalization:
    """Statistics of the train episodes."""
    fields = {}
    for name in norm.FIELDS:
        rows = [getattr(e, name) for e in made if e.split == "train"]
        tails = norm.Tails(sum(map(len, rows)), rows[0].shape[1])
        for values in rows:
            tails.add(values)
        fields[name] = norm.Statistics.of(merged([norm.Moments.of(r) for r in rows]), tails.quantiles())
    return norm.Normalization(**fields)


def merged(moments: list[norm.Moments]) -> norm.Moments:
    """The sum, from left to right."""
    total = moments[0]
    for more in moments[1:]:
        total = total + more
    return total


def _members(episode: MadeEpisode, window: int, chunk: int, codec: str) -> list[SegmentMembers]:
    segments = []
    for i, span in enumerate(segment_spans(len(episode.images), len(episode.action), window)):
        shown = episode.images[span.first_step : span.first_step + span.observations]
        images = {
            camera: [encode_image(frame[c], codec) for frame in shown] for c, camera in enumerate(LIBERO.camera_names)
        }
        meta = {
            "episode": f"{episode.source}/{episode.demo}",
            "instruction": episode.instruction,
            "source": f"{episode.source}.hdf5",
            "demo": episode.demo,
        }
        key = segment_key(episode.source, episode.demo, i)
        segments.append(segment_members(key, span, meta, episode.robot_state, episode.action, images, chunk, codec))
    return segments


def _episode_rows(made: list[MadeEpisode], window: int) -> list[dict[str, object]]:
    rows, frame, segment = [], 0, 0
    for e, episode in enumerate(made):
        spans = segment_spans(len(episode.images), len(episode.action), window)
        rows.append(
            {
                "episode": e,
                "id": f"{episode.source}/{episode.demo}",
                "task": episode.task,
                "instruction": episode.instruction,
                "split": episode.split,
                "frames": len(episode.images),
                "steps": len(episode.action),
                "first_frame": frame,
                "first_segment": segment,
                "segments": len(spans),
                "source": f"{episode.source}.hdf5",
                "demo": episode.demo,
                "alignment": "before" if len(episode.images) == len(episode.action) else "after",
                "unit": f"{episode.source}-000",
            }
        )
        frame, segment = frame + len(episode.images), segment + len(spans)
    return rows


def _segment_rows(
    made: list[MadeEpisode], window: int, indexes: dict[str, list[SegmentIndex]]
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    remaining = {source: iter(index) for source, index in indexes.items()}
    for e, episode in enumerate(made):
        for span in segment_spans(len(episode.images), len(episode.action), window):
            entry = next(remaining[episode.source])
            rows.append(
                {
                    "segment": len(rows),
                    "episode": e,
                    "key": entry.key,
                    "shard": f"shards/{episode.source}-000.tar",
                    "offset": entry.offset,
                    "size": entry.size,
                    "crc32": entry.crc32,
                    "first_step": span.first_step,
                    "steps": span.steps,
                    "observations": span.observations,
                    "member_offset": list(entry.member_offset),
                    "member_size": list(entry.member_size),
                    "member_name": list(entry.member_name),
                }
            )
    return rows


def _language(made: list[MadeEpisode]) -> list[LanguageRow]:
    rows = []
    for text in sorted({e.instruction for e in made}):
        vector = np.random.default_rng(zlib.crc32(text.encode())).normal(size=LIBERO.language_width)
        unit = (vector / np.linalg.norm(vector)).astype(np.float32)
        rows.append(LanguageRow(text, "random", "test", unit))
    return rows


def _frames(made: list[MadeEpisode]) -> dict[str, NDArray[np.generic]]:
    action = [np.full((len(e.images), LIBERO.action_dim), np.nan, np.float32) for e in made]
    for rows, episode in zip(action, made, strict=True):
        rows[: len(episode.action)] = episode.action
    return {
        "robot_state": np.concatenate([e.robot_state for e in made]),
        "action": np.concatenate(action),
        "episode": np.concatenate([np.full(len(e.images), i, np.int64) for i, e in enumerate(made)]),
        "index": np.concatenate([np.arange(len(e.images), dtype=np.int64) for e in made]),
    }


def manifest_hash(root: Path | str | Storage) -> str:
    """sha256 (hex) of manifest.json: what `stores.cloud.publish` knows a publication by."""
    return hashlib.sha256(read_manifest(open_storage(root))).hexdigest()


def sealed_text(fields: dict[str, str]) -> bytes:
    """Of fields that are JSON already; the seal is right, whatever they are."""
    lines = [f' "{name}": {text}' for name, text in sorted(fields.items())]
    digest = hashlib.sha256(("{\n" + ",\n".join(lines) + "\n}\n").encode()).hexdigest()
    return ("{\n" + ",\n".join([*lines, f' "sha256": "{digest}"']) + "\n}\n").encode()
