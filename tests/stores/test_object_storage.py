"""Stores in object storage: S3 by a local server, and fsspec's memory: same bytes, one winner, clear errors."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from stores.errors import StoreCorrupt, StoreError, StoreLocked, StoreMissing, UsageError
from stores.manifest import manifest_hash
from stores.publish import publish_store
from stores.reader import Store
from stores.storage import RemoteStorage
from stores.verify import verify_store
from tests.stores.make_store import make_tiny_store

moto_server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    """Options of fsspec for a local S3 with the bucket "robots"."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "test", "secret": "test", "endpoint_url": f"http://{host}:{port}"}
    fsspec.filesystem("s3", **options).mkdir("robots")
    yield options
    server.stop()


@pytest.fixture(params=["s3", "memory"])
def target(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A fresh URL and its options."""
    name = uuid.uuid4().hex
    return (f"s3://robots/{name}", request.getfixturevalue("s3")) if request.param == "s3" else (f"memory://{name}", {})


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("local") / "store"
    make_tiny_store(root, stats=False)
    return root


def test_a_published_store_reads_and_verifies_as_the_local_one(local: Path, target) -> None:
    url, options = target
    assert publish_store(local, url, **options) == manifest_hash(local)
    remote, here = Store.open(url, **options), Store.open(local)
    assert remote.manifest_hash == here.manifest_hash
    for i in range(len(here)):
        np.testing.assert_array_equal(remote.decode_segment(i), here.decode_segment(i))
    np.testing.assert_array_equal(remote.frames["robot_state"], here.frames["robot_state"])
    assert verify_store(RemoteStorage(url, **options)) == []


def test_publishing_again_changes_nothing_and_an_interrupted_copy_is_continued(local: Path, target) -> None:
    url, options = target
    publish_store(local, url, **options)
    files = fsspec.core.url_to_fs(url, **options)[0]
    path = fsspec.core.url_to_fs(url, **options)[1]
    files.rm(f"{path}/manifest.json")
    files.rm(f"{path}/episodes.parquet")
    files.invalidate_cache()
    with pytest.raises(StoreMissing, match="is not a store"):
        Store.open(url, **options)
    publish_store(local, url, **options)
    publish_store(local, url, **options)
    assert verify_store(RemoteStorage(url, **options)) == []


def test_another_store_at_the_same_place_is_refused_and_nothing_overwritten(
    local: Path, target, tmp_path: Path
) -> None:
    url, options = target
    publish_store(local, url, **options)
    make_tiny_store(tmp_path / "other", seed=5, stats=False)
    with pytest.raises(StoreLocked, match=r"differs: another store is.*choose another prefix"):
        publish_store(tmp_path / "other", url, **options)
    assert verify_store(RemoteStorage(url, **options)) == []
    assert manifest_hash(RemoteStorage(url, **options)) == manifest_hash(local)


def test_of_two_writers_at_once_one_wins(local: Path, s3: dict[str, Any], tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "other", seed=5, stats=False)
    url, start = f"s3://robots/{uuid.uuid4().hex}", threading.Barrier(2)

    def write(root: Path) -> str:
        start.wait()
        try:
            return publish_store(root, url, **s3)
        except StoreLocked:
            return "refused"

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(write, [local, tmp_path / "other"]))
    assert "refused" in ends
    winners = [end for end in ends if end != "refused"]
    if winners:  # both may lose, each having put an object first; then nothing is committed
        assert verify_store(RemoteStorage(url, **s3)) == []
        assert manifest_hash(RemoteStorage(url, **s3)) == winners[0]
    else:
        with pytest.raises(StoreMissing):
            Store.open(url, **s3)


def test_the_manifest_is_put_conditionally(s3: dict[str, Any]) -> None:
    remote = RemoteStorage(f"s3://robots/{uuid.uuid4().hex}", **s3)
    assert remote.create("manifest.json", b"first")
    assert not remote.create("manifest.json", b"second")
    assert remote.read("manifest.json") == b"first"


def test_a_damaged_local_store_is_not_published(target, tmp_path: Path) -> None:
    url, options = target
    make_tiny_store(tmp_path / "store", stats=False)
    path = tmp_path / "store/frames.zarr/action/c/0/0"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(StoreCorrupt, match=r"frames\.zarr/action"):
        publish_store(tmp_path / "store", url, **options)
    with pytest.raises(StoreMissing):
        Store.open(url, **options)


def test_missing_bucket_credentials_and_kind_are_said(
    local: Path, s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="bucket"):
        Store.open("s3://no-such-bucket/store", **s3)
    with pytest.raises(StoreError, match="bucket"):
        publish_store(local, "s3://no-such-bucket/store", **s3)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"s3://robots/store.*no credentials were found: set AWS_ACCESS_KEY_ID"):
        Store.open("s3://robots/store", endpoint_url=s3["endpoint_url"], skip_instance_cache=True)
    with pytest.raises(StoreError, match="nosuchkind"):
        Store.open("nosuchkind://robots/store")
    with pytest.raises(UsageError, match="expected a URL"):
        publish_store(local, str(tmp_path))


def test_damage_in_a_bucket_is_refused(local: Path, s3: dict[str, Any]) -> None:
    url = f"s3://robots/{uuid.uuid4().hex}"
    publish_store(local, url, **s3)
    files, path = fsspec.core.url_to_fs(url, **s3)
    shard = next(name for name in files.find(path) if name.endswith(".tar"))
    content = bytearray(files.cat_file(shard))
    content[len(content) // 3] ^= 1
    files.pipe_file(shard, bytes(content))
    problems = verify_store(RemoteStorage(url, **s3))
    assert [problem.object for problem in problems] == [shard.removeprefix(f"{path}/")]
    store = Store.open(url, **s3)
    with pytest.raises(StoreError, match=r"\.tar"):
        [store.decode_segment(i) for i in range(len(store))]
