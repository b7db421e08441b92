"""Shards from end to end: the rows that the index gives, each once a pass; errors and no gaps; both phases train."""

import itertools
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli import app
from statevla.bench.far import LATENCY, serve_folder
from statevla.config import DataConfig
from statevla.data.batch import Batch
from statevla.data.loaders import iterate_once
from statevla.data.needs import NOW, PAIRS, Needs
from statevla.data.prefetch import Position
from statevla.data.sequential import START, SequentialLoader
from statevla.trainers.trainer import train
from stores.cloud import again
from stores.cloud.publish import publish_store
from stores.errors import ConnectionLost, StoreCorrupt, UsageError
from stores.reader import Store
from tests.stores.make_store import make_tiny_store
from tests.test_loaders import CHUNK, tensors
from tests.trainers.micro import micro_config, micro_store

pytest.importorskip("webdataset")

DATA = DataConfig(stream="sequential", shuffle_buffer=24, loader_threads=1)
Rows = dict[tuple[int, int], list[torch.Tensor]]


def make(path: Path) -> Path:
    make_tiny_store(path, episodes=8, frames=21, image=16, window=8, chunk=CHUNK)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(make(tmp_path_factory.mktemp("sequential") / "store"))


def loader(store: Store, needs: Needs = PAIRS, data: DataConfig = DATA, **more: int) -> SequentialLoader:
    return SequentialLoader(store, "train", 8, 3, data, CHUNK, needs, **more)


def rows(batches: Iterator[Batch]) -> list[tuple[tuple[int, int], list[torch.Tensor]]]:
    found = []
    for batch in batches:
        for row, key in enumerate(zip(batch.episode.tolist(), batch.frame.tolist(), strict=True)):
            found.append((key, [tensor[row] for tensor in tensors(batch)]))
    return found


def taken(source: SequentialLoader, count: int, start: Position = START) -> list[tuple[Position, Batch]]:
    batches = source.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


@pytest.mark.parametrize("needs", [PAIRS, NOW])
def test_a_pass_has_every_row_once_as_the_index_gives_it(store: Store, needs: Needs) -> None:
    wanted: Rows = dict(rows(iterate_once(store, "train", 8, CHUNK, needs=needs)))
    source = loader(store, needs)
    got = taken(source, source.batches_per_epoch + 1)
    assert [where for where, _ in got[-2:]] == [Position(1, 0), Position(1, 1)]
    found = rows(batch for _, batch in got)[: len(wanted)]
    assert {key for key, _ in found} == set(wanted)
    assert [key for key, _ in found] != sorted(wanted)
    for key, values in found:
        assert all(torch.equal(one, two) for one, two in zip(values, wanted[key], strict=True))


def test_ranks_and_processes_share_the_shards(store: Store) -> None:
    whole = {key for key, _ in rows(iterate_once(store, "train", 8, CHUNK, needs=PAIRS))}
    parts = []
    for rank in range(2):
        source = loader(store, rank=rank, world=2)
        assert source.order.share == 4
        parts.append([key for key, _ in rows(batch for _, batch in taken(source, 5 * source.batches_per_epoch))])
    assert set(parts[0]) | set(parts[1]) == whole
    pass_ = min(len({key for key in whole if (key[0] < 4) == low}) for low in (True, False))  # of a shard
    assert not set(parts[0][:pass_]) & set(parts[1][:pass_])
    assert len(set(parts[0][:pass_])) == pass_
    two = loader(store, data=replace(DATA, loader_threads=5))
    assert two.processes == 2
    assert {key for key, _ in rows(batch for _, batch in taken(two, 3 * two.batches_per_epoch))} == whole


def test_the_order_is_that_of_the_start_and_another_one_after_it(store: Store) -> None:
    source = loader(store)
    first, again_, later = (
        [key for key, _ in rows(batch for _, batch in taken(source, 4, at))]
        for at in (Position(0, 0), Position(0, 0), Position(0, 4))
    )
    assert first == again_
    assert first != later


def test_from_object_storage_come_the_same_rows_in_processes_of_their_own(
    tmp_path: Path, s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path / "store")
    url = f"s3://robots/{uuid.uuid4().hex}"
    publish_store(made, url, **s3)
    here, there = Store.open(made), Store.open(url, **s3)
    two = replace(DATA, loader_threads=5)
    for data in (DATA, two):
        wanted, found = (rows(batch for _, batch in taken(loader(store, data=data), 6)) for store in (here, there))
        assert [key for key, _ in found] == [key for key, _ in wanted]
        for (_, one), (_, other) in zip(wanted, found, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for name, option in {"ENDPOINT_URL": "endpoint_url", "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", s3[option])
    config = micro_config("training.max_steps=3", "data.stream=sequential", "data.shuffle_buffer=24")
    far = f"s3://robots/{uuid.uuid4().hex}"
    done = CliRunner().invoke(app, ["publish", str(micro_store(tmp_path / "micro")), far])  # with its statistics
    assert done.exit_code == 0, done.output
    assert train("temporal_jepa", config, far, tmp_path / "run").steps == 3


def test_over_a_network_connections_that_break_cost_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "WAITS", [0.0] * 3)
    wanted = [key for key, _ in rows(batch for _, batch in taken(loader(store), 6))]
    with serve_folder(Path(store.root), LATENCY) as server:
        source = loader(Store.open(server.url))
        server.drops = 2
        assert [key for key, _ in rows(batch for _, batch in taken(source, 6))] == wanted
        assert server.drops == 0
        server.drops = 10**6
        with pytest.raises(ConnectionLost, match=r"\.tar cannot be read: .*nothing was skipped"):
            taken(source, 60)


@pytest.mark.parametrize("damage", ["flipped", "short", "cut between samples"])
def test_a_damaged_shard_ends_the_run_by_name(tmp_path: Path, damage: str) -> None:
    opened = Store.open(make(tmp_path / "store"))
    shard = Path(opened.root, loader(opened).shards[0])
    data = bytearray(shard.read_bytes())
    if damage == "flipped":
        data[257 + 512 + 40] ^= 1
    shard.write_bytes(data[: -1024 - 512] if damage == "short" else data[:0] + bytes(1024) if "cut" in damage else data)
    with pytest.raises(StoreCorrupt, match=rf"{shard.parent.parent}: .*statevla verify") as raised:
        taken(loader(opened), 60)
    assert "\n" not in str(raised.value)
    assert shard.name in str(raised.value)


def test_what_it_cannot_give_is_refused_by_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for change, key in (
        ({"features": "half"}, "data.features"),
        ({"cache": "decoded"}, "data.cache"),
        ({"oversample_gripper": 3}, "data.oversample_gripper"),
        ({"labelled_share": 0.5, "unlabelled": "keep", "labelled_times": 3}, "data.labelled_times"),
    ):
        with pytest.raises(UsageError, match=rf"{key}: .*data\.stream=indexed does"):
            loader(store, data=replace(DATA, **change))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="goals are other frames"):
        loader(store, Needs(goal="final"))
    with pytest.raises(UsageError, match=f"more than the {CHUNK} actions that the shards hold"):
        SequentialLoader(store, "train", 8, 3, DATA, CHUNK + 1, PAIRS)
    with pytest.raises(UsageError, match="8 is not shared equally by 3 ranks"):
        loader(store, world=3)
    with pytest.raises(UsageError, match="has 2 of split 'train', fewer than 4 ranks"):
        loader(store, world=4)
    with pytest.raises(UsageError, match="more than the"):
        SequentialLoader(store, "train", 4096, 3, DATA, CHUNK, PAIRS)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UsageError, match=r"not installed: pip install 'statevla\[stream\]'"):
        loader(store)


def test_both_phases_train_and_go_on(tmp_path: Path) -> None:
    root, said = micro_store(tmp_path / "store"), []
    keys = ("data.stream=sequential", "data.loader_threads=1")
    train("temporal_jepa", micro_config("training.max_steps=3", *keys), root, tmp_path / "run")
    longer = micro_config("training.max_steps=5", *keys)
    assert train("temporal_jepa", longer, root, tmp_path / "run", resume=True).steps == 5
    encoder = tmp_path / "run/checkpoints/phase1_temporal_jepa/checkpoint_latest"
    summary = train(
        "flow_matching", longer, root, tmp_path / "run", encoder_checkpoint=encoder, progress=lambda e: said.append(e)
    )
    assert summary.steps == 5
    assert any("begins another pass" in str(event.message) for event in said)
    assert not (root / "latents").exists()
