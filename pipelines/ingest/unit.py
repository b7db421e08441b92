"""The worker's part of an ingest: one unit of demonstrations becomes one shard and a record of what is in it.

A unit is idempotent: its shard is a function of its demonstrations, the settings and the formats (`FORMAT`,
`stores.schema.FORMATS`, the source's own), so it may be made twice, by any process, in any order. The worker writes the
shard; the record goes back to the driver, which alone writes it.

Legend: T observations of an episode, C cameras, H, W rows and columns, K chunk.
"""

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.ingest.plan import Unit, safe_name, stem_of
from pipelines.sources import pulse
from pipelines.sources.cameras import CameraWatch
from pipelines.sources.evidence import Told
from pipelines.sources.source import Episode, check_episode
from pipelines.sources.table import source_of
from statevla import __version__
from stores.disk import durable
from stores.disk.sync import Together, kernel
from stores.errors import SourceError
from stores.images import encode_image
from stores.layout import shard_path, staged_shard_path
from stores.schema import FORMATS
from stores.segments import SegmentMembers, Span, segment_key, segment_members, segment_spans
from stores.shards import write_shard
from stores.spec import ObsSpec

FORMAT: Final = 1
"""Raised by hand when the same episodes lead to another shard or record."""
READ_FRAMES: Final = 16
"""Frames read at once; LIBERO's compressed files have chunks of as many."""
LIBRARIES: Final = ("simplejpeg", "pillow", "numpy", "pyarrow", "h5py")
VIDEO: Final = "av"
"""The library of an extra: it decodes video, so it too is named where it is there."""


@dataclass(frozen=True)
class UnitSettings:
    """What a unit's bytes depend on besides its demonstrations.

    source: the format, by name. spec: the store's. facts: the source file's (`Verdict.facts`). heads: (task,
    instruction) by demonstration.
    """

    window: int
    chunk: int
    codec: str
    quality: int
    source: str
    spec: ObsSpec
    told: Told
    facts: dict[str, Any]
    heads: dict[str, tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**vars(self), "spec": self.spec.to_dict(), "told": self.told.to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "UnitSettings":
        """Inverse of `to_dict`."""
        heads = {demo: (task, instruction) for demo, (task, instruction) in fields["heads"].items()}
        spec, told = ObsSpec.from_dict(fields["spec"]), Told.from_dict(fields["told"])
        return cls(**{**fields, "spec": spec, "told": told, "heads": heads})


@dataclass(frozen=True)
class UnitTask:
    """One call of `make_unit`: the unit, the folder of its source, the store's folder, the settings.

    run: names the run of the driver, see `stores.layout.staged_shard_path`.
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


def formats(source: str) -> dict[str, int]:
    """Every format that decides the bytes of a store of that source."""
    return {**FORMATS, "unit": FORMAT, f"source {source}": source_of(source).format}


@cache
def writer() -> dict[str, str]:
    """Versions of this code and of the libraries that write: provenance, and the same in all processes of a run."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found[VIDEO] = importlib.metadata.version(VIDEO)
    return {"statevla": __version__, **found}


def unit_key(unit: Unit, settings: UnitSettings, fingerprints: Mapping[str, str]) -> str:
    """What the unit's bytes are a function of, as one hash: equal keys mean equal shards.

    fingerprints: of its demonstrations (`pipelines.sources.source.Opened.fingerprint`).
    """
    told = {"unit": asdict(unit), "settings": settings.to_dict(), "fingerprints": dict(fingerprints)}
    return hashlib.sha256(durable.json_bytes({**told, "formats": formats(settings.source)})).hexdigest()


def make_unit(task: UnitTask) -> dict[str, Any]:
    """Read, canonicalize, cut and encode the unit's demonstrations; write its shard where it is staged.

    Returns its record, JSON-ready: ``shard`` (path, bytes, sha256; None when no demonstration was usable),
    ``episodes``, each with its ``segments`` (`stores.shards.SegmentIndex` and steps), ``quarantined``
    (demo, reason), ``notes`` (demo, note: cameras that show nothing), ``fingerprints`` (by demonstration, but for those
    that are poison), ``writer``. Raises nothing for a bad demonstration.
    """
    unit, settings = task.unit, task.settings
    stem = safe_name(stem_of(unit.file))
    episodes: list[dict[str, Any]] = []
    notes: list[dict[str, str]] = []
    quarantined: list[dict[str, str]] = []
    fingerprints: dict[str, str] = {}

    def segments() -> Iterator[SegmentMembers]:
        with source_of(settings.source).open(task.file, settings.facts, settings.told) as opened:
            for position, demo in enumerate(unit.demos, 1):
                pulse.at(position)
                if position in task.poison:
                    reason = f"{unit.file}/{demo}: {task.poison[position]}"
                    quarantined.append({"demo": demo, "reason": reason})
                    continue
                try:
                    episode = opened.episode(demo)
                    check_episode(episode, settings.spec)
                    images, found = encode_episode(episode, settings)
                except SourceError as error:
                    quarantined.append({"demo": demo, "reason": str(error)})
                    continue
                finally:
                    fingerprints[demo] = opened.fingerprint(demo)
                notes.extend({"demo": demo, "note": note} for note in found)
                spans = segment_spans(len(episode.robot_state), len(episode.action), settings.window)
                row = episode_row(unit.file, episode, *settings.heads[demo])
                episodes.append({**row, "spans": [vars(span) for span in spans]})
                for number, span in enumerate(spans):
                    key = segment_key(stem, safe_name(demo), number)
                    yield pack(key, span, row, episode, images, settings)

    try:
        with Together() if task.kernel == kernel() else contextlib.nullcontext():
            index = write_shard(Path(task.out, staged_shard_path(unit.name, task.run)), segments())
    except SourceError as error:
        return refused_unit(unit, str(error))
    entries = iter(index.segments)
    for row in episodes:
        row["segments"] = [{**span, **vars(next(entries))} for span in row.pop("spans")]
    shard = {"path": shard_path(unit.name), "bytes": index.bytes, "sha256": index.sha256}
    return {
        "unit": unit.name,
        "writer": writer(),
        "shard": shard if episodes else None,
        "episodes": episodes,
        "quarantined": quarantined,
        "notes": notes,
        "fingerprints": fingerprints,
    }


def refused_unit(unit: Unit, reason: str) -> dict[str, Any]:
    """The record of a unit whose file cannot be read as a whole."""
    return {
        "unit": unit.name,
        "writer": writer(),
        "shard": None,
        "episodes": [],
        "quarantined": [{"demo": demo, "reason": reason} for demo in unit.demos],
        "notes": [],
        "fingerprints": {},
    }


def encode_episode(episode: Episode, settings: UnitSettings) -> tuple[dict[str, list[bytes]], list[str]]:
    """Camera -> encoded bytes of its T frames; and what is wrong with cameras (`CameraWatch`). A whole episode before
    any of it is written: a frame that cannot be read must not leave half an episode in the shard.

    Raises SourceError on unreadable frames.
    """
    encoded: dict[str, list[bytes]] = {camera: [] for camera in settings.spec.camera_names}
    moved = joints(episode.robot_state, settings.spec)
    watches = {camera: CameraWatch(camera, moved) for camera in encoded}
    total = len(episode.robot_state)
    # One camera at a time into the same memory, which stays in the processor's cache.
    buffers = {size: np.empty((READ_FRAMES, *size, 3), np.uint8) for size in set(episode.sizes)}
    for start in range(0, total, READ_FRAMES):
        pulse.beat()
        for (camera, images), size in zip(encoded.items(), episode.sizes, strict=True):
            read = episode.images(camera, start, min(start + READ_FRAMES, total), buffers[size])
            images += [encode_image(image, settings.codec, settings.quality) for image in read]
            watches[camera].see(read)
    found: list[str] = []
    for camera, watch in watches.items():

        def again(at: int, camera: str = camera) -> NDArray[np.uint8]:
            return next(iter(episode.images(camera, at, at + 1, None)))

        found += watch.findings(encoded[camera], again)
    return encoded, found


def joints(state: NDArray[np.float32], spec: ObsSpec) -> NDArray[np.float32]:
    """What of the robot states [T, R] are angles [rad], [T, J]; where nothing is, one column that stands still."""
    angles = [spec.state_slice_of(field.name) for field in spec.robot_state if field.unit == "rad"]
    return np.concatenate([state[:, place] for place in angles] or [np.zeros((len(state), 1), np.float32)], axis=1)


def sample_sizes(path: Path, demo: str, settings: UnitSettings, frames: int) -> list[int]:
    """Bytes of some `frames` encoded frames of a demonstration, all cameras of a frame together. Raises SourceError."""
    sizes = []
    with source_of(settings.source).open(path, settings.facts, settings.told) as opened:
        episode = opened.episode(demo)
        rows = len(episode.robot_state)
        for start in range(0, rows, max(1, rows // frames)):
            pulse.beat()
            pictures = [episode.images(camera, start, start + 1, None)[0] for camera in settings.spec.camera_names]
            sizes.append(sum(len(encode_image(image, settings.codec, settings.quality)) for image in pictures))
    return sizes


def episode_row(file: str, episode: Episode, task: str, instruction: str) -> dict[str, Any]:
    """The fields of an episode that do not depend on other units."""
    return {
        "id": f"{stem_of(file)}/{episode.demo}",
        "task": task,
        "instruction": instruction,
        "frames": len(episode.robot_state),
        "steps": len(episode.action),
        "source": file,
        "demo": episode.demo,
        "alignment": episode.alignment,
        "init_state": episode.init_state,
        "made_by": episode.made_by,
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
