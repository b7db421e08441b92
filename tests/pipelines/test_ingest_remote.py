"""Ingest to object storage: the objects of a local ingest, resumed after a kill, extended by its owner only."""

import uuid
from pathlib import Path
from typing import Any

import pytest
import s3fs

from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import IngestSummary, ingest
from pipelines.ingest.remote import ingest_to_url, work_folder
from stores.cloud.conditional import ConditionalStorage
from stores.cloud.publish import PUBLISHED
from stores.cloud.storage import open_storage
from stores.errors import SourceError, StoreError, StoreLocked, StoreMissing
from stores.reader import Store
from stores.summary import inspect_store
from stores.verify import verify_store
from tests.pipelines.make_hdf5 import demo_arrays, make_world, write_file, write_suite
from tests.stores.faults import read_tree


@pytest.fixture
def bucket(s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh prefix, with the endpoint and the key in the environment, as a user has them."""
    names = {"AWS_ENDPOINT_URL": "endpoint_url", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, option in names.items():
        monkeypatch.setenv(name, s3[option])
    s3fs.S3FileSystem.clear_instance_cache()
    return f"s3://robots/{uuid.uuid4().hex}"


@pytest.fixture(params=["bucket", "memory"])
def url(request: pytest.FixtureRequest) -> str:
    """A fresh URL."""
    name: str = request.getfixturevalue("bucket") if request.param == "bucket" else f"memory://{uuid.uuid4().hex}"
    return name


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "source", tasks=2, demos=2)


def config(source: Path, out: Path) -> IngestConfig:
    return IngestConfig("toy", source, out, language="hashed")


def run(source: Path, out: Path, url: str, **options: Any) -> IngestSummary:
    summary = ingest_to_url(config(source, out), url, isolated=False, **options)
    assert isinstance(summary, IngestSummary)
    return summary


def assert_same_objects(url: str, source: Path, scratch: Path) -> None:
    """What is at `url` is, object by object, what an undisturbed local ingest of `source` writes."""
    ingest(config(source, scratch), isolated=False)
    remote = open_storage(url)
    local = {name: data for name, data in read_tree(scratch).items() if data is not None}
    assert sorted(remote.sizes()) == sorted(local)
    for name, data in local.items():
        assert remote.read(name) == data, name


def test_the_objects_of_a_local_ingest(source: Path, tmp_path: Path, url: str) -> None:
    summary = run(source, tmp_path / "work", url)
    assert (summary.store, summary.episodes, summary.changed) == (url, 4, True)
    assert_same_objects(url, source, tmp_path / "local")
    assert verify_store(url) == []
    again = run(source, tmp_path / "work", url)
    assert (again.changed, again.units_reused) == (False, 2)
    assert_same_objects(url, source, tmp_path / "local")


def test_killed_while_making_and_while_sending_it_goes_on(
    source: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipelines.ingest.driver

    make, put = pipelines.ingest.driver.make_here, ConditionalStorage.put
    made: list[str] = []
    sent: list[str] = []

    def make_one(task: Any) -> bytes:
        if made:
            raise KeyboardInterrupt
        made.append(task.unit.name)
        return make(task)

    def send_five(self: ConditionalStorage, name: str, data: bytes, tag: str | None) -> str:
        if len(sent) == 5:
            raise KeyboardInterrupt
        if not name.startswith(".tmp-"):
            sent.append(name)
        return put(self, name, data, tag)

    monkeypatch.setattr("stores.cloud.publish.THREADS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.ingest.driver, "make_here", make_one)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "work", url)
    assert open_storage(url).sizes() == {}
    with monkeypatch.context() as patch:
        patch.setattr(ConditionalStorage, "put", send_five)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "work", url)
    with pytest.raises(StoreMissing, match="not a store yet"):
        Store.open(url)
    rest: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(ConditionalStorage, "put", lambda self, name, *a: (rest.append(name), put(self, name, *a))[1])
        assert run(source, tmp_path / "work", url).units_reused == 2
    assert not set(sent) & set(rest) - {"manifest.json"}
    assert_same_objects(url, source, tmp_path / "local")


def test_a_new_and_a_removed_demonstration_reach_the_same_url(source: Path, tmp_path: Path, url: str) -> None:
    run(source, tmp_path / "work", url)
    (source / "put_the_cup_0_away_demo.hdf5").unlink()
    write_file(source / "a_new_task_demo.hdf5", {"demo_0": demo_arrays(make_world(99))}, "a new task")
    assert run(source, tmp_path / "work", url, prune=True).units_reused == 1
    assert_same_objects(url, source, tmp_path / "local")


def test_a_store_that_somebody_else_changed_is_refused_before_any_work(source: Path, tmp_path: Path, url: str) -> None:
    run(source, tmp_path / "work", url)
    (tmp_path / "other").mkdir()
    write_file(tmp_path / "other/t_demo.hdf5", {"demo_0": demo_arrays(make_world(5))}, "their task")
    with pytest.raises(StoreLocked, match="which this folder did not publish"):
        run(tmp_path / "other", tmp_path / "theirs", url)
    assert not (tmp_path / "theirs").exists()
    run(tmp_path / "other", tmp_path / "theirs", url, replace=True)
    with pytest.raises(StoreLocked, match="which this folder did not publish"):
        run(source, tmp_path / "work", url)
    assert_same_objects(url, tmp_path / "other", tmp_path / "local")


def test_of_two_ingests_at_once_the_slower_is_refused(
    source: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipelines.ingest.remote

    faster: list[Path] = []

    def overtaken(*arguments: Any, **options: Any) -> Any:
        if not faster:
            faster.append(write_suite(tmp_path / "faster", tasks=1))
            run(faster[0], tmp_path / "theirs", url)
        return ingest(*arguments, **options)

    monkeypatch.setattr(pipelines.ingest.remote, "ingest", overtaken)
    with pytest.raises(StoreLocked, match="another store is there"):
        run(source, tmp_path / "work", url)
    assert_same_objects(url, faster[0], tmp_path / "local")


def test_what_cannot_work_is_said_before_any_work(
    source: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match="no such bucket"):
        run(source, tmp_path / "work", "s3://no-such-bucket/store")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match="no credentials were found: set AWS_ACCESS_KEY_ID"):
        run(source, tmp_path / "work", bucket)
    assert not (tmp_path / "work").exists()


def test_strict_and_dry_run_write_nothing_there(source: Path, tmp_path: Path, url: str) -> None:
    preview = ingest_to_url(config(source, tmp_path / "work"), url, dry_run=True)
    assert (preview.store, preview.episodes) == (url, 4)
    (source / "broken.hdf5").write_bytes(b"nonsense")
    with pytest.raises(SourceError, match="--strict"):
        run(source, tmp_path / "work", url, strict=True)
    assert open_storage(url).sizes() == {}
    assert run(source, tmp_path / "work", url).quarantined == 1


def test_statistics_of_a_store_at_a_url(source: Path, tmp_path: Path, url: str) -> None:
    run(source, tmp_path / "work", url)
    found = compute_statistics(url)
    ingest(config(source, tmp_path / "local"), isolated=False)
    assert found == compute_statistics(tmp_path / "local")
    assert Store.open(url).stats().to_dict() == found
    assert inspect_store(url)["statistics"]
    assert verify_store(url) == []
    remote = open_storage(url)
    (name,) = (name for name in remote.sizes() if name.startswith("stats/"))
    data = remote.read(name)
    assert data == (tmp_path / "local" / name).read_bytes()
    remote.files.pipe_file(f"{remote.path}/{name}", data[:-9])  # damaged
    assert compute_statistics(url) == found
    assert remote.read(name) == data
    run(source, tmp_path / "work", url)  # a rerun leaves them
    assert remote.read(name) == data


def test_every_url_has_a_folder_of_its_own() -> None:
    urls = ["s3://a/toy", "s3://b/toy", "s3://b/toy/", "s3://b/toy2"]
    assert len({work_folder(url) for url in urls}) == 3
    assert work_folder("s3://b/toy").name.startswith("toy-")
    assert PUBLISHED.startswith(".")  # so that a folder holding nothing else may be ingested into
