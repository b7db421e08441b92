"""Reading sources from a safe distance: each call on a file runs in a child process of its own (`sandbox`).

A file that crashes or hangs the child costs that demonstration or that file, with the reason, and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.collect.writer import EXECUTED
from pipelines.ingest.plan import Unit, natural_key
from pipelines.ingest.record import decode_record, encode_record
from pipelines.ingest.unit import UnitSettings, UnitTask, make_unit, refused_unit, sample_sizes
from pipelines.sources import hdf5, pulse
from pipelines.sources.evidence import Told
from pipelines.sources.sandbox import survive, thread_reader
from pipelines.sources.source import SourceFile
from pipelines.sources.table import recognize, source_of
from pipelines.sources.unchanged import unchanged
from stores.errors import SourceError
from stores.printable import plain
from stores.spec import LIBERO

REPLAY_BYTES: Final = 64 * 2**20
"""Most that one demonstration's states or actions may take."""


def _recognize(argument: dict[str, Any]) -> str:
    return recognize([Path(path) for path in argument["paths"]], argument["names"], _positions(argument["poison"]))


def _inspect(argument: dict[str, Any]) -> dict[str, Any]:
    told, poison = Told.from_dict(argument["told"]), _positions(argument["poison"])
    source, path = source_of(argument["source"]), Path(argument["path"])
    return source.inspect(path, told, poison, argument["files"]).to_dict()


def _fingerprint(argument: dict[str, Any]) -> dict[str, str]:
    """Fingerprint by demonstration; of one that cannot be read, the reason instead."""
    settings, poison = UnitSettings.from_dict(argument["settings"]), _positions(argument["poison"])
    found: dict[str, str] = {}
    with source_of(settings.source).open(Path(argument["path"]), settings.facts, settings.told) as opened:
        for position, demo in enumerate(argument["demos"], 1):
            pulse.at(position)
            found[demo] = f"unreadable: {poison[position]}" if position in poison else opened.fingerprint(demo)
    return found


def _make(argument: dict[str, Any]) -> tuple[str, bool]:
    unit = {**argument["unit"], "demos": tuple(argument["unit"]["demos"])}
    settings = UnitSettings.from_dict(argument["settings"])
    made = {"unit": Unit(**unit), "settings": settings, "poison": _positions(argument["poison"])}
    task = UnitTask(**{**argument, **made})
    record = make_unit(task)
    return encode_record(record).decode(), not _without_fingerprint(record, task.unit)


def _sample(argument: dict[str, Any]) -> list[int]:
    settings = UnitSettings.from_dict(argument["settings"])
    return sample_sizes(Path(argument["path"]), argument["demo"], settings, argument["frames"])


def _replay(argument: dict[str, Any]) -> list[dict[str, Any]]:
    path = Path(argument["path"])
    found = []
    with hdf5.open_hdf5(path) as file, hdf5.reporting(path.name):
        names = [name for name in hdf5.group(file, "data") if isinstance(name, str)]
        for position, name in enumerate(sorted(names, key=natural_key)[: argument["limit"]], 1):
            pulse.at(position)
            if str(position) in argument["poison"]:
                raise SourceError(f"{path.name}/{name}: {argument['poison'][str(position)]}")
            done = EXECUTED if f"data/{name}/{EXECUTED}" in file else "actions"
            state, actions = (
                hdf5.read_rows(hdf5.dataset(file, f"data/{name}/{key}", "float", (None, width), REPLAY_BYTES), 0, rows)
                for key, width, rows in (("states", None, 1), (done, LIBERO.action_dim, None))
            )
            found.append({"demo": name, "state": state[0].tolist(), "actions": actions.tolist()})
    return found


def _positions(poison: Mapping[str, str]) -> dict[int, str]:
    return {int(position): reason for position, reason in poison.items()}


CALLS: Final = {
    "recognize": _recognize,
    "inspect": _inspect,
    "fingerprint": _fingerprint,
    "make": _make,
    "sample": _sample,
    "replay": _replay,
}
"""What the child does."""


def _ask(name: str, argument: dict[str, Any], where: str, isolated: bool) -> Any:
    if not isolated:
        return CALLS[name]({**argument, "poison": {}})
    return survive(thread_reader(CALLS), name, argument, where)


def recognize_sources(paths: Sequence[Path], names: Sequence[str], isolated: bool = True) -> str:
    """`pipelines.sources.table.recognize` in the child."""
    argument = {"paths": [str(path) for path in paths], "names": list(names)}
    found: str = _ask("recognize", argument, paths[0].name, isolated)
    return found


def inspect_source(path: Path, source: str, told: Told, isolated: bool = True, files: int = 1) -> SourceFile:
    """`pipelines.sources.source.Source.inspect` in the child. Raises SourceError."""
    argument = {"path": str(path), "source": source, "told": told.to_dict(), "files": files}
    found = SourceFile.from_dict(_ask("inspect", argument, path.name, isolated))
    refused = tuple((plain(demo), plain(reason)) for demo, reason in found.refused)
    return replace(found, refused=refused, notes=tuple(map(plain, found.notes)))


def fingerprint_source(
    path: Path, demos: tuple[str, ...], settings: UnitSettings, isolated: bool = True
) -> dict[str, str]:
    """Fingerprint by demonstration, from the child; of a file that cannot be read, the reason for each."""
    argument = {"path": str(path), "demos": demos, "settings": settings.to_dict()}
    try:
        found: dict[str, str] = _ask("fingerprint", argument, path.name, isolated)
    except SourceError as error:
        return dict.fromkeys(demos, f"unreadable: {error}")
    return found


def sample_source(path: Path, demo: str, settings: UnitSettings, frames: int) -> list[int]:
    """`pipelines.ingest.unit.sample_sizes` in the child. Raises SourceError."""
    argument = {"path": str(path), "demo": demo, "settings": settings.to_dict(), "frames": frames}
    found: list[int] = _ask("sample", argument, path.name, isolated=True)
    return found


def read_replay(path: Path, limit: int | None = None) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """What the simulator needs to run the demonstrations of a file in LIBERO's layout again, from the child: (name,
    simulator state [S] before the first action, actions [T, 7]) of the first `limit`, by number. Where noise was
    added to what an expert wanted, the actions are what was executed. Raises SourceError.
    """
    rows = _ask("replay", {"path": str(path), "limit": limit}, path.name, isolated=True)
    return [(row["demo"], np.array(row["state"], np.float64), np.array(row["actions"], np.float64)) for row in rows]


def make_isolated(task: UnitTask) -> bytes:
    """The unit's record (`record`) with the ``fingerprints`` of all its demonstrations; sources are read in
    this thread's child.

    A demonstration whose reading kills the child still has the fingerprint that a rerun will find: by a second call.
    Raises SourceTrouble where the file changed meanwhile: what was read and what its fingerprints say may differ.
    """
    with unchanged(task.file, task.settings.source):
        return _made_isolated(task)


def _made_isolated(task: UnitTask) -> bytes:
    settings = task.settings.to_dict()
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
    with unchanged(task.file, task.settings.source):
        return _with_all_fingerprints(make_unit(task), task, isolated=False)


def _without_fingerprint(record: dict[str, Any], unit: Unit) -> tuple[str, ...]:
    return tuple(demo for demo in unit.demos if demo not in record["fingerprints"])


def _with_all_fingerprints(record: dict[str, Any], task: UnitTask, isolated: bool = True) -> bytes:
    missing = _without_fingerprint(record, task.unit)
    more = fingerprint_source(task.file, missing, task.settings, isolated) if missing else {}
    return encode_record({**record, "fingerprints": {**record["fingerprints"], **more}})
