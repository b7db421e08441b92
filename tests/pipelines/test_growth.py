"""What a run does with its units is linear in their number: twice the units, at most about twice the function calls."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pipelines.ingest.commit import Commit
from pipelines.ingest.config import IngestConfig, IngestPlan, plan_ingest
from pipelines.ingest.describe import split_of
from pipelines.ingest.driver import ingest
from pipelines.ingest.merge import UnitFacts, unit_facts
from pipelines.ingest.ownership import Holdings, remove_leftovers, require_own_folder, write_claim
from pipelines.ingest.record import read_record, write_record
from statevla.encoders.table import load_text_encoder
from stores.cloud.storage import LocalStorage
from stores.disk import durable
from stores.disk.sync import Together
from stores.verify import verify_store
from tests.pipelines.make_hdf5 import demo_arrays, make_world, write_file

SIZES = (30, 60)
MOST = 2.2
"""Of twice the units; a quadratic part as large as the linear one would give 3."""


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(durable.NO_FSYNC, "1")


def calls_of(work: Callable[[], Any]) -> int:
    """Functions that `work` enters in this thread, of Python's and of C."""
    count = 0

    def note(_: FrameType, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


Made = tuple[IngestConfig, IngestPlan, list[UnitFacts]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Made]:
    """Folders with so many finished units, all alike but for their names, and no manifest yet."""
    base = tmp_path_factory.mktemp("growth")
    write_file(base / "source/t_demo.hdf5", {"demo_0": demo_arrays(make_world(0, steps=5, side=16))}, "do it")
    config = IngestConfig("toy", base / "source", base / "one", language="hashed")
    with durable.unsafe_without_fsync():
        ingest(config, isolated=False)
        plan = plan_ingest(config, isolated=False)
        name = plan.units[0].name
        record = read_record(base / "one", name)
        assert record is not None
        shard, key = (base / "one" / record["shard"]["path"]).read_bytes(), record.pop("key")
        found = {}
        for size in SIZES:
            root = base / str(size)
            units = []
            for number in range(size):
                unit = f"unit-{number:04d}"
                (episode,) = record["episodes"]
                episode = {**episode, "id": f"t_demo/demo_{number}", "content": str(number)}
                path = f"shards/{unit}.tar"
                made = {**record, "unit": unit, "shard": {**record["shard"], "path": path}, "episodes": [episode]}
                durable.write_bytes(root / path, shard)
                write_record(root, unit, key, made)
                units.append(unit_facts(made, "t_demo.hdf5"))
            found[size] = replace(config, out=root), plan, units
    return found


def grown(made: dict[int, Made], work: Callable[[Made], Callable[[], Any]]) -> float:
    few, many = (calls_of(work(made[size])) for size in SIZES)
    return many / few


def held_of(units: list[UnitFacts]) -> Holdings:
    return Holdings(frozenset(unit.name for unit in units), {})


def test_merge_and_commit_are_linear(made: dict[int, Made]) -> None:
    encoder = load_text_encoder("hashed", None)
    sources = {"t_demo.hdf5": {"bytes": 1, "fingerprint": "x", "sha256": None}}

    def commit(part: Made) -> Callable[[], Any]:
        config, plan, units = part

        def work() -> None:
            split = split_of(config, plan, units)
            write_claim(config.out, config.suite, held_of(units))
            require_own_folder(config.out)
            ready = Commit(config, plan, encoder, units, split, sources, frozenset(), True, held_of(units))
            ready.write(Together())

        return work

    assert grown(made, commit) < MOST
    assert {problem.object for problem in verify_store(made[SIZES[0]][0].out)} <= {".ingest.json"}


def test_removal_of_leftovers_is_linear(made: dict[int, Made], tmp_path: Path) -> None:
    def remove(part: Made) -> Callable[[], Any]:
        _, _, units = part
        root = tmp_path / str(len(units))
        for unit in units:
            for path in (f"shards/{unit.name}.tar", f"units/{unit.name}.json"):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(b"")
        return lambda: remove_leftovers(root, held_of(units).units, {f"shards/{units[0].name}.tar"})

    assert grown(made, remove) < MOST
    assert sorted(os.listdir(tmp_path / str(SIZES[0]) / "shards")) == [f"{made[SIZES[0]][2][0].name}.tar"]


def test_a_listing_asks_for_folders_not_for_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        durable.write_bytes(tmp_path / f"shards/{number}.tar", b"x")
    asked: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (asked.append(str(path)), scan(path))[1])
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("one by one"))
    assert len(LocalStorage(tmp_path).sizes()) == 300
    assert len(asked) == 2
