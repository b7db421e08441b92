"""Demonstrations to a store: plan, make units (here or on Dask workers), merge, commit.

The driver is the store's only writer, under its lock; workers write shards only. Everything is keyed: a unit whose
record has the key of its demonstrations' bytes of today, settings and code, and whose shard still has the recorded
hash, is reused. Sources are read in a child process, so that a hostile file cannot take the run down.
A run that would change anything writes a claim (`pipelines.ingest.ownership`), removes the manifest, and writes it
last, so a half-made store is never taken for a whole one; a run that would change nothing writes nothing. What the
manifest names is durable before it is, and what stands is made durable before a run says so: whoever wrote it may have
died before.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, overload

from pipelines.derive.language import write_instructions
from pipelines.ingest.checks import refuse_findings, refuse_quarantine, require_kept, require_same_code
from pipelines.ingest.config import (
    IngestConfig,
    IngestPlan,
    IngestPreview,
    file_stats,
    plan_ingest,
    preview_ingest,
    reasons,
    written,
)
from pipelines.ingest.merge import UnitFacts, copies_of, split_units, unit_facts, write_merged
from pipelines.ingest.ownership import Holdings, holdings, remove_leftovers, require_own_folder, write_claim
from pipelines.ingest.plan import Unit, natural_key, stem_of
from pipelines.ingest.record import decode_record, read_record, write_record
from pipelines.ingest.unit import UnitTask, formats, unit_key, writer
from pipelines.run import run_units
from pipelines.sources.reading import fingerprint_source, make_here, make_isolated
from pipelines.sources.sandbox import end_thread_reader
from statevla.encoders.table import load_text_encoder
from statevla.encoders.text import TextEncoder
from stores.disk import durable
from stores.disk.sync import Together, kernel
from stores.errors import SourceError, SourceTrouble, StoreError, UsageError
from stores.layout import (
    CLAIM,
    LANGUAGE_FILE,
    MANIFEST,
    QUARANTINE_FILE,
    TABLES,
    record_path,
    staged_shard_path,
)
from stores.manifest import Manifest, StoreObject, hash_object, hash_objects
from stores.numbers import frame_objects
from stores.progress import Progress, ProgressEvent

SYNC_UNITS: Final = 16
"""Units that are made durable together: as many, at most, does a power loss cost."""
SYNC_UNITS_AWAY: Final = 4
"""The same when workers make them: they go on while this process waits for the disk."""


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest did. bytes: of all objects. frames_per_second: of the units made in this run, over `seconds`."""

    episodes: int
    frames: int
    bytes: int
    quarantined: int
    store: str
    seconds: float
    units: int
    units_reused: int
    frames_per_second: float
    changed: bool
    quarantine: tuple[dict[str, str], ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@overload
def ingest(
    config: IngestConfig,
    workers: int = 0,
    scheduler: str | None = None,
    dry_run: Literal[False] = False,
    progress: Progress | None = None,
    strict: bool = False,
    isolated: bool = True,
    prune: bool = False,
) -> IngestSummary: ...


@overload
def ingest(
    config: IngestConfig,
    workers: int = 0,
    scheduler: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    strict: bool = False,
    isolated: bool = True,
    prune: bool = False,
) -> IngestSummary | IngestPreview: ...


def ingest(
    config: IngestConfig,
    workers: int = 0,
    scheduler: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    strict: bool = False,
    isolated: bool = True,
    prune: bool = False,
) -> IngestSummary | IngestPreview:
    """Bring the store at `config.out` to exactly what `config` says of the sources as they are now.

    workers, scheduler: see `pipelines.run.run_units`; the bytes do not depend on them.
    dry_run: write nothing, return an `IngestPreview`.
    strict: a demonstration that cannot be used is an error, and no store is committed; what is made stays for a rerun.
    isolated: read sources in a child process; without it a file that crashes HDF5 takes this process down.
    prune: episodes of the store whose source file is gone are removed; without it the run refuses to.
    Raises UsageError, SourceError when nothing is usable or `strict` refuses, StoreLocked when another process writes
    to the store.
    """
    try:
        return _ingest(config, workers, scheduler, dry_run, progress, strict, isolated, prune)
    finally:
        end_thread_reader()


def _ingest(
    config: IngestConfig, workers: int, scheduler: str | None, dry_run: bool, progress: Progress | None, strict: bool,
    isolated: bool, prune: bool,
) -> IngestSummary | IngestPreview:  # fmt: skip
    started = time.monotonic()
    encoder = load_text_encoder(config.language, config.language_model)  # first: cheap to ask, and often not to be had
    if dry_run:
        return preview_ingest(config)
    plan = plan_ingest(config, isolated)
    if strict:
        refuse_quarantine(plan.refused)
    if config.spec is not None and config.spec.language_width != encoder.width:
        raise UsageError(
            f"--spec: language_width {config.spec.language_width}, but {encoder.id} gives {encoder.width} numbers"
        )
    require_own_folder(config.out)
    with durable.lock(config.out, f"statevla ingest {config.suite}"):
        return Ingest(config, plan, encoder, progress, strict, isolated, prune).run(workers, scheduler, started)


class Ingest:
    """One run of the driver, inside the lock."""

    def __init__(
        self, config: IngestConfig, plan: IngestPlan, encoder: TextEncoder, progress: Progress | None, strict: bool,
        isolated: bool, prune: bool,
    ) -> None:  # fmt: skip
        self.config, self.plan, self.encoder = config, plan, encoder
        self.strict, self.isolated = strict, isolated
        self.root = config.out
        self.progress = progress
        self.name = os.urandom(6).hex()
        self.made_frames = 0
        self.together = Together()
        before = holdings(self.root) or Holdings()
        require_kept(before.sources, plan.paths, prune)
        self.held = Holdings(before.units | {unit.name for unit in plan.units}, before.sources)

    def run(self, workers: int, scheduler: str | None, started: float) -> IngestSummary:
        """Make what is missing or stale, merge, commit."""
        facts = self._reusable()
        reused = len(facts)
        todo = [unit for unit in self.plan.units if unit.name not in facts]
        if todo:
            self._open()
        for made in self._make(todo, workers, scheduler):
            facts[made.name] = made
        units = [facts[unit.name] for unit in self.plan.units]
        if self.strict:
            refuse_quarantine(self._quarantine(units))
            refuse_findings(_findings(units))
        sources = self._sources(units)
        if file_stats(self.plan.paths) != self.plan.stats:
            raise SourceTrouble(
                f"{self.plan.folder}: source files changed while they were read; run the same command again"
            )
        split = self._split(units)
        manifest, changed = self._commit(units, sources, bool(todo), split)
        if (self.root / CLAIM).is_file():
            durable.remove(self.root / CLAIM)
        seconds = time.monotonic() - started
        return IngestSummary(
            episodes=manifest.counts["episodes"],
            frames=manifest.counts["frames"],
            bytes=manifest.counts["bytes"],
            quarantined=manifest.counts["quarantined"],
            store=str(self.root),
            seconds=seconds,
            units=len(self.plan.units),
            units_reused=reused,
            frames_per_second=self.made_frames / seconds,
            changed=changed,
            quarantine=tuple(self._quarantine(units)),
            notes=(*self.plan.notes, *_findings(units), *_copy_notes(units, split)),
        )

    def _open(self) -> None:
        """From here on there is no store, and the claim says what may be found instead."""
        write_claim(self.root, self.config.suite, self.held)
        durable.remove(self.root / MANIFEST)

    def _report(self, done: int, message: str) -> None:
        if self.progress is not None:
            self.progress(ProgressEvent("ingest", done, self.plan.frames, "frames", message))

    def _key(self, unit: Unit, fingerprints: dict[str, str]) -> str:
        return unit_key(unit, self.plan.settings(unit, self.config), fingerprints)

    def _reusable(self) -> dict[str, UnitFacts]:
        """Facts by unit, of records whose key holds and whose shard has the recorded size and hash."""
        found: dict[str, UnitFacts] = {}
        for unit in self.plan.units:
            record = read_record(self.root, unit.name)
            if record is None or record["key"] != self._key(unit, record["fingerprints"]):
                continue  # of other settings or code, whatever the source is
            path, settings = self.plan.folder / unit.file, self.plan.settings(unit, self.config)
            if record["fingerprints"] == fingerprint_source(path, unit.demos, settings, self.isolated):
                found[unit.name] = unit_facts(record, unit.file)
        shards = {facts.shard.path: facts.shard for facts in found.values() if facts.shard}
        there = [path for path in shards if (self.root / path).is_file()]
        sound = {item.path for item in hash_objects(self.root, there) if item == shards[item.path]}
        return {name: facts for name, facts in found.items() if facts.shard is None or facts.shard.path in sound}

    def _make(self, todo: list[Unit], workers: int, scheduler: str | None) -> Iterator[UnitFacts]:
        units = {unit.name: unit for unit in todo}
        todo = sorted(todo, key=self.plan.unit_frames, reverse=True)  # at the end, no worker waits long for another
        # Workers may have another working directory.
        source, out = str(self.plan.folder.resolve()), str(self.root.resolve())
        settings = {unit.name: self.plan.settings(unit, self.config) for unit in todo}
        tasks = [(u.name, UnitTask(u, source, out, settings[u.name], self.name, kernel())) for u in todo]
        done = self.plan.frames - sum(self.plan.unit_frames(unit) for unit in todo)
        self._report(done, f"{len(todo)} of {len(self.plan.units)} units to make")
        make = make_isolated if self.isolated else make_here
        at_once = SYNC_UNITS_AWAY if workers or scheduler else SYNC_UNITS
        with contextlib.closing(run_units(make, tasks, workers, scheduler)) as results:
            for number, (name, data) in enumerate(results, 1):
                record = decode_record(data)
                require_same_code(name, record["writer"])
                key = self._key(units[name], record["fingerprints"])
                with self.together:  # what a power loss spoils of these is not believed: the unit is made again
                    if record["shard"]:
                        durable.rename(
                            self.root / staged_shard_path(name, self.name), self.root / record["shard"]["path"]
                        )
                    write_record(self.root, name, key, record)
                if number % at_once == 0:
                    self.together.sync()
                facts = unit_facts(record, units[name].file)
                self.made_frames += facts.frames
                done += self.plan.unit_frames(units[name])
                self._report(done, name)
                yield facts

    def _sources(self, units: list[UnitFacts]) -> dict[str, dict[str, Any]]:
        """What identifies each source file: size, fingerprint of what was read of it, sha256 where asked for."""
        demos_by_file: dict[str, dict[str, str]] = {}
        for unit in units:
            demos_by_file.setdefault(unit.file, {}).update(unit.fingerprints)
        found = {}
        for path in self.plan.paths:
            demos = demos_by_file.get(path.name)
            sha256 = hash_object(self.plan.folder, path.name).sha256 if self.config.hash_sources else None
            digest = hashlib.sha256(durable.json_bytes(demos)).hexdigest() if demos else None
            found[path.name] = {"bytes": path.stat().st_size, "fingerprint": digest, "sha256": sha256}
        return found

    def _quarantine(self, units: Iterable[UnitFacts]) -> list[dict[str, str]]:
        rows = [{"file": unit.file, **row} for unit in units for row in unit.quarantined]
        rows += self.plan.refused
        return sorted(rows, key=lambda row: (natural_key(row["file"]), natural_key(row["demo"]), row["reason"]))

    def _split(self, units: list[UnitFacts]) -> dict[str, str]:
        parts = {name: header.parts for name, header in self.plan.files.items() if header.parts}
        given = {
            name: parts[unit.file][demo]
            for unit in units
            if unit.file in parts
            for name in unit.ids
            if (demo := name.removeprefix(f"{stem_of(unit.file)}/")) in parts[unit.file]
        }
        return split_units(units, self.config.split_seed, self.config.train_split, given)

    def _commit(
        self, units: list[UnitFacts], sources: dict[str, dict[str, Any]], made: bool, split: dict[str, str]
    ) -> tuple[Manifest, bool]:
        """Write tables, frames, language, quarantine and, last, the manifest; nothing when all of it stands."""
        quarantine = self._quarantine(units)
        if not split:
            raise SourceError(f"{self.config.source}: no usable demonstration: {reasons(quarantine)}")
        shards = {unit.shard.path: unit.shard for unit in units if unit.shard}
        paths = [
            *shards,
            *(record_path(unit.name) for unit in units),
            *TABLES,
            QUARANTINE_FILE,
            *frame_objects(sum(unit.frames for unit in units), self.plan.spec),
        ]
        wanted = self._manifest(units, split, len(quarantine), sources)
        lines = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in quarantine).encode()
        if not made:
            standing = self._standing(wanted, paths, lines)
            if standing is not None:
                durable.settle(self.root, [*paths, MANIFEST])
                return self._up_to_date(standing, wanted)
            self._open()
        with self.together:  # no manifest names them yet
            write_merged(self.root, units, split, self.plan.spec)
            write_instructions(self.root / LANGUAGE_FILE, wanted.instructions, self.encoder)
            durable.write_bytes(self.root / QUARANTINE_FILE, lines)
            remove_leftovers(self.root, self.held.units, set(paths))
        objects = shards | {item.path: item for item in hash_objects(self.root, [p for p in paths if p not in shards])}
        manifest = with_objects(wanted, tuple(objects[path] for path in sorted(paths)))
        manifest.save(self.root)
        return manifest, True

    def _manifest(
        self, units: list[UnitFacts], split: dict[str, str], quarantined: int, sources: dict[str, dict[str, Any]]
    ) -> Manifest:
        """The manifest, but for its objects and their bytes."""
        units_by_file: dict[str, list[UnitFacts]] = {}
        for unit in units:
            units_by_file.setdefault(unit.file, []).append(unit)
        entries = []
        for path in self.plan.paths:
            of_file = units_by_file.get(path.name, [])
            header = self.plan.files.get(path.name)
            entries.append(
                {
                    "file": written(path.name),
                    **sources[path.name],
                    "alignment": sorted({alignment for unit in of_file for alignment in unit.alignments}),
                    "episodes": sum(len(unit.ids) for unit in of_file),
                    **self.plan.facts.get(path.name, {}),
                    "init_states": _init_states(of_file),
                    "notes": [
                        *([] if header is None else header.notes),
                        *(f"{file}: {text}" for file, text in self.plan.said if file == path.name),
                        *_findings(of_file),
                    ],
                }
            )
        return Manifest(
            suite=self.config.suite,
            obs_spec=replace(self.plan.spec, language_width=self.encoder.width).to_dict(),
            config=self.config.recorded(self.encoder),
            sources=tuple(entries),
            provenance={
                "code_version": writer()["statevla"],
                "formats": formats(self.plan.source),
                "libraries": {name: version for name, version in writer().items() if name != "statevla"},
            },
            counts={
                "episodes": len(split),
                "frames": sum(unit.frames for unit in units),
                "steps": sum(unit.steps for unit in units),
                "segments": sum(unit.segments for unit in units),
                "bytes": 0,
                "quarantined": quarantined,
            },
            instructions=tuple(sorted({text for unit in units for text in unit.instructions})),
            splits={name: sum(part == name for part in split.values()) for name in ("train", "val")},
            objects=(),
        )

    def _standing(self, wanted: Manifest, paths: list[str], quarantine: bytes) -> Manifest | None:
        """The committed manifest, when its content is what `wanted` says and every object still has its hash."""
        try:
            standing = Manifest.load(self.root)
            found = hash_objects(self.root, [item.path for item in standing.objects])
        except (StoreError, OSError):
            return None
        complete = with_objects(wanted, standing.objects)
        same = (
            {item.path for item in found} == set(paths)
            and tuple(found) == standing.objects
            and StoreObject(QUARANTINE_FILE, len(quarantine), hashlib.sha256(quarantine).hexdigest()) in found
            and (complete.content_hash, complete.counts) == (standing.content_hash, standing.counts)
            and standing.provenance["formats"] == wanted.provenance["formats"]
        )
        return standing if same else None

    def _up_to_date(self, standing: Manifest, wanted: Manifest) -> tuple[Manifest, bool]:
        """A standing store whose sources say something new (a sha256, asked for now) gets a manifest that says it too;
        who wrote its data stays as it was. Otherwise nothing is written.
        """

        def same_file(source: dict[str, Any]) -> tuple[Any, ...]:
            return source["file"], source["bytes"], source["fingerprint"]

        before = {same_file(source): source["sha256"] for source in standing.sources}
        sources = tuple({**new, "sha256": new["sha256"] or before.get(same_file(new))} for new in wanted.sources)
        if sources == standing.sources:
            return standing, False
        manifest = replace(standing, sources=sources)
        manifest.save(self.root)
        return manifest, True


def _findings(units: Iterable[UnitFacts]) -> list[str]:
    return [f"{unit.file}/{row['demo']}: {row['note']}" for unit in units for row in unit.notes]


def _copy_notes(units: Sequence[UnitFacts], split: dict[str, str]) -> list[str]:
    return [
        f"{', '.join(group)} are the same episode, and all in {split[group[0]]}; remove copies that you did not mean"
        for group in copies_of(units)
    ]


def _init_states(units: Iterable[UnitFacts]) -> dict[str, dict[str, str]]:
    """Initial state by demonstration, by task, of those that have one (`stores.init_states`)."""
    found: dict[str, dict[str, str]] = {}
    for unit in units:
        for name, task, state in zip(unit.ids, unit.tasks, unit.init_states, strict=True):
            if state:
                found.setdefault(task, {})[name.rsplit("/", 1)[-1]] = state
    return found


def with_objects(manifest: Manifest, objects: tuple[StoreObject, ...]) -> Manifest:
    """`manifest` with its objects, and their bytes counted."""
    return replace(manifest, objects=objects, counts={**manifest.counts, "bytes": sum(item.bytes for item in objects)})
