"""Reading sources from a safe distance: each call on a file runs in a child process of its own (`sandbox`).

A file that crashes or hangs the child costs that demonstration or that file, with the reason, and nothing else.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pipelines.ingest.plan import Unit
from pipelines.ingest.record import decode_record, encode_record
from pipelines.ingest.unit import UnitSettings, UnitTask, make_unit, refused_unit
from pipelines.sources.evidence import Evidence, Told
from pipelines.sources.fingerprint import fingerprint_demos
from pipelines.sources.gripper import Reading
from pipelines.sources.libero import SourceFile, inspect_file
from pipelines.sources.sandbox import survive, thread_reader
from stores.errors import SourceError


def _inspect(argument: dict[str, Any]) -> dict[str, Any]:
    return asdict(inspect_file(Path(argument["path"]), _positions(argument["poison"]), Told(**argument["told"])))


def _fingerprint(argument: dict[str, Any]) -> dict[str, str]:
    return fingerprint_demos(Path(argument["path"]), tuple(argument["demos"]), _positions(argument["poison"]))


def _make(argument: dict[str, Any]) -> tuple[str, bool]:
    unit, settings = dict(argument["unit"]), dict(argument["settings"])
    unit["demos"], settings["image_size"] = tuple(unit["demos"]), tuple(settings["image_size"])
    settings["gripper"] = None if settings["gripper"] is None else Reading(**settings["gripper"])
    made = {"unit": Unit(**unit), "settings": UnitSettings(**settings), "poison": _positions(argument["poison"])}
    task = UnitTask(**{**argument, **made})
    record = make_unit(task)
    return encode_record(record).decode(), not _without_fingerprint(record, task.unit)


def _positions(poison: Mapping[str, str]) -> dict[int, str]:
    return {int(position): reason for position, reason in poison.items()}


CALLS: Final = {"inspect": _inspect, "fingerprint": _fingerprint, "make": _make}
"""What the child does."""


def inspect_source(path: Path, told: Told, isolated: bool = True) -> SourceFile:
    """`pipelines.sources.libero.inspect_file` in the child. Raises SourceError, UsageError."""
    if not isolated:
        return inspect_file(path, told=told)
    fields = survive(thread_reader(CALLS), "inspect", {"path": str(path), "told": asdict(told)}, path.name)
    fields["demos"], fields["notes"] = tuple(fields["demos"]), tuple(fields["notes"])
    fields["refused"] = tuple((demo, reason) for demo, reason in fields["refused"])
    fields["image_size"] = {demo: (size[0], size[1]) for demo, size in fields["image_size"].items()}
    fields["evidence"] = Evidence.from_dict(fields["evidence"])
    return SourceFile(**fields)


def fingerprint_source(path: Path, demos: tuple[str, ...], isolated: bool = True) -> dict[str, str]:
    """`fingerprint_demos` in the child; of a file that cannot be read, the reason for each."""
    argument = {"path": str(path), "demos": demos}
    try:
        found: dict[str, str] = (
            survive(thread_reader(CALLS), "fingerprint", argument, path.name)
            if isolated
            else fingerprint_demos(path, demos)
        )
    except SourceError as error:
        return dict.fromkeys(demos, f"unreadable: {error}")
    return found


def make_isolated(task: UnitTask) -> bytes:
    """The unit's record (`record`) with the ``fingerprints`` of all its demonstrations; sources are read in
    this thread's child.

    A demonstration whose reading kills the child still has the fingerprint that a rerun will find: by a second call.
    """
    settings = asdict(task.settings)
    places = {"source": task.source, "out": task.out, "run": task.run, "kernel": task.kernel}
    argument = {"unit": asdict(task.unit), **places, "settings": settings}
    try:
        text, complete = survive(thread_reader(CALLS), "make", argument, f"unit {task.unit.name}")
        if complete:
            return str(text).encode()
        record = decode_record(text)
    except SourceError as error:
        record = refused_unit(task.unit, str(error))
    return _with_all_fingerprints(record, task)


def make_here(task: UnitTask) -> bytes:
    """`make_isolated` without the child, for tests that crash the writer itself."""
    return _with_all_fingerprints(make_unit(task), task, isolated=False)


def _without_fingerprint(record: dict[str, Any], unit: Unit) -> tuple[str, ...]:
    return tuple(demo for demo in unit.demos if demo not in record["fingerprints"])


def _with_all_fingerprints(record: dict[str, Any], task: UnitTask, isolated: bool = True) -> bytes:
    missing = _without_fingerprint(record, task.unit)
    more = fingerprint_source(task.file, missing, isolated) if missing else {}
    return encode_record({**record, "fingerprints": {**record["fingerprints"], **more}})
