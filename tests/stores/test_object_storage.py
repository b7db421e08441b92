"""Reading stores from object storage: S3 by a local server, and fsspec's memory: same bytes, clear errors."""

import uuid
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from stores.cloud.publish import publish_store
from stores.cloud.storage import open_storage
from stores.errors import StoreError
from stores.reader import Store
from stores.verify import verify_store
from tests.stores.make_store import make_tiny_store, manifest_hash


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
    assert remote.content_hash == here.content_hash
    for i in range(len(here)):
        np.testing.assert_array_equal(remote.decode_segment(i), here.decode_segment(i))
    np.testing.assert_array_equal(remote.frames["robot_state"], here.frames["robot_state"])
    assert verify_store(open_storage(url, **options)) == []


def test_missing_bucket_credentials_and_kind_are_said(
    s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="bucket"):
        Store.open("s3://no-such-bucket/store", **s3)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"s3://robots/store.*no credentials were found: set AWS_ACCESS_KEY_ID"):
        Store.open("s3://robots/store", endpoint_url=s3["endpoint_url"], skip_instance_cache=True)
    with pytest.raises(StoreError, match="nosuchkind"):
        Store.open("nosuchkind://robots/store")


def test_damage_in_a_bucket_is_refused(local: Path, s3: dict[str, Any]) -> None:
    url = f"s3://robots/{uuid.uuid4().hex}"
    publish_store(local, url, **s3)
    files, path = fsspec.core.url_to_fs(url, **s3)
    shard = next(name for name in files.find(path) if name.endswith(".tar"))
    content = bytearray(files.cat_file(shard))
    content[len(content) // 3] ^= 1
    files.pipe_file(shard, bytes(content))
    problems = verify_store(open_storage(url, **s3))
    assert [problem.object for problem in problems] == [shard.removeprefix(f"{path}/").partition("/")[2]]
    store = Store.open(url, **s3)
    with pytest.raises(StoreError, match=r"\.tar"):
        [store.decode_segment(i) for i in range(len(store))]
