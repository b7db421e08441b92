"""What the manifest of a store says, from the facts of its units. Pure but for a look at each source file."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.ingest.config import IngestConfig, IngestPlan, written
from pipelines.ingest.merge import UnitFacts, copies_of, split_units
from pipelines.ingest.plan import natural_key, stem_of
from pipelines.ingest.unit import formats, writer
from pipelines.sources.unchanged import members_of
from statevla.encoders.text import TextEncoder
from stores.disk import durable
from stores.manifest import Manifest, StoreObject, hash_object


def describe(
    config: IngestConfig,
    plan: IngestPlan,
    encoder: TextEncoder,
    units: Sequence[UnitFacts],
    split: Mapping[str, str],
    quarantined: int,
    sources: Mapping[str, dict[str, Any]],
) -> Manifest:
    """The manifest, but for its objects and their bytes."""
    return Manifest(
        suite=config.suite,
        obs_spec=replace(plan.spec, language_width=encoder.width).to_dict(),
        config=config.recorded(encoder),
        sources=_entries(plan, units, sources),
        provenance={
            "code_version": writer()["statevla"],
            "formats": formats(plan.source),
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


def with_objects(manifest: Manifest, objects: tuple[StoreObject, ...]) -> Manifest:
    """`manifest` with its objects, and their bytes counted."""
    return replace(manifest, objects=objects, counts={**manifest.counts, "bytes": sum(item.bytes for item in objects)})


def split_of(config: IngestConfig, plan: IngestPlan, units: Sequence[UnitFacts]) -> dict[str, str]:
    """Episode id -> train or val: what the files' masks say, else drawn (`pipelines.ingest.merge.split_units`)."""
    parts = {name: header.parts for name, header in plan.files.items() if header.parts}
    given = {
        name: parts[unit.file][demo]
        for unit in units
        if unit.file in parts
        for name in unit.ids
        if (demo := name.removeprefix(f"{stem_of(unit.file)}/")) in parts[unit.file]
    }
    return split_units(units, config.split_seed, config.train_split, given)


def sources_of(config: IngestConfig, plan: IngestPlan, units: Iterable[UnitFacts]) -> dict[str, dict[str, Any]]:
    """What identifies each source file: size, fingerprint of what was read of it, sha256 where asked for."""
    demos_by_file: dict[str, dict[str, str]] = {}
    for unit in units:
        demos_by_file.setdefault(unit.file, {}).update(unit.fingerprints)
    found = {}
    for path in plan.paths:
        demos = demos_by_file.get(path.name)
        members = members_of(plan.source, path)
        sha256 = hash_members(path, members) if config.hash_sources else None
        digest = hashlib.sha256(durable.json_bytes(demos)).hexdigest() if demos else None
        found[path.name] = {
            "bytes": sum(member.stat().st_size for member in members),
            "fingerprint": digest,
            "sha256": sha256,
        }
    return found


def hash_members(path: Path, members: Sequence[Path]) -> str:
    """sha256 of a file; of a dataset, of the names and hashes of its files."""
    if list(members) == [path]:
        return hash_object(path.parent, path.name).sha256
    listed = {name: hash_object(path, name).sha256 for name in (str(member.relative_to(path)) for member in members)}
    return hashlib.sha256(durable.json_bytes(listed)).hexdigest()


def quarantine_of(plan: IngestPlan, units: Iterable[UnitFacts]) -> list[dict[str, str]]:
    """Rows of the quarantine file: what the plan refused, and what units could not use."""
    rows = [{"file": unit.file, **row} for unit in units for row in unit.quarantined]
    rows += plan.refused
    return sorted(rows, key=lambda row: (natural_key(row["file"]), natural_key(row["demo"]), row["reason"]))


def findings_of(units: Iterable[UnitFacts]) -> list[str]:
    """What is wrong with cameras, by demonstration."""
    return [f"{unit.file}/{row['demo']}: {row['note']}" for unit in units for row in unit.notes]


def copy_notes(units: Sequence[UnitFacts], split: Mapping[str, str]) -> list[str]:
    """Which episodes are the same, and where they stand."""
    return [
        f"{', '.join(group)} are the same episode, and all in {split[group[0]]}; remove copies that you did not mean"
        for group in copies_of(units)
    ]


def _entries(
    plan: IngestPlan, units: Iterable[UnitFacts], sources: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """A row of each source file."""
    units_by_file: dict[str, list[UnitFacts]] = {}
    for unit in units:
        units_by_file.setdefault(unit.file, []).append(unit)
    said: dict[str, list[str]] = {}
    for file, text in plan.said:
        said.setdefault(file, []).append(f"{file}: {text}")
    entries = []
    for path in plan.paths:
        of_file = units_by_file.get(path.name, [])
        header = plan.files.get(path.name)
        entries.append(
            {
                "file": written(path.name),
                **sources[path.name],
                "alignment": sorted({alignment for unit in of_file for alignment in unit.alignments}),
                "episodes": sum(len(unit.ids) for unit in of_file),
                **plan.facts.get(path.name, {}),
                "init_states": _init_states(of_file),
                "made_by": dict(sorted(Counter(text for unit in of_file for text in unit.made_by if text).items())),
                "notes": [
                    *([] if header is None else header.notes),
                    *said.get(path.name, ()),
                    *findings_of(of_file),
                ],
            }
        )
    return tuple(entries)


def _init_states(units: Iterable[UnitFacts]) -> dict[str, dict[str, str]]:
    """Initial state by demonstration, by task, of those that have one (`stores.init_states`)."""
    found: dict[str, dict[str, str]] = {}
    for unit in units:
        for name, task, state in zip(unit.ids, unit.tasks, unit.init_states, strict=True):
            if state:
                found.setdefault(task, {})[name.rsplit("/", 1)[-1]] = state
    return found
