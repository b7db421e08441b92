"""A real ingest, its statistics and its language cache, crashed at every operation: complete or no store, and a rerun
gives the bytes of an undisturbed one.

By default every 23rd operation, for seconds; `pytest -m crash` enumerates them all.
"""

import contextlib
import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.derive.language import write_instructions
from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from statevla.encoders.table import load_text_encoder
from stores.disk import durable
from stores.disk.lock import LOCK_NAME, lock
from stores.errors import SourceError, StoreMissing
from stores.language import LanguageCache
from stores.manifest import Manifest
from stores.spec import LIBERO
from stores.statistics import load_stats
from stores.verify import verify_store
from tests.pipelines.make_hdf5 import demo_arrays, make_world, write_file
from tests.stores.faults import FAULTS, STRIDES, every_crash, every_pair, read_tree

pytestmark = pytest.mark.crash
ALL = pytest.param(1, marks=pytest.mark.slow, id="every operation")
SOME = pytest.param(23, id="some operations")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault model decides what is durable; the test machine's own disk need not be waited for."""
    monkeypatch.setenv(durable.NO_FSYNC, "1")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of one short demonstration each: two units."""
    folder = tmp_path_factory.mktemp("source")
    for task in range(2):
        arrays = demo_arrays(make_world(task, steps=5, side=8))
        write_file(folder / f"task_{task}_demo.hdf5", {"demo_0": arrays}, f"do task {task}")
    return folder


def run(source: Path, out: Path, window: int = 3) -> None:
    ingest(IngestConfig("toy", source, out, language="hashed", window=window), isolated=False)


def without_leftovers(root: Path) -> list[str]:
    return [problem.object for problem in verify_store(root) if "interrupted writer" not in problem.problem]


@pytest.mark.parametrize("stride", [SOME, ALL])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("over", ["nothing", "another configuration"])
def test_ingest(tmp_path: Path, source: Path, over: str, fault: str, stride: int) -> None:
    run(source, tmp_path / "old", window=2)

    def prepare(disk: Path) -> None:
        if over != "nothing":
            shutil.copytree(tmp_path / "old", disk / "store")

    def work(disk: Path) -> None:
        run(source, disk / "store")

    found = Counter[str]()
    name = f"ingest over {over}" + ("" if stride == 1 else f", every {stride}rd operation")
    for crash, disk in every_crash(tmp_path / "crash", prepare, work, [fault], name, stride):
        try:
            assert without_leftovers(disk / "store") == [], crash
            found["complete"] += 1
        except StoreMissing:
            found["no store yet"] += 1
        work(disk)
        assert read_tree(disk) == read_tree(tmp_path / "crash/undisturbed"), crash
    if stride == 1:
        assert found["no store yet"] > 0
        assert found["complete"] > 0 or fault in ("torn", "enospc")


PAIRS = [
    *((first, then) for first in ("kill", "torn", "enospc") for then in ("power", "power_data", "kill")),
    ("none", "power"),
    ("none", "power_data"),
]
OVER = ("nothing", "another configuration")
MANY = [
    pytest.param(over, faults, (12, 8), marks=pytest.mark.slow, id=f"over {over}, {' then '.join(faults)}")
    for over in OVER
    for faults in PAIRS
]
FEW = [
    pytest.param("nothing", faults, (1, 2), id=f"some, {' then '.join(faults)}")
    for faults in (("kill", "power_data"), ("none", "power"))
]


@pytest.mark.parametrize(("over", "faults", "places"), [*FEW, *MANY])
def test_two_faults(tmp_path: Path, source: Path, over: str, faults: tuple[str, str], places: tuple[int, int]) -> None:
    """ "none": the first run is refused by ``--strict`` when its shards are there. A rerun that ended well is
    believed: a power loss after it takes nothing.
    """
    run(source, tmp_path / "old", window=2)
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    arrays = demo_arrays(make_world(9, steps=5, side=8))
    arrays["actions"][1] = float("nan")
    write_file(broken / "task_9_demo.hdf5", {"demo_0": arrays}, "do task 9")

    def prepare(disk: Path) -> None:
        if over != "nothing":
            shutil.copytree(tmp_path / "old", disk / "a/store")

    def again(disk: Path) -> None:
        run(source, disk / "a/store")

    def refused(disk: Path) -> None:
        config = IngestConfig("toy", broken, disk / "a/store", language="hashed", window=3)
        with contextlib.suppress(SourceError):
            ingest(config, isolated=False, strict=True)

    run(source, tmp_path / "whole/a/store")
    first = refused if faults[0] == "none" else again
    name = f"ingest over {over}, two faults" + ("" if places[0] > 1 else ", some")
    found = Counter[bool]()
    pairs = every_pair(tmp_path / "crash", prepare, first, again, faults, name, places)
    for crash, ended, disk in pairs:
        try:
            assert without_leftovers(disk / "a/store") == [], crash
            found[True] += 1
        except StoreMissing:
            assert not ended, f"{crash}: a run that ended well left no store"
            found[False] += 1
        again(disk)
        assert read_tree(disk) == read_tree(tmp_path / "whole"), crash
    assert found[True]
    assert found[False] or places[0] == 1


def enumerate_writer(
    tmp_path: Path,
    store: Path,
    name: str,
    work: Callable[[Path], None],
    check: Callable[[Path], None],
    stride: int = 1,
) -> None:
    """Crash `work` at every operation on a copy of `store`; `check` what is there before the rerun."""

    def prepare(disk: Path) -> None:
        shutil.copytree(store, disk / "store")

    def locked(disk: Path) -> None:
        work(disk / "store")

    for crash, disk in every_crash(tmp_path, prepare, locked, name=name, stride=stride):
        check(disk / "store")
        locked(disk)
        left = read_tree(disk)
        left.pop(f"store/{LOCK_NAME}", None)  # of the dead; a rerun that finds its work done takes no lock
        assert left == read_tree(tmp_path / "undisturbed"), crash


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    root = tmp_path_factory.mktemp("made") / "store"
    run(source, root)
    return root


@STRIDES
def test_statistics(tmp_path: Path, store: Path, stride: int) -> None:
    digest = Manifest.load(store).content_hash

    def check(root: Path) -> None:
        assert without_leftovers(root) == []
        with contextlib.suppress(StoreMissing):  # another damage raises
            load_stats(root, digest)

    enumerate_writer(tmp_path, store, "statistics", lambda root: compute_statistics(root) and None, check, stride)


def test_language_cache(tmp_path: Path, store: Path) -> None:
    encoder = load_text_encoder("hashed", None)
    texts = [["do task 0", "do task 1"], ["do task 0", "do task 1", "another"]]

    def work(root: Path) -> None:
        with lock(root, "test"):
            write_instructions(root / "language.parquet", texts[1], encoder)

    def check(root: Path) -> None:
        assert sorted(LanguageCache.load(root, LIBERO.language_width).vectors) in [sorted(known) for known in texts]

    enumerate_writer(tmp_path, store, "language cache", work, check)


@STRIDES
def test_manifest(tmp_path: Path, store: Path, stride: int) -> None:
    old = Manifest.load(store)
    new = dataclasses.replace(old, suite="renamed")

    def work(root: Path) -> None:
        with lock(root, "test"):
            new.save(root)

    def check(root: Path) -> None:
        assert Manifest.load(root) in (old, new)
        assert without_leftovers(root) == []

    enumerate_writer(tmp_path, store, "manifest", work, check, stride)
