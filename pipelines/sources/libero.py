"""Reads demonstrations in LIBERO's HDF5 layout and turns each into a canonical episode.

Layout: ``/data/demo_N`` with ``actions [T,7]``, ``states [T,S]``, ``obs/agentview_rgb`` and ``obs/eye_in_hand_rgb``
``[T,H,W,3]``, ``obs/joint_states [T,7]``, ``obs/gripper_states [T,2]``; attributes ``num_samples`` (official files;
regenerated ones lack it) and ``model_file`` (MuJoCo XML) on the demonstration, ``problem_info`` (JSON with
``language_instruction``) and ``macros_image_convention`` on ``/data``.

A canonical episode has ``obs[t]`` before ``action[t]`` (see `pipelines/sources/alignment.py`). Of T rows:

- *before*: T observations, T actions; the last observation has no successor.
- *after*: ``obs[t]`` shows the effect of ``actions[t]``, so the action executed from it is ``actions[t + 1]``:
  T observations, T - 1 actions; ``actions[0]`` has no observation before it and is dropped.

Legend: T rows of the file, A actions of the episode, H, W rows and columns of an image.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import h5py

from pipelines.sources import hdf5
from pipelines.sources.evidence import Evidence, Facts, Told, weigh
from pipelines.sources.fingerprint import FORMAT as FINGERPRINT_FORMAT
from pipelines.sources.fingerprint import Seen, Stored, fingerprint_demo
from pipelines.sources.libero_demo import image_key, read_demo
from pipelines.sources.libero_header import inspect_file, require_header
from pipelines.sources.source import Episode, SourceFile, Verdict
from stores.spec import LIBERO


class LiberoSource:
    """LIBERO's layout, as a row of `pipelines.sources.table.SOURCES`."""

    name: Final = "libero"
    format: Final = 1000 * FINGERPRINT_FORMAT + 1
    suffixes: Final = (".hdf5", ".h5")

    def recognizes(self, path: Path) -> bool:
        """Whether the first demonstration has LIBERO's cameras."""
        with hdf5.open_hdf5(path) as file, hdf5.reporting(path.name):
            data = hdf5.group(file, "data")
            first = next((name for name in data if isinstance(name, str)), None)
            return first is not None and all(f"{first}/{image_key(camera)}" in data for camera in LIBERO.camera_names)

    def inspect(self, path: Path, told: Told, poison: Mapping[int, str], files: int = 1) -> SourceFile:
        """See `inspect_file`."""
        return inspect_file(path, poison, told, files)

    def weigh(self, files: Mapping[str, SourceFile], told: Told) -> Verdict:
        """See `pipelines.sources.evidence.weigh`."""
        evidence = {name: Evidence.from_dict(header.evidence) for name, header in files.items()}
        texts = dict.fromkeys(head.instruction for header in files.values() for head in header.episodes.values())
        verdict = weigh(evidence, texts, told)
        facts = {name: found.to_dict() for name, found in verdict.facts.items()}
        for name, found in facts.items():  # what `open` finds again, or the file is another one by then
            for head in list(files[name].episodes.values())[:1]:
                found["header"] = [head.instruction, evidence[name].convention]
        return Verdict(facts, verdict.refused, verdict.notes)

    @contextlib.contextmanager
    def open(self, path: Path, facts: Mapping[str, Any], told: Told) -> Iterator["OpenLibero"]:
        """See `pipelines.sources.source.Source`."""
        with hdf5.open_hdf5(path) as file, Stored(path) as stored:
            if "header" in facts:
                require_header(file, *facts["header"])
            yield OpenLibero(file, stored, Facts.from_dict(facts), told)


class OpenLibero:
    """An open file; what `episode` has read is not read again for its `fingerprint`."""

    def __init__(self, file: h5py.File, stored: Stored, facts: Facts, told: Told) -> None:
        self._file, self._stored, self._facts, self._told = file, stored, facts, told
        self._seen: tuple[str, Seen] | None = None

    def episode(self, name: str) -> Episode:
        """See `read_demo`."""
        seen = Seen()
        self._seen = (name, seen)
        facts = self._facts
        return read_demo(self._file, name, facts.convention, self._told.alignment, seen, facts.gripper)

    def fingerprint(self, name: str) -> str:
        """See `pipelines.sources.fingerprint`."""
        seen = self._seen[1] if self._seen is not None and self._seen[0] == name else None
        return fingerprint_demo(self._file, name, self._stored, seen)


LIBERO_SOURCE: Final = LiberoSource()
