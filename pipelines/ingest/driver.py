"""Demonstrations to a store: plan, make units (here or on Dask workers), merge, commit.

The driver is the store's only writer, under its lock; workers write shards only. Everything is keyed: a unit whose
record has the key of its demonstrations' bytes of today, settings and code, and whose shard still has the recorded
hash, is reused. Sources are read in a child process, so that a hostile file cannot take the run down.
A run that would change anything writes a claim (`pipelines.ingest.ownership`) and makes its units, beside the store
that stands there (`pipelines.ingest.staging`). When all of them are made it removes the manifest, puts everything in
its place, and writes the manifest last, so a half-made store is never taken for a whole one; a run that would change
nothing writes nothing. What the manifest names is durable before it is, and what stands is made durable before a run
says so: whoever wrote it may have died before.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, overload

from pipelines.ingest.checks import refuse_findings, refuse_quarantine, require_kept, require_same_code
from pipelines.ingest.commit import Commit
from pipelines.ingest.config import IngestConfig, IngestPlan, IngestPreview, listed, plan_ingest, preview_ingest
from pipelines.ingest.describe import copy_notes, findings_of, quarantine_of, sources_of, split_of
from pipelines.ingest.merge import UnitFacts, unit_facts
from pipelines.ingest.ownership import Holdings, holdings, require_own_folder, withdraw, write_claim
from pipelines.ingest.plan import Unit
from pipelines.ingest.record import decode_record, write_record
from pipelines.ingest.staging import find_made, key_of, place_of_new
from pipelines.ingest.unit import UnitTask
from pipelines.run import run_units
from pipelines.sources.reading import make_here, make_isolated
from pipelines.sources.sandbox import end_thread_reader
from pipelines.sources.unchanged import file_stats
from statevla.encoders.table import load_text_encoder
from statevla.encoders.text import TextEncoder
from stores.disk import durable
from stores.disk.lock import lock
from stores.disk.sync import Together, kernel
from stores.errors import SourceTrouble, UsageError
from stores.layout import CLAIM, STAGED, staged_shard_path
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
    listed(config)  # before weights are fetched for nothing
    encoder = load_text_encoder(config.language, config.language_model)  # then: cheap to ask, and often not to be had
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
    with lock(config.out, f"statevla ingest {config.suite}"):
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
        self.place = place_of_new(self.root)
        self.beside = self.place != self.root
        before = holdings(self.root) or Holdings()
        require_kept(before.sources, plan.paths, prune)
        self.held = Holdings(before.units | {unit.name for unit in plan.units}, before.sources)

    def run(self, workers: int, scheduler: str | None, started: float) -> IngestSummary:
        """Make what is missing or stale, merge, commit."""
        facts, staged = find_made(self.root, self.plan, self.config, self.isolated)
        reused = len(facts)
        todo = [unit for unit in self.plan.units if unit.name not in facts]
        if todo:
            (write_claim if self.beside else withdraw)(self.root, self.config.suite, self.held)
        for made in self._make(todo, workers, scheduler):
            facts[made.name] = made
        if self.beside:
            staged |= {unit.name for unit in todo}
        units = [facts[unit.name] for unit in self.plan.units]
        quarantine = quarantine_of(self.plan, units)
        if self.strict:
            refuse_quarantine(quarantine)
            refuse_findings(findings_of(units))
        sources = sources_of(self.config, self.plan, units)
        if file_stats(self.plan.paths, self.plan.source) != self.plan.stats:
            raise SourceTrouble(
                f"{self.plan.folder}: source files changed while they were read; run the same command again"
            )
        split = split_of(self.config, self.plan, units)
        manifest, changed = Commit(
            self.config, self.plan, self.encoder, units, split, sources, staged, bool(todo), self.held
        ).write(self.together)
        for own in (STAGED, CLAIM):
            if (self.root / own).exists():
                durable.remove(self.root / own)
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
            quarantine=tuple(quarantine),
            notes=(*self.plan.notes, *findings_of(units), *copy_notes(units, split)),
        )

    def _report(self, done: int, message: str) -> None:
        if self.progress is not None:
            self.progress(ProgressEvent("ingest", done, self.plan.frames, "frames", message))

    def _make(self, todo: list[Unit], workers: int, scheduler: str | None) -> Iterator[UnitFacts]:
        units = {unit.name: unit for unit in todo}
        todo = sorted(todo, key=self.plan.unit_frames, reverse=True)  # at the end, no worker waits long for another
        # Workers may have another working directory.
        source, out = str(self.plan.folder.resolve()), str(self.place.resolve())
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
                key = key_of(self.plan, self.config, units[name], record["fingerprints"])
                with self.together:  # what a power loss spoils of these is not believed: the unit is made again
                    made = self.place / staged_shard_path(name, self.name)
                    if record["shard"]:
                        durable.rename(made, self.place / record["shard"]["path"])
                    else:
                        durable.remove(made)  # an empty one
                    write_record(self.place, name, key, record)
                if number % at_once == 0:
                    self.together.sync()
                facts = unit_facts(record, units[name].file)
                self.made_frames += facts.frames
                done += self.plan.unit_frames(units[name])
                self._report(done, name)
                yield facts
