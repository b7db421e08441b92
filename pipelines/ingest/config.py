"""What an ingest is asked to do, and what it will do: configuration, source headers, units, predicted size.

Reads headers, and for a prediction some frames; writes nothing.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from pipelines.ingest.entries import find_sources, other_entries, require_targets
from pipelines.ingest.plan import NAME_LIMIT, Unit, plan_units, require_fitting, stem_of
from pipelines.ingest.unit import UnitSettings
from pipelines.sources.alignment import DETECT
from pipelines.sources.evidence import OPENGL, Told, gathered
from pipelines.sources.fields import Fields
from pipelines.sources.masks import ASK
from pipelines.sources.reading import inspect_source, recognize_sources, sample_source
from pipelines.sources.source import SourceFile
from pipelines.sources.table import SOURCES, source_of
from pipelines.sources.unchanged import Stats, file_stats
from statevla.encoders.text import TextEncoder
from stores.errors import SourceError, UsageError
from stores.images import JPEG_QUALITY
from stores.printable import plain
from stores.schema import CHUNK, IMAGE_CODECS, SEGMENT_FRAMES
from stores.spec import ObsSpec

SAMPLE_FILES: Final = 4
SAMPLE_FRAMES: Final = 8
SEGMENT_OVERHEAD: Final = 4096
"""Bytes of a segment's small members with their tar headers, about: JSON, three arrays."""
TAR_MEMBER: Final = 768
"""Header and mean padding of one tar member."""


@dataclass(frozen=True)
class IngestConfig:
    """What a store is made of. Equal configurations and sources give equal bytes; `source` and `out` do not matter.

    language_model: weights' name or folder, None for the encoder's default. alignment, gripper, image_convention,
    masks: what is known of files that do not tell (`pipelines.sources.evidence.Told`). format: a name of
    `pipelines.sources.table.SOURCES`; None: that of the suite's name, or what the files look like. spec: what they
    hold, where the format does not know; every demonstration must fit it. fields: which of their entries that is, for
    formats that take it. hash_sources: record the sha256 of every source file too (a full read of
    each, and slower than the rest of a rerun); what is reused does not depend on it.
    """

    suite: str
    source: Path
    out: Path
    window: int = SEGMENT_FRAMES
    chunk: int = CHUNK
    codec: str = "jpeg"
    quality: int = JPEG_QUALITY
    split_seed: int = 0
    train_split: float = 0.9
    language: str = "clip"
    language_model: str | None = None
    alignment: str = DETECT
    gripper: str = DETECT
    image_convention: str = DETECT
    masks: str = ASK
    format: str | None = None
    spec: ObsSpec | None = None
    fields: Fields | None = None
    hash_sources: bool = False

    def __post_init__(self) -> None:
        if self.suite in ("", ".", "..") or "/" in self.suite or "\0" in self.suite:
            raise UsageError(f"suite {self.suite!r}: expected a name, without '/'; folders are --source and --out")
        if min(self.window, self.chunk) < 1 or self.window > 99:
            raise UsageError(
                f"window and chunk: expected 1 or more, window at most 99, got {self.window}, {self.chunk}"
            )
        if self.codec not in IMAGE_CODECS:
            raise UsageError(f"codec {self.codec!r}: expected one of {', '.join(IMAGE_CODECS)}")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"quality: expected 1 to 100, got {self.quality}")
        if not 0.0 < self.train_split <= 1.0:
            raise UsageError(f"train_split: expected a number above 0 and at most 1, got {self.train_split}")
        _ = self.told
        if self.format is not None:
            source_of(self.format)

    @property
    def told(self) -> Told:
        """What is known of files that do not tell. Raises UsageError on what is no choice."""
        return Told(self.alignment, self.gripper, self.image_convention, self.masks, self.spec, self.fields)

    def recorded(self, encoder: TextEncoder) -> dict[str, Any]:
        """The part that the manifest keeps and identity covers: what bears on data."""
        names = ("window", "chunk", "codec", "quality", "split_seed", "train_split", "alignment", "gripper",
                 "image_convention", "masks")  # fmt: skip
        language = {"encoder": encoder.id, "revision": encoder.revision}
        return {**{name: getattr(self, name) for name in names}, "language": language}


@dataclass(frozen=True)
class IngestPlan:
    """What an ingest will do. source: the files' format. spec: the store's. refused: (file, demo, reason) known before
    any unit runs; frames: of all units' demos. facts: how each file of the units is read. said: (file, text), what
    of that was assumed or converted; `notes` has it too.
    """

    source: str
    spec: ObsSpec
    files: dict[str, SourceFile]
    paths: tuple[Path, ...]
    units: tuple[Unit, ...]
    frames: int
    refused: tuple[dict[str, str], ...]
    notes: tuple[str, ...]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: tuple[tuple[str, str], ...] = ()
    stats: Stats = ()

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.paths[0].parent

    def settings(self, unit: Unit, config: IngestConfig) -> UnitSettings:
        """Settings of one unit."""
        header = self.files[unit.file]
        heads = {demo: (header.episodes[demo].task, header.episodes[demo].instruction) for demo in unit.demos}
        return UnitSettings(
            config.window, config.chunk, config.codec, config.quality, self.source, self.spec, config.told,
            self.facts[unit.file], heads,
        )  # fmt: skip

    def unit_frames(self, unit: Unit) -> int:
        """Frames that the unit's demonstrations declare."""
        return sum(self.files[unit.file].episodes[demo].rows for demo in unit.demos)


def _require_as_stored(told: Told, name: str) -> None:
    """Raise UsageError where pictures of a format that keeps them are said to be the other way round."""
    if told.image_convention == OPENGL:
        raise UsageError(
            f"--image-convention {OPENGL}: of format {name} pictures are kept as they are, upright, and nothing turns "
            "them round; do that in the dataset, and leave --image-convention out"
        )


def listed(config: IngestConfig) -> tuple[tuple[Path, ...], list[str]]:
    """Files of the source, and the names of the formats that they may be of. Raises UsageError where there are none."""
    told = config.format or (config.suite if config.suite in SOURCES else None)
    return find_sources(config.source, config.suite, [told] if told else list(SOURCES))


def plan_ingest(config: IngestConfig, isolated: bool = True) -> IngestPlan:
    """List the source, read every file's header (in a child process, when isolated), cut units. Writes nothing.

    Raises UsageError when there is no source, SourceError when none of its files is usable.
    """
    paths, names = listed(config)
    require_targets(paths)
    stats = file_stats(paths, names[0])  # before anything of them is read
    fitting = [name for name in names if paths[0].suffix.lower() in source_of(name).suffixes] or names
    if config.fields is not None:  # said of names: where none recognizes a file, one of these is meant
        fitting.sort(key=lambda name: not getattr(source_of(name), "takes_fields", False))
    name = fitting[0] if len(fitting) == 1 else recognize_sources(paths, fitting, isolated)
    source = source_of(name)
    if config.fields is not None and not getattr(source, "takes_fields", False):
        raise UsageError(
            f"--spec: files of format {name} say which entries are which; expected an obs_spec as it is in a manifest"
        )
    if getattr(source, "as_stored", False):
        _require_as_stored(config.told, name)
    refused, beside = other_entries(config.source, paths, source.suffixes)
    inspected: dict[str, SourceFile] = {}
    for path in paths:
        try:
            require_fitting(stem_of(path.name), NAME_LIMIT)
            inspected[path.name] = inspect_source(path, name, config.told, isolated, len(paths))
        except SourceError as error:
            refused.append({"file": written(path.name), "demo": "", "reason": str(error)})
            continue
        refused += [{"file": path.name, "demo": demo, "reason": why} for demo, why in inspected[path.name].refused]
    verdict = source.weigh({file: header for file, header in inspected.items() if header.episodes}, config.told)
    refused += [{"file": file, "demo": "", "reason": why} for file, why in verdict.refused.items()]
    files = {file: header for file, header in inspected.items() if file not in verdict.refused}
    # What most demonstrations are is the store's spec; the first in order where two are equally common.
    specs = Counter((header.spec, head.sizes) for header in files.values() for head in header.episodes.values())
    if not specs:
        raise SourceError(f"{config.source}: no usable demonstration in {len(paths)} files: {reasons(refused)}")
    spec, sizes = specs.most_common(1)[0][0]
    for file, header in files.items():
        if header.episodes and (why := _otherwise(header.spec, spec)):
            refused.append({"file": file, "demo": "", "reason": f"{file}: {why}"})
    files = {file: header for file, header in files.items() if not _otherwise(header.spec, spec)}
    return IngestPlan(
        source=name,
        spec=spec.sized(sizes) if config.spec is None else config.spec,
        files=files,
        paths=paths,
        units=plan_units({file: tuple(header.episodes) for file, header in files.items() if header.episodes}),
        frames=sum(head.rows for header in files.values() for head in header.episodes.values()),
        refused=tuple(refused),
        notes=(*beside, *(note for header in files.values() for note in header.notes), *gathered(verdict.notes)),
        facts=verdict.facts,
        said=verdict.notes,
        stats=stats,
    )


def _otherwise(spec: ObsSpec, store: ObsSpec) -> str | None:
    """What a frame of a file is that is none of the `store`'s, in words; sizes of pictures are each demonstration's.

    Numbers of another meaning may have the same width: seven joints, or a hand's position and quaternion.
    """
    for place, theirs, ours in spec.differences(store):
        if not re.fullmatch(r"cameras\[\d+\]\.(height|width)", place):
            return (
                f"{place}: {theirs!r:.200}, in most demonstrations of this source {ours!r:.200}: one store holds one "
                "kind of frame; ingest it into a store of its own, or say with --spec what all files have"
            )
    return None


def written(name: str) -> str:
    """A file's or a demonstration's name as JSON, Parquet and a terminal can hold it."""
    return plain(os.fsencode(name).decode(errors="backslashreplace"))


def reasons(refused: Sequence[dict[str, str]], limit: int = 5) -> str:
    """The first reasons, for an error's text."""
    shown = "; ".join(row["reason"] for row in refused[:limit])
    return shown + (f"; and {len(refused) - limit} more" if len(refused) > limit else "")


@dataclass(frozen=True)
class IngestPreview:
    """What ``--dry-run`` shows. bytes: predicted from a sample of encoded frames, all objects. quarantined: what the
    headers alone rule out; `quarantine` has the reasons.
    """

    episodes: int
    frames: int
    bytes: int
    quarantined: int
    store: str
    files: int
    units: int
    format: str
    obs_spec: dict[str, Any]
    quarantine: tuple[dict[str, str], ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def preview_ingest(config: IngestConfig) -> IngestPreview:
    """Plan `config` and predict the store's size; writes nothing. Raises as `plan_ingest` does."""
    plan = plan_ingest(config)
    return IngestPreview(
        episodes=sum(len(unit.demos) for unit in plan.units),
        frames=plan.frames,
        bytes=predict_bytes(plan, config),
        quarantined=len(plan.refused),
        store=str(config.out),
        files=len(plan.paths),
        units=len(plan.units),
        format=plan.source,
        obs_spec=plan.spec.to_dict(),
        quarantine=plan.refused,
        notes=plan.notes,
    )


def predict_bytes(plan: IngestPlan, config: IngestConfig) -> int:
    """Frames times the mean size of some encoded frames, with the tar's overhead and the repeated observations."""
    sizes: list[int] = []
    step = max(1, len(plan.units) // SAMPLE_FILES)
    for unit in plan.units[::step]:
        settings = plan.settings(unit, config)
        try:
            sizes += sample_source(plan.folder / unit.file, unit.demos[0], settings, SAMPLE_FRAMES)
        except SourceError:
            continue  # ingest will quarantine it; the others tell the size
    if not sizes:
        raise SourceError(f"{config.source}: no frame of the first demonstrations could be read to predict a size")
    frame = sum(sizes) / len(sizes) + len(plan.spec.cameras) * TAR_MEMBER
    return round(plan.frames * (frame * (1 + 1 / config.window) + SEGMENT_OVERHEAD / config.window))
