"""Who makes a shard's content durable: its worker where the driver cannot, else the driver, many at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipelines.ingest.driver
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from pipelines.ingest.unit import UnitTask
from pipelines.sources.reading import make_here
from tests.pipelines.make_hdf5 import write_suite
from tests.stores.faults import operations


@pytest.fixture
def config(tmp_path: Path) -> IngestConfig:
    return IngestConfig("toy", write_suite(tmp_path / "source"), tmp_path / "store", language="hashed")


def fsyncs(seen: list[str]) -> list[str]:
    return [name for kind, name in map(str.split, seen) if kind == "fsync"]


def test_a_worker_elsewhere_makes_its_own_shard_durable(config: IngestConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[UnitTask] = []

    def note(task: UnitTask) -> Any:
        tasks.append(task)
        return make_here(task)

    monkeypatch.setattr(pipelines.ingest.driver, "make_here", note)
    ingest(config, isolated=False)
    for kernel, made_durable in ((tasks[0].kernel, 0), ("of another machine", 1)):
        task = replace(tasks[0], kernel=kernel)
        assert len(fsyncs(operations(lambda _, task=task: make_here(task), config.out))) == made_durable


def test_every_shard_is_durable_before_the_manifest_is_there(config: IngestConfig) -> None:
    seen = operations(lambda _: ingest(config, isolated=False), config.out)
    shards = {path.name for path in (config.out / "shards").iterdir()}
    until = next(i for i, name in enumerate(seen) if name.startswith("rename") and "manifest.json" in name)
    assert shards
    assert shards <= set(fsyncs(seen[:until]))
