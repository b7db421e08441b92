"""What is in a store, as one JSON-ready dict: the numbers that ``statevla inspect`` shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stores.cloud.storage import Storage
from stores.errors import StateVLAError
from stores.kept import list_kept
from stores.made_by import made_by
from stores.reader import Store
from stores.verify import count_objects


def inspect_store(root: Path | str | Storage) -> dict[str, Any]:
    """Counts, tasks, sources and configuration of the store at `root` (path or URL).

    Raises StoreMissing when there is none, StoreCorrupt when its indexes are not as the manifest says.
    """
    store = Store.open(root)
    manifest, columns = store.manifest, store.episode_columns
    tasks: dict[str, dict[str, Any]] = {}
    rows = zip(*(columns[name] for name in ("task", "instruction", "split", "frames")), strict=True)
    for task, instruction, split, frames in rows:
        entry = tasks.setdefault(
            str(task), {"instruction": str(instruction), "episodes": 0, "frames": 0, "train": 0, "val": 0}
        )
        entry["episodes"] += 1
        entry["frames"] += int(frames)
        entry[str(split)] += 1
    alignments = [str(name) for name in columns["alignment"]]
    return {
        **manifest.counts,
        "store": store.root,
        "suite": manifest.suite,
        "content_hash": store.content_hash,
        "schema_version": manifest.schema_version,
        "provenance": manifest.provenance,
        "objects": count_objects(store.storage),
        "splits": manifest.splits,
        "alignment": {name: alignments.count(name) for name in sorted(set(alignments))},
        "language": manifest.config["language"],
        "config": manifest.config,
        "obs_spec": manifest.obs_spec,
        "episode_frames": span([int(frames) for frames in columns["frames"]]),
        "tasks": tasks,
        "made_by": {text or "not said": count for text, count in made_by(manifest.sources).items()},
        "sources": list(manifest.sources),
        "statistics": has_statistics(store),
        "derived": derived_rows(store.storage),
    }


def for_people(told: Mapping[str, Any]) -> dict[str, Any]:
    """`inspect_store`'s answer in what a terminal has room for; hashes and what is long are in `told` alone."""
    short = dict(told)
    short["obs_spec"] = spec_lines(told["obs_spec"])
    short["notes"] = list(dict.fromkeys(note for source in told["sources"] for note in source.get("notes", ())))
    short["sources"] = [
        {name: source.get(name) for name in ("file", "bytes", "episodes", "alignment")} for source in told["sources"]
    ]
    short["derived"] = [{name: row[name] for name in ("folder", "state", "size")} for row in told["derived"]]
    return short


def spec_lines(spec: Mapping[str, Any]) -> list[str]:
    """An ObsSpec's dict in a line for each field."""
    cameras = [f"camera {one['name']}: {one['height']} x {one['width']}" for one in spec["cameras"]]
    state = [f"robot state {one['name']}: {one['width']} {one['unit']}".rstrip() for one in spec["robot_state"]]
    action = []
    for one in spec["action"]:
        parts = (", ".join(filter(None, one["dims"])) or str(one["width"]), one["kind"], one["unit"])
        action.append(f"action {one['name']}: {'; '.join(filter(None, parts))}")
    rest = (
        f"{spec['control_hz']:g} Hz; pictures {spec['orientation']}; {spec['language_width']} numbers of an instruction"
    )
    return [*cameras, *state, *action, rest]


def derived_rows(storage: Storage) -> list[dict[str, Any]]:
    """Every derived folder with its state, size and what it was made from; none where objects cannot be listed."""
    return [
        {"folder": item.path, "state": item.state, "size": item.bytes, "key": item.key, "made_from": item.made_from}
        for item in (list_kept(storage) if storage.lists else ())
    ]


def span(values: Sequence[int]) -> dict[str, float]:
    """Smallest, mean and largest."""
    return {"min": min(values), "mean": sum(values) / len(values), "max": max(values)}


def has_statistics(store: Store) -> bool:
    """Whether the store holds sound statistics of exactly its content."""
    try:
        store.stats()
    except StateVLAError:
        return False
    return True
