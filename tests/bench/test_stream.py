"""The loading benchmark reports what it measured; the peer makes the same transitions as the loader."""

import json
from pathlib import Path

import pytest

from statevla.bench import stream
from statevla.bench.machine import describe_machine
from statevla.bench.stream import bench_stream
from statevla.bench.stream_peers import stream_peers
from statevla.config import DataConfig
from stores.errors import UsageError
from stores.reader import Store
from tests.stores.make_store import make_tiny_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "store"
    make_tiny_store(path, episodes=8, frames=20, image=16)
    return path


def test_the_report_has_the_fixed_keys(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LEAST", 100)
    data = DataConfig(lanes=2, block_segments=1)
    result = bench_stream(store, batch_size=2, repeats=1, threads=1, peer=False, data=data)
    assert set(result) == {"name", "unit", "ours", "limit", "ratio", "peers", "machine", "details"}
    assert result["ratio"] == result["ours"] / result["limit"]
    assert result["ours"] > 0
    json.dumps(result, allow_nan=False)


def test_a_store_that_is_held_as_a_whole_tells_nothing_of_a_stream(store: Path) -> None:
    with pytest.raises(UsageError, match=r"12 segments to train on, of which a stream holds 192: .*of 384 or more"):
        bench_stream(store, peer=False)


def test_the_peers_meet_every_transition_of_the_train_split(store: Path) -> None:
    opened = Store.open(store)
    episodes = opened.episode_columns
    train = episodes["split"].astype(str) == "train"
    wanted = sum(min(s, f - 1) for s, f in zip(episodes["steps"][train], episodes["frames"][train], strict=True))
    with stream_peers(opened, 8, 1) as peers:
        found = {name: turn().samples for name, turn in peers.items()}
    assert list(found.values()) == [wanted] * 4
    assert [name.partition(",")[0] for name in found] == [
        "webdataset + PIL", "webdataset + simplejpeg", "webdataset + simplejpeg", "decoded in memory",
    ]  # fmt: skip


def test_the_machine_is_named() -> None:
    machine = describe_machine()
    assert set(machine) == {"cpu", "cores", "gpu", "python", "torch"}
    assert machine["cores"] >= 1
