"""The worker's part of an ingest: one unit of demonstrations becomes one shard and a record of what is in it.

A unit is idempotent: its shard is a function of its demonstrations' bytes, the settings and the code, so it may be made
twice, by any process, in any order. The worker writes the shard; the record goes back to the driver, which alone
writes it.

Legend: T observations of an episode, C cameras, H, W rows and columns, K chunk.
"""

import contextlib
import hashlib
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

import pipelines.ingest.plan
import pipelines.sources.alignment
import pipelines.sources.cameras
import pipelines.sources.fingerprint
import pipelines.sources.gripper
import pipelines.sources.hdf5
import pipelines.sources.libero
import pipelines.sources.rows
import statevla.observation
import stores.images
import stores.npy
import stores.schema
import stores.segments
import stores.shards
from pipelines.ingest.plan import Unit, safe_name, stem_of, task_of
from pipelines.sources import pulse
from pipelines.sources.cameras import CameraWatch
from pipelines.sources.fingerprint import Seen, Stored, fingerprint_demo
from pipelines.sources.gripper import Reading
from pipelines.sources.hdf5 import open_hdf5
from pipelines.sources.libero import Episode, read_demo
from statevla.observation import JOINTS
from stores.disk import durable
from stores.disk.sync import Together, kernel
from stores.errors import SourceError
from stores.images import encode_image
from stores.schema import CAMERAS
from stores.segments import SegmentMembers, Span, segment_key, segment_members, segment_spans
from stores.shards import write_shard

READ_FRAMES: Final = 16
"""Frames read at once; LIBERO's compressed files have chunks of as many."""

DECIDING_MODULES: Final = (
    pipelines.sources.alignment,
    pipelines.sources.cameras,
    pipelines.sources.fingerprint,
    pipelines.sources.gripper,
    pipelines.sources.hdf5,
    pipelines.sources.libero,
    pipelines.ingest.plan,
    pipelines.sources.rows,
    statevla.observation,
    stores.images,
    stores.npy,
    stores.schema,
    stores.segments,
    stores.shards,
    sys.modules[__name__],
)
"""The modules that decide a unit's bytes."""


@dataclass(frozen=True)
class UnitSettings:
    """What a unit's bytes depend on besides its source: the store's configuration and what the file's header said."""

    window: int
    chunk: int
    codec: str
    quality: int
    alignment: str
    image_size: tuple[int, int]
    instruction: str
    convention: str
    gripper: Reading | None = None


@dataclass(frozen=True)
class UnitTask:
    """One call of `make_unit`: the unit, the folder of its source, the store's folder, the settings.

    run: names the run of the driver, see `staged_path`.
    kernel: the driver's (`sync.kernel`). Under the same one the driver makes shards durable, many at once; under
    another the shard's content is durable when the call returns.
    poison: reasons by position (from 1) of demonstrations that must not be touched, see `pipelines.sources.sandbox`.
    """

    unit: Unit
    source: str
    out: str
    settings: UnitSettings
    run: str
    kernel: str
    poison: Mapping[int, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """The source file."""
        return Path(self.source, self.unit.file)


@cache
def unit_code_version() -> str:
    """Hash of the code that decides a unit's bytes, and the versions of the image libraries."""
    digest = hashlib.sha256()
    for module in DECIDING_MODULES:
        digest.update(module.__name__.encode() + b"\0" + Path(str(module.__file__)).read_bytes() + b"\0")
    libraries = " ".join(f"{name}-{importlib.metadata.version(name)}" for name in ("simplejpeg", "pillow"))
    return f"unit-{digest.hexdigest()[:16]} {libraries}"


def unit_key(unit: Unit, settings: UnitSettings, fingerprints: Mapping[str, str]) -> str:
    """What the unit's bytes are a function of, as one hash: equal keys mean equal shards.

    fingerprints: of its demonstrations (`pipelines.sources.fingerprint`).
    """
    parts = [asdict(unit), asdict(settings), sorted(fingerprints.items()), unit_code_version()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def shard_path(unit: str) -> str:
    """Path of the unit's shard below the store."""
    return f"shards/{unit}.tar"


def staged_path(unit: str, run: str) -> str:
    """Where a worker leaves the unit's shard below the store; the driver gives it its name.

    A worker that outlives its driver so never replaces a shard of a later run: nobody takes what it leaves, and the
    name is that of a temporary, which no reader sees and the next writer removes.
    """
    return f"shards/{durable.TEMP_PREFIX}{run}-{unit}.tar"


def make_unit(task: UnitTask) -> dict[str, Any]:
    """Read, canonicalize, cut and encode the unit's demonstrations; write its shard at its `staged_path`.

    Returns its record, JSON-ready: ``shard`` (path, bytes, sha256; None when no demonstration was usable),
    ``episodes``, each with its ``segments`` (`stores.shards.SegmentIndex` and steps), ``quarantined``
    (demo, reason), ``notes`` (demo, note: cameras that show nothing), ``fingerprints`` (by demonstration, but for those
    that are poison). Raises nothing for a bad demonstration.
    """
    unit, settings = task.unit, task.settings
    stem = safe_name(stem_of(unit.file))
    episodes: list[dict[str, Any]] = []
    notes: list[dict[str, str]] = []
    quarantined: list[dict[str, str]] = []
    fingerprints: dict[str, str] = {}

    def segments() -> Iterator[SegmentMembers]:
        with open_hdf5(task.file) as file, Stored(task.file) as stored:
            for position, demo in enumerate(unit.demos, 1):
                pulse.at(position)
                if position in task.poison:
                    reason = f"{unit.file}/{demo}: {task.poison[position]}"
                    quarantined.append({"demo": demo, "reason": reason})
                    continue
                seen = Seen()
                try:
                    episode = read_demo(file, demo, settings.convention, settings.alignment, seen, settings.gripper)
                    images, found = encode_episode(episode, settings)
                except SourceError as error:
                    quarantined.append({"demo": demo, "reason": str(error)})
                    continue
                finally:
                    fingerprints[demo] = fingerprint_demo(file, demo, stored, seen)
                notes.extend({"demo": demo, "note": note} for note in found)
                spans = segment_spans(len(episode.robot_state), len(episode.action), settings.window)
                row = episode_row(unit.file, episode, settings.instruction)
                episodes.append({**row, "spans": [vars(span) for span in spans]})
                for number, span in enumerate(spans):
                    key = segment_key(stem, safe_name(demo), number)
                    yield pack(key, span, row, episode, images, settings)

    path = shard_path(unit.name)
    try:
        with Together() if task.kernel == kernel() else contextlib.nullcontext():
            index = write_shard(Path(task.out, staged_path(unit.name, task.run)), segments())
    except SourceError as error:
        return refused_unit(unit, str(error))
    entries = iter(index.segments)
    for row in episodes:
        row["segments"] = [{**span, **vars(next(entries))} for span in row.pop("spans")]
    return {
        "unit": unit.name,
        "code_version": unit_code_version(),
        "shard": {"path": path, "bytes": index.bytes, "sha256": index.sha256} if episodes else None,
        "episodes": episodes,
        "quarantined": quarantined,
        "notes": notes,
        "fingerprints": fingerprints,
    }


def refused_unit(unit: Unit, reason: str) -> dict[str, Any]:
    """The record of a unit whose file cannot be read as a whole."""
    return {
        "unit": unit.name,
        "code_version": unit_code_version(),
        "shard": None,
        "episodes": [],
        "quarantined": [{"demo": demo, "reason": reason} for demo in unit.demos],
        "notes": [],
        "fingerprints": {},
    }


def encode_episode(episode: Episode, settings: UnitSettings) -> tuple[dict[str, list[bytes]], list[str]]:
    """Camera -> encoded bytes of its T frames; and what is wrong with cameras (`CameraWatch`). A whole episode before
    any of it is written: a frame that cannot be read must not leave half an episode in the shard.

    Raises SourceError on unreadable frames and on an image size that is not the store's.
    """
    if episode.image_size != settings.image_size:
        raise SourceError(
            f"{episode.demo}: images of {episode.image_size}, the store has {settings.image_size} (height, width): "
            "one store holds one image size; ingest the others into a store of their own"
        )
    encoded: dict[str, list[bytes]] = {camera: [] for camera in CAMERAS}
    watches = {camera: CameraWatch(camera, episode.robot_state[:, :JOINTS]) for camera in CAMERAS}
    total = len(episode.robot_state)
    # One camera at a time into the same memory, which stays in the processor's cache.
    buffer = np.empty((READ_FRAMES, *episode.image_size, 3), np.uint8)
    for start in range(0, total, READ_FRAMES):
        pulse.beat()
        for camera, images in encoded.items():
            read = episode.images(camera, start, min(start + READ_FRAMES, total), buffer)
            watches[camera].add(read)
            images += [encode_image(image, settings.codec, settings.quality) for image in read]
    return encoded, [finding for watch in watches.values() for finding in watch.findings()]


def episode_row(file: str, episode: Episode, instruction: str) -> dict[str, Any]:
    """The fields of an episode that do not depend on other units."""
    return {
        "id": f"{stem_of(file)}/{episode.demo}",
        "task": task_of(file),
        "instruction": instruction,
        "frames": len(episode.robot_state),
        "steps": len(episode.action),
        "source": file,
        "demo": episode.demo,
        "alignment": episode.alignment,
        "init_state": episode.init_state,
        "content": episode_hash(episode),
    }


def episode_hash(episode: Episode) -> str:
    """Of its numbers, as they are in the store: equal in copies, however the file holds them."""
    digest = xxhash.xxh3_128(np.ascontiguousarray(episode.robot_state).data)
    digest.update(np.ascontiguousarray(episode.action).data)
    return digest.hexdigest()


def pack(
    key: str, span: Span, row: dict[str, Any], episode: Episode, images: dict[str, list[bytes]], settings: UnitSettings
) -> SegmentMembers:
    """One segment of `episode` as the members of a WebDataset sample."""
    meta = {"episode" if name == "id" else name: row[name] for name in ("id", "instruction", "source", "demo")}
    stop = span.first_step + span.observations
    cut = {camera: encoded[span.first_step : stop] for camera, encoded in images.items()}
    return segment_members(
        key, span, meta, episode.robot_state, episode.action, cut, settings.chunk, settings.codec
    )  # fmt: skip
