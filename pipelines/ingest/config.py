"""What an ingest is asked to do, and what it will do: configuration, source headers, units, predicted size.

Reads headers, and for a prediction some frames; writes nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from pipelines.ingest.entries import other_entries
from pipelines.ingest.plan import Unit, list_sources, plan_units
from pipelines.ingest.unit import UnitSettings
from pipelines.sources.alignment import DETECT
from pipelines.sources.evidence import Facts, Told, gathered, weigh
from pipelines.sources.hdf5 import open_hdf5
from pipelines.sources.libero import SourceFile, read_demo
from pipelines.sources.masks import ASK
from pipelines.sources.reading import inspect_source
from statevla.encoders.text import TextEncoder
from stores.errors import SourceError, UsageError
from stores.images import JPEG_QUALITY, encode_image
from stores.schema import CAMERAS, CHUNK, IMAGE_CODECS, SEGMENT_FRAMES

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
    masks: what is known of files that do not tell (`pipelines.sources.evidence.Told`). hash_sources: record the sha256
    of every source file too (a full read of each, and slower than the rest of a rerun); what is reused does not depend
    on it.
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
    hash_sources: bool = False

    def __post_init__(self) -> None:
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

    @property
    def told(self) -> Told:
        """What is known of files that do not tell. Raises UsageError on what is no choice."""
        return Told(self.alignment, self.gripper, self.image_convention, self.masks)

    def recorded(self, encoder: TextEncoder) -> dict[str, Any]:
        """The part that the manifest keeps."""
        names = ("window", "chunk", "codec", "quality", "split_seed", "train_split", "alignment", "gripper",
                 "image_convention", "masks")  # fmt: skip
        language = {"encoder": encoder.id, "revision": encoder.revision}
        return {**{name: getattr(self, name) for name in names}, "language": language}


@dataclass(frozen=True)
class IngestPlan:
    """What an ingest will do. refused: (file, demo, reason) known before any unit runs; frames: of all units' demos.
    facts: how each file of the units is read.
    """

    files: dict[str, SourceFile]
    paths: tuple[Path, ...]
    units: tuple[Unit, ...]
    image_size: tuple[int, int]
    frames: int
    refused: tuple[dict[str, str], ...]
    notes: tuple[str, ...]
    facts: dict[str, Facts] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.paths[0].parent

    def settings(self, unit: Unit, config: IngestConfig) -> UnitSettings:
        """Settings of one unit."""
        header = self.files[unit.file]
        return UnitSettings(
            config.window, config.chunk, config.codec, config.quality, config.alignment, self.image_size,
            header.instruction, self.facts[unit.file].convention, self.facts[unit.file].gripper,
        )  # fmt: skip

    def unit_frames(self, unit: Unit) -> int:
        """Frames that the unit's demonstrations declare."""
        return sum(self.files[unit.file].rows[demo] for demo in unit.demos)


def plan_ingest(config: IngestConfig, isolated: bool = True) -> IngestPlan:
    """List the source, read every file's header (in a child process, when isolated), cut units. Writes nothing.

    Raises UsageError when there is no source, SourceError when none of its files is usable.
    """
    paths = list_sources(config.source, config.suite)
    refused, beside = other_entries(config.source, paths)
    inspected: dict[str, SourceFile] = {}
    for path in paths:
        try:
            inspected[path.name] = inspect_source(path, config.told, isolated)
        except SourceError as error:
            refused.append({"file": path.name, "demo": "", "reason": str(error)})
            continue
        refused += [{"file": path.name, "demo": demo, "reason": why} for demo, why in inspected[path.name].refused]
    texts = [header.instruction for header in inspected.values() if header.demos]
    evidence = {name: header.evidence for name, header in inspected.items() if header.demos}
    verdict = weigh(evidence, texts, config.told)
    refused += [{"file": name, "demo": "", "reason": why} for name, why in verdict.refused.items()]
    files = {name: header for name, header in inspected.items() if name not in verdict.refused}
    # The size of most demonstrations is the store's; the first in order where two are equally common.
    sizes = Counter(header.image_size[demo] for header in files.values() for demo in header.demos)
    if not sizes:
        raise SourceError(f"{config.source}: no usable demonstration in {len(paths)} files: {reasons(refused)}")
    return IngestPlan(
        files=files,
        paths=paths,
        units=plan_units({name: header.demos for name, header in files.items() if header.demos}),
        image_size=sizes.most_common(1)[0][0],
        frames=sum(sum(header.rows.values()) for header in files.values()),
        refused=tuple(refused),
        notes=(*beside, *(note for header in files.values() for note in header.notes), *gathered(verdict.notes)),
        facts=verdict.facts,
    )


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
    image_size: tuple[int, int]
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
        image_size=plan.image_size,
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
            with open_hdf5(plan.folder / unit.file) as file:
                episode = read_demo(
                    file, unit.demos[0], settings.convention, settings.alignment, None, settings.gripper
                )
                rows = len(episode.robot_state)
                for start in range(0, rows, max(1, rows // SAMPLE_FRAMES)):
                    images = [episode.images(camera, start, start + 1, None)[0] for camera in CAMERAS]
                    sizes.append(sum(len(encode_image(image, config.codec, config.quality)) for image in images))
        except SourceError:
            continue  # ingest will quarantine it; the others tell the size
    if not sizes:
        raise SourceError(f"{config.source}: no frame of the first demonstrations could be read to predict a size")
    frame = sum(sizes) / len(sizes) + 2 * TAR_MEMBER
    return round(plan.frames * (frame * (1 + 1 / config.window) + SEGMENT_OVERHEAD / config.window))
