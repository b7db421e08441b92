"""Batches of a store that is far, by HTTP and from S3, each answer after 50 ms: the same, none skipped, or an error."""

import itertools
import shutil
import socket
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from statevla.bench.far import LATENCY, FolderServer, serve_folder, serve_s3
from statevla.config import DataConfig
from statevla.data.batch import Batch
from statevla.data.loaders import SegmentLoader, SplitReader
from statevla.data.needs import NOW, PAIRS, Needs
from statevla.data.prefetch import AHEAD_BATCHES, READY_BATCHES
from statevla.data.remote import open_cache, open_to_train
from stores.cloud import again, storage
from stores.cloud.cache import CachedStorage
from stores.cloud.publish import publish_store
from stores.cloud.storage import open_storage
from stores.errors import ConnectionLost, StoreCorrupt, StoreError, UsageError
from stores.reader import Store
from tests.stores.make_store import make_tiny_store
from tests.test_loaders import CHUNK, DATA, same


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("far") / "store"
    make_tiny_store(root, episodes=8, frames=21, image=16, window=8, chunk=CHUNK)
    return Store.open(root)


@pytest.fixture
def far(tmp_path: Path) -> DataConfig:
    return replace(DATA, remote_cache=str(tmp_path / "cache"), remote_cache_gib=0.5)


@pytest.fixture
def web(here: Store) -> Iterator[FolderServer]:
    with serve_folder(Path(here.root)) as server:
        yield server


def compare(here: Store, store: Store, data: DataConfig, epochs: int = 1, of: tuple[Needs, ...] = (PAIRS, NOW)) -> None:
    """Training batches and a pass over validation are those of the folder, in the same order."""
    for needs in of:
        mine, theirs = (SegmentLoader(s, "train", 8, 3, d, CHUNK, needs) for s, d in ((here, DATA), (store, data)))
        count = epochs * mine.batches_per_epoch
        for one, two in itertools.islice(zip(mine.batches(), theirs.batches(), strict=True), count):
            assert one[0] == two[0]
            assert same(one[1], two[1])
    passes = [SplitReader(s, "val", 8, CHUNK, d) for s, d in ((here, DATA), (store, data))]
    for one, two in zip(passes[0].batches(), passes[1].batches(), strict=True):
        assert same(one, two)


def test_by_http_from_afar(here: Store, web: FolderServer, far: DataConfig) -> None:
    web.latency = LATENCY
    said: list[str] = []
    store = open_to_train(web.url, far, said.append)
    assert f"kept in {far.remote_cache}, up to 0.5 GiB (data.remote_cache" in said[0]
    compare(here, store, far, epochs=2)
    asked = [request for request in web.served if ".tar" in request[0]]
    assert len(asked) == len(set(asked)), "a range was asked for twice"
    web.served.clear()
    compare(here, open_to_train(web.url, replace(far, loader_threads=1), said.append), far)
    assert [path for path, _ in web.served if ".tar" in path] == []  # another run on this machine finds them all


def test_from_s3_from_afar(here: Store, far: DataConfig, s3: dict[str, Any]) -> None:
    url = f"s3://robots/{uuid.uuid4().hex}"
    publish_store(here.root, url, **s3)
    with serve_s3(LATENCY) as slow:  # another door to the same buckets
        storage = open_storage(url, **{**s3, "endpoint_url": slow})
        compare(here, Store.open(CachedStorage(storage, open_cache(far))), far, of=(PAIRS,))


def test_a_cache_of_hardly_any_room_costs_requests_and_nothing_else(
    here: Store, web: FolderServer, far: DataConfig
) -> None:
    small = replace(far, remote_cache_gib=60_000 / 2**30)
    store = open_to_train(web.url, small, lambda text: None)
    compare(here, store, small, epochs=2)
    assert open_cache(small).bytes() <= 60_000


@pytest.mark.parametrize("fault", ["drops", "shorts"])
def test_answers_that_break_off_or_hold_less_are_asked_for_again_and_no_sample_is_skipped(
    here: Store, web: FolderServer, far: DataConfig, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Less, with a length that is right for it: a server gives part of a range, or a proxy lost the rest."""
    monkeypatch.setattr(again, "WAITS", [0.0] * 5)
    store = open_to_train(web.url, far, lambda text: None)
    setattr(web, fault, 5)
    compare(here, store, far)
    assert getattr(web, fault) == 0


def test_answers_that_always_hold_less_are_a_lost_connection(
    web: FolderServer, far: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "WAITS", [0.0] * 5)
    store = open_to_train(web.url, far, lambda text: None)
    web.shorts = 10**6
    with pytest.raises(ConnectionLost, match=r"expected \d+ bytes at \d+, got \d+.*asked for 6 times"):
        store.read_segment(0)


def test_a_server_that_takes_requests_and_answers_none_is_a_lost_connection(
    here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "WAITS", [0.0])
    monkeypatch.setattr(storage, "SILENT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system takes the connection, and nobody reads it
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionLost, match=r"manifest.json cannot be read: .*asked for 2 times"):
            Store.open(url)


def test_an_object_that_ends_there_is_damaged_and_said_at_once(here: Store, tmp_path: Path) -> None:
    copy = shutil.copytree(here.root, tmp_path / "copy")
    with serve_folder(copy) as web:
        store = Store.open(web.url)
        web.served.clear()
        store.read_segment(0)
        path, asked = web.served[-1]
        first = int(str(asked).removeprefix("bytes=").split("-")[0])
        shard = copy / path.lstrip("/")
        shard.write_bytes(shard.read_bytes()[: first + 7])
        web.served.clear()
        with pytest.raises(StoreCorrupt, match=rf"{path[1:]} is too short: expected \d+ bytes at {first}, got 7"):
            store.read_segment(0)
        assert len([request for request in web.served if request[0] == path]) <= 3


def test_a_connection_that_stays_away_ends_the_epoch_with_a_clear_error(
    here: Store, web: FolderServer, far: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "WAITS", [0.0] * 2)
    store = open_to_train(web.url, far, lambda text: None)
    wanted = SegmentLoader(here, "train", 8, 3, DATA, CHUNK, NOW).batches()
    batches = SegmentLoader(store, "train", 8, 3, replace(far, cache_gib=0.0), CHUNK, NOW).batches()
    assert same(next(wanted)[1], next(batches)[1])
    web.drops = 10**6
    for entry in open_cache(far).files():
        Path(entry.path).unlink()
    got: list[Batch] = []
    with pytest.raises(ConnectionLost, match=r"\.tar cannot be read: .*nothing was skipped.*--resume"):
        got.extend(batch for _, batch in batches)
    assert len(got) <= AHEAD_BATCHES + READY_BATCHES + 2  # what was decoded by then
    assert all(same(one, two) for one, (_, two) in zip(got, wanted, strict=False))


def test_a_server_without_ranges_and_a_folder_that_cannot_be_written_are_said(
    here: Store, web: FolderServer, far: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from statevla.bench import far as servers

    monkeypatch.setattr(servers, "_RANGE", servers.re.compile("never"))
    with pytest.raises(StoreError, match=r"does not know byte ranges \(HTTP Range\)"):
        open_to_train(web.url, far, lambda text: None).read_segment(0)
    with pytest.raises(UsageError, match=r"data\.remote_cache: .*cannot be written \(Not a directory\)"):
        open_cache(replace(far, remote_cache=str(Path(here.root, "manifest.json"))))
