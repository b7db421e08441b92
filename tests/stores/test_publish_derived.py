"""Derived folders go where their store is: sealed last, never over another one, read and verified there."""

import uuid
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from stores.arrays import ArraySpec, write_region
from stores.cloud.publish import publish_store
from stores.cloud.publish_derived import publish_derived
from stores.cloud.storage import open_storage
from stores.derived import begin, open_derived
from stores.errors import StoreCorrupt, StoreLocked, StoreMissing
from stores.kept import list_kept
from stores.manifest import content_hash
from stores.verify import verify_store
from tests.stores.make_store import make_tiny_store

SPEC = ArraySpec((4, 2), "float32", 2)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_tiny_store(tmp_path / "store", episodes=2)
    write(tmp_path / "store", "latents", "good", 1.0)
    write(tmp_path / "store", "decoded", "pictures", 1.0)
    begin(tmp_path / "store", "latents", "begun", made(tmp_path / "store", 2.0), {"z": SPEC})
    return tmp_path / "store"


def made(store: Path, value: float) -> dict[str, Any]:
    return {"content_hash": content_hash(store), "value": value}


def write(store: Path, kind: str, name: str, value: float) -> None:
    folder = begin(store, kind, name, made(store, value), {"z": SPEC})
    write_region(folder.root, "z", SPEC, 0, np.full((4, 2), value, np.float32))
    folder.commit({})


@pytest.fixture(params=["s3", "memory"])
def target(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    name = uuid.uuid4().hex
    return (f"s3://robots/{name}", request.getfixturevalue("s3")) if request.param == "s3" else (f"memory://{name}", {})


def test_what_is_finished_is_read_there_and_sent_once(store: Path, target: tuple[str, dict[str, Any]]) -> None:
    url, options = target
    with pytest.raises(StoreMissing, match="no store is there; run `statevla publish"):
        publish_derived(store, url, **options)
    publish_store(store, url, **options)
    sent = publish_derived(store, url, **options)
    assert sent[0] == "latents/good"
    assert [name.split("/")[0] for name in sent] == ["latents", "stats"]
    remote = open_storage(url, **options)
    found = open_derived(remote, "latents", made(store, 1.0), "", name="good")
    np.testing.assert_array_equal(found.array("z").read(), np.full((4, 2), 1.0))
    assert verify_store(remote) == []
    assert [item.path for item in list_kept(remote)] == sent
    files, path = fsspec.core.url_to_fs(url, **options)
    before = {
        name: info.get("LastModified", info.get("created")) for name, info in files.find(path, detail=True).items()
    }
    assert publish_derived(store, url, **options) == sent
    files.invalidate_cache()
    assert before == {
        name: info.get("LastModified", info.get("created")) for name, info in files.find(path, detail=True).items()
    }


def test_a_pointer_to_another_seal_than_lies_there_is_damage(store: Path, target: tuple[str, dict[str, Any]]) -> None:
    url, options = target
    publish_store(store, url, **options)
    publish_derived(store, url, **options)
    remote = open_storage(url, **options)
    register = remote.read("latents/good/manifest.json")
    at = register.rindex(b'"manifest": "') + len(b'"manifest": "')
    spoilt = register[:at] + (b"0" if register[at : at + 1] != b"0" else b"1") + register[at + 1 :]
    remote.files.pipe_file(f"{remote.path}/latents/good/manifest.json", spoilt)
    with pytest.raises(StoreCorrupt, match=r"latents/good/manifest.json: the pointer names a manifest of sha256"):
        open_derived(remote, "latents", made(store, 1.0), "", name="good")
    assert "latents/good/manifest.json" in {problem.object for problem in verify_store(remote)}


def test_another_one_of_that_name_stays_until_told(store: Path, target: tuple[str, dict[str, Any]]) -> None:
    url, options = target
    publish_store(store, url, **options)
    publish_derived(store, url, **options)
    write(store, "latents", "good", 3.0)
    with pytest.raises(StoreLocked, match=r"latents/good: another one of that name is there.*--replace"):
        publish_derived(store, url, **options)
    remote = open_storage(url, **options)
    assert open_derived(remote, "latents", made(store, 1.0), "", name="good").array("z").read()[0, 0] == 1
    publish_derived(store, url, replace=True, **options)
    assert open_derived(remote, "latents", made(store, 3.0), "", name="good").array("z").read()[0, 0] == 3
    assert verify_store(remote) == []


def test_a_publisher_that_died_is_continued_and_damage_is_not_sent(store: Path, s3: dict[str, Any]) -> None:
    url = f"s3://robots/{uuid.uuid4().hex}"
    publish_store(store, url, **s3)
    chunk = store / "latents/good/z/c/1/0"
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-1] + b"\0")
    with pytest.raises(StoreCorrupt, match=r"latents/good/z/c/1/0 is not what its seal says"):
        publish_derived(store, url, **s3)
    with pytest.raises(StoreMissing, match="latents are not there yet"):
        open_derived(open_storage(url, **s3), "latents", made(store, 1.0), "x", name="good")
    chunk.write_bytes(data)
    publish_derived(store, url, **s3)
    assert verify_store(open_storage(url, **s3)) == []
    make_tiny_store(store.parent / "other", episodes=2, seed=9)
    with pytest.raises(StoreLocked, match="another store than"):
        publish_derived(store.parent / "other", url, **s3)
