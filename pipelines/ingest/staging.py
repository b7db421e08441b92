"""Where units are made, found again, and taken over.

While no store stands in a folder, a unit's shard and record get their places there at once. While one stands, they lie
beside it, below `STAGED`, until all of them are made: a source that cannot be read, a run that is refused or killed
leaves the store as it was. What is staged is reused by the next run like what is in place; the cost is disk: for a
while the old and the new shards of changed units are both there.
"""

from collections.abc import Iterable
from pathlib import Path

from pipelines.ingest.config import IngestConfig, IngestPlan
from pipelines.ingest.merge import UnitFacts, unit_facts
from pipelines.ingest.plan import Unit
from pipelines.ingest.record import read_record
from pipelines.ingest.unit import unit_key
from pipelines.sources.reading import fingerprint_source
from stores.disk import durable
from stores.layout import MANIFEST, STAGED, record_path
from stores.manifest import hash_objects


def place_of_new(root: Path) -> Path:
    """The folder below which units of a run get their names."""
    return root / STAGED if (root / MANIFEST).is_file() else root


def find_made(
    root: Path, plan: IngestPlan, config: IngestConfig, isolated: bool
) -> tuple[dict[str, UnitFacts], set[str]]:
    """Facts by unit, of records whose key holds and whose shard has the recorded size and hash; and which of them are
    staged.
    """
    found: dict[Path, dict[str, UnitFacts]] = {root: {}, root / STAGED: {}}
    for unit in plan.units:
        here: dict[str, str] | None = None
        for place, facts in found.items():
            record = read_record(place, unit.name)
            if record is None or record["key"] != key_of(plan, config, unit, record["fingerprints"]):
                continue  # of other settings or code, whatever the source is
            if here is None:
                path, settings = plan.folder / unit.file, plan.settings(unit, config)
                here = fingerprint_source(path, unit.demos, settings, isolated)
            if record["fingerprints"] == here:
                facts[unit.name] = unit_facts(record, unit.file)
    in_place, staged = (_sound(place, facts) for place, facts in found.items())
    return {**staged, **in_place}, staged.keys() - in_place.keys()


def key_of(plan: IngestPlan, config: IngestConfig, unit: Unit, fingerprints: dict[str, str]) -> str:
    """The unit's key under this plan (`pipelines.ingest.unit.unit_key`)."""
    return unit_key(unit, plan.settings(unit, config), fingerprints)


def take_over(root: Path, units: Iterable[UnitFacts]) -> None:
    """Give the shards and records of staged units their places. There must be no manifest, and what is staged must be
    durable, or be checked before it is believed.
    """
    for unit in units:
        for path in (*((unit.shard.path,) if unit.shard else ()), record_path(unit.name)):
            durable.make_dir((root / path).parent)
            durable.rename(root / STAGED / path, root / path)


def _sound(place: Path, facts: dict[str, UnitFacts]) -> dict[str, UnitFacts]:
    shards = {unit.shard.path: unit.shard for unit in facts.values() if unit.shard}
    there = [path for path in shards if (place / path).is_file()]
    sound = {item.path for item in hash_objects(place, there) if item == shards[item.path]}
    return {name: unit for name, unit in facts.items() if unit.shard is None or unit.shard.path in sound}
