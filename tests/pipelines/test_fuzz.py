"""HDF5 files with damaged bytes: no crash of the run, no hang, and no wrong episode that the parser could have known.

The numbers and images of a file carry no checksum, so damage *inside* them cannot be known; nor that in the address of
an unchunked array, where it still points at bytes of the file that nothing else claims. Everything else can: where
only other bytes were changed, an episode must come out exactly as it was, or be refused. `pytest -m slow` makes 1,500
mutants, the default run 60.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipelines.ingest.plan import Unit
from pipelines.sources import hdf5, pulse, ranges
from pipelines.sources import sandbox as isolation
from pipelines.sources.evidence import Told
from pipelines.sources.fingerprint import DATASETS
from pipelines.sources.libero_demo import read_demo
from pipelines.sources.reading import CALLS, inspect_source
from stores.errors import SourceError
from stores.spec import LIBERO
from tests.pipelines.make_hdf5 import MODEL_XML, demo_arrays, make_world, write_file

DEMOS = 2
KINDS = ("contiguous", "gzip")


@dataclass(frozen=True)
class Original:
    """A sound file: its bytes, what may change unnoticed (a mask), and what its demonstrations say."""

    data: bytes
    content: np.ndarray
    episodes: tuple[dict[str, list[float]], ...]


def read_everything(argument: dict) -> dict[str, dict[str, list[float]]]:
    """In the child: all of a demonstration that ingest would use, as plain numbers."""
    path = Path(argument["path"])
    found: dict[str, dict[str, list[float]]] = {}
    with hdf5.open_hdf5(path) as file:
        for position, demo in enumerate(argument["demos"], 1):
            pulse.at(position)
            try:
                if str(position) in argument["poison"]:
                    raise SourceError(argument["poison"][str(position)])
                episode = read_demo(file, demo, argument["convention"])
                images = {name: episode.images(name, 0, len(episode.robot_state), None) for name in LIBERO.camera_names}
            except SourceError:
                continue
            arrays = {"state": episode.robot_state, "action": episode.action, **images}
            found[demo] = {name: array.ravel().tolist() for name, array in arrays.items()}
    return found


@pytest.fixture(scope="module", params=KINDS)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Original:
    path = tmp_path_factory.mktemp("original") / "t_demo.hdf5"
    demos = {f"demo_{n}": demo_arrays(make_world(n, steps=12, side=8)) for n in range(DEMOS)}
    write_file(path, demos)
    if request.param == "gzip":
        with h5py.File(path, "r+") as file:
            for demo in file["data"].values():
                for key in ("obs/agentview_rgb", "obs/eye_in_hand_rgb", "actions"):
                    values = demo[key][()]
                    del demo[key]
                    demo.create_dataset(key, data=values, chunks=(4, *values.shape[1:]), compression="gzip")
    data = path.read_bytes()
    content = np.zeros(len(data), bool)
    with h5py.File(path) as file:
        for demo in file["data"].values():
            for key in DATASETS:
                for begin, end in ranges.stored_ranges(hdf5.Rows(demo[key].id)):
                    content[begin:end] = True
                    place = (begin.to_bytes(8, "little") + (end - begin).to_bytes(8, "little"), 8)
                    _mark(content, data, *place)
    for text in (MODEL_XML.encode(), b"pick the mug"):
        _mark(content, data, text, len(text))
    names = [f"demo_{n}" for n in range(DEMOS)]
    argument = {"path": str(path), "demos": names, "convention": "opengl", "poison": {}}
    return Original(data, content, tuple(read_everything(argument)[name] for name in names))


def _mark(content: np.ndarray, data: bytes, wanted: bytes, count: int) -> None:
    at = data.find(wanted)
    while at >= 0:
        content[at : at + count] = True
        at = data.find(wanted, at + 1)


def mutants(original: Original, count: int) -> Iterator[tuple[str, bytes, bool]]:
    """(what was done, bytes, whether only bytes outside numbers, images and texts were changed)."""
    rng = np.random.default_rng(20261120 + count)
    outside = np.flatnonzero(~original.content)
    # Most of what lies outside is zero padding; the rest is where HDF5's structures are.
    busy = outside[np.frombuffer(original.data, np.uint8)[outside] != 0]
    for number in range(count):
        data = bytearray(original.data)
        kind = ("bit", "byte", "run", "zeros", "cut", "swap", "anywhere")[number % 7]
        at = int(rng.choice(busy if rng.random() < 0.8 else outside))
        if kind == "bit":
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == "byte":
            data[at] = int(rng.integers(256))
        elif kind == "run":
            data[at : at + 8] = rng.bytes(len(data[at : at + 8]))
        elif kind == "zeros":
            data[at : at + 16] = bytes(len(data[at : at + 16]))
        elif kind == "cut":
            del data[int(rng.integers(len(data))) :]
        elif kind == "swap":
            other = int(rng.choice(busy))
            data[at], data[other] = data[other], data[at]
        else:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        changed = np.ones(len(original.data), bool)
        changed[: len(data)] = np.frombuffer(data, np.uint8) != np.frombuffer(original.data, np.uint8)[: len(data)]
        yield f"{number} {kind} at {at}", bytes(data), not (changed & original.content).any()


def fuzz(original: Original, folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Outcomes by kind: episodes that came out right, were refused, killed the child, or hold changed numbers."""
    monkeypatch.setattr(isolation, "SILENCE_SECONDS", 20.0)
    monkeypatch.setitem(CALLS, "everything", read_everything)
    isolation.end_thread_reader()
    path = folder / "t_demo.hdf5"
    outcomes: Counter[str] = Counter()
    try:
        for label, data, structure_only in mutants(original, count):
            path.write_bytes(data)
            outcomes["mutants"] += 1
            try:
                header = inspect_source(path, "libero", Told())
                argument = {"path": str(path), "demos": list(header.episodes), "convention": "opengl"}
                found = isolation.survive(isolation.thread_reader(CALLS), "everything", argument, path.name)
            except SourceError as error:
                outcomes["file killed the reader" if "process reading it" in str(error) else "file refused"] += 1
                continue
            outcomes["demonstrations refused"] += len(header.refused) + len(header.episodes) - len(found)
            right = [episode in original.episodes for episode in found.values()]
            outcomes["episodes as they were"] += sum(right)
            outcomes["episodes with damaged numbers, which nothing shows"] += len(right) - sum(right)
            if structure_only:
                assert all(right), f"{label}: a wrong episode came out"
                assert len({str(episode["state"]) for episode in found.values()}) == len(found), f"{label}: twice"
    finally:
        isolation.end_thread_reader()
    return outcomes


@pytest.mark.parametrize("count", [30, pytest.param(750, marks=pytest.mark.slow)])
def test_damaged_files(
    original: Original, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest, record_property,
) -> None:  # fmt: skip
    outcomes = fuzz(original, tmp_path, count, monkeypatch)
    for name, number in outcomes.items():
        record_property(name, number)
    print(request.node.callspec.id, dict(outcomes))
    assert outcomes["mutants"] == count
    assert outcomes["episodes as they were"] > 0
    assert outcomes["file refused"] + outcomes["demonstrations refused"] > 0


def test_a_unit_made_twice_from_a_sound_file_is_the_reference(original: Original, tmp_path: Path) -> None:
    """The comparison itself: undamaged bytes give every episode as it was."""
    path = tmp_path / "t_demo.hdf5"
    path.write_bytes(original.data)
    unit = Unit("t-000", path.name, tuple(f"demo_{n}" for n in range(DEMOS)))
    found = read_everything({"path": str(path), "demos": unit.demos, "convention": "opengl", "poison": {}})
    assert tuple(found.values()) == original.episodes
