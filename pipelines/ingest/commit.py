"""The commit of an ingest: tables, frames, language, quarantine and, last, the manifest; nothing when all stands."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.derive.language import write_instructions
from pipelines.ingest.config import IngestConfig, IngestPlan, reasons
from pipelines.ingest.describe import describe, quarantine_of, with_objects
from pipelines.ingest.merge import UnitFacts, write_merged
from pipelines.ingest.ownership import Holdings, remove_leftovers, withdraw
from pipelines.ingest.staging import take_over
from statevla.encoders.text import TextEncoder
from stores.disk import durable
from stores.disk.sync import Together
from stores.errors import SourceError, StoreError
from stores.layout import LANGUAGE_FILE, MANIFEST, QUARANTINE_FILE, TABLES, record_path
from stores.manifest import Manifest, StoreObject, hash_objects
from stores.numbers import frame_objects


@dataclass(frozen=True)
class Commit:
    """What one run commits. split: by episode. sources: by file. staged: units not yet in their places. made: whether
    any unit is new. held: what may lie here.
    """

    config: IngestConfig
    plan: IngestPlan
    encoder: TextEncoder
    units: Sequence[UnitFacts]
    split: Mapping[str, str]
    sources: Mapping[str, dict[str, Any]]
    staged: Collection[str]
    made: bool
    held: Holdings

    def write(self, together: Together) -> tuple[Manifest, bool]:
        """The committed manifest, and whether anything was written. Raises SourceError when there is no episode."""
        root = self.config.out
        quarantine = quarantine_of(self.plan, self.units)
        if not self.split:
            raise SourceError(f"{self.config.source}: no usable demonstration: {reasons(quarantine)}")
        shards = {unit.shard.path: unit.shard for unit in self.units if unit.shard}
        paths = [
            *shards,
            *(record_path(unit.name) for unit in self.units),
            *TABLES,
            QUARANTINE_FILE,
            *frame_objects(sum(unit.frames for unit in self.units), self.plan.spec),
        ]
        wanted = describe(
            self.config, self.plan, self.encoder, self.units, self.split, len(quarantine), self.sources
        )  # fmt: skip
        lines = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in quarantine).encode()
        if not self.made and not self.staged:
            found = standing(root, wanted, paths, lines)
            if found is not None:
                durable.settle(root, [*paths, MANIFEST])
                return up_to_date(root, found, wanted)
        if self.staged:
            together.sync()  # under the names that it knows
        withdraw(root, self.config.suite, self.held)
        with together:  # no manifest names them yet
            take_over(root, [unit for unit in self.units if unit.name in self.staged])
            write_merged(root, self.units, self.split, self.plan.spec)
            write_instructions(root / LANGUAGE_FILE, wanted.instructions, self.encoder)
            durable.write_bytes(root / QUARANTINE_FILE, lines)
            remove_leftovers(root, self.held.units, set(paths))
        objects = shards | {item.path: item for item in hash_objects(root, [p for p in paths if p not in shards])}
        manifest = with_objects(wanted, tuple(objects[path] for path in sorted(paths)))
        manifest.save(root)
        return manifest, True


def standing(root: Path, wanted: Manifest, paths: Sequence[str], quarantine: bytes) -> Manifest | None:
    """The committed manifest, when its content is what `wanted` says and every object still has its hash."""
    try:
        found = Manifest.load(root)
        objects = hash_objects(root, [item.path for item in found.objects])
    except (StoreError, OSError):
        return None
    complete = with_objects(wanted, found.objects)
    same = (
        {item.path for item in objects} == set(paths)
        and tuple(objects) == found.objects
        and StoreObject(QUARANTINE_FILE, len(quarantine), hashlib.sha256(quarantine).hexdigest()) in objects
        and (complete.content_hash, complete.counts) == (found.content_hash, found.counts)
        and found.provenance["formats"] == wanted.provenance["formats"]
    )
    return found if same else None


def up_to_date(root: Path, found: Manifest, wanted: Manifest) -> tuple[Manifest, bool]:
    """A standing store whose sources say something new (a sha256, asked for now) gets a manifest that says it too;
    who wrote its data stays as it was. Otherwise nothing is written.
    """

    def same_file(source: dict[str, Any]) -> tuple[Any, ...]:
        return source["file"], source["bytes"], source["fingerprint"]

    before = {same_file(source): source["sha256"] for source in found.sources}
    sources = tuple({**new, "sha256": new["sha256"] or before.get(same_file(new))} for new in wanted.sources)
    if sources == found.sources:
        return found, False
    manifest = replace(found, sources=sources)
    manifest.save(root)
    return manifest, True
