"""Publishing: the same bytes, one winner, continued after a kill, replaced by its owner only. On S3 and in memory."""

import contextlib
import shutil
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

import stores.cloud.publish
from stores.cloud.conditional import ConditionalStorage
from stores.cloud.publish import PUBLISHED, check_target, publish_store
from stores.cloud.storage import is_publication, open_storage
from stores.errors import StoreChanged, StoreCorrupt, StoreError, StoreLocked, StoreMissing, UsageError
from stores.manifest import Manifest
from stores.reader import Store
from stores.verify import verify_store
from tests.stores.faults import read_tree
from tests.stores.make_store import make_tiny_store, manifest_hash

Target = tuple[str, dict[str, Any]]


@pytest.fixture(params=["s3", "memory"])
def target(request: pytest.FixtureRequest) -> Target:
    """A fresh URL and its options."""
    name = uuid.uuid4().hex
    return (f"s3://robots/{name}", request.getfixturevalue("s3")) if request.param == "s3" else (f"memory://{name}", {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores that differ in everything: "one" and "two"."""
    root = tmp_path_factory.mktemp("made")
    make_tiny_store(root / "one", episodes=2, stats=False)
    make_tiny_store(root / "two", episodes=2, seed=5, stats=False)
    return root


@pytest.fixture
def one(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "one", tmp_path / "one")
    return tmp_path / "one"


@pytest.fixture
def two(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "two", tmp_path / "two")
    return tmp_path / "two"


def become(folder: Path, other: Path) -> None:
    """Give a store the content of another, as an ingest into it would."""
    kept = (folder / PUBLISHED).read_bytes()
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    (folder / PUBLISHED).write_bytes(kept)


def remote_bytes(target: Target) -> dict[str, bytes]:
    remote = open_storage(target[0], **target[1])
    return {name: remote.read(name) for name in remote.sizes()}


def local_bytes(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in read_tree(root).items() if data is not None and name != PUBLISHED}


def puts(monkeypatch: pytest.MonkeyPatch, before: Callable[[int, str], None] = lambda count, name: None) -> list[str]:
    """The names of all objects that are put, as they are; `before` is called with their number and name."""
    names: list[str] = []
    put, guard = ConditionalStorage.put, threading.Lock()

    def watched(self: ConditionalStorage, name: str, data: bytes, tag: str | None) -> str:
        if not name.startswith(".tmp-probe"):
            short = name.partition("/")[2] if is_publication(name.partition("/")[0]) else name
            short = short if short != name or name != "manifest.json" else "(register)"
            with guard:
                names.append(short)
                count = len(names)
            before(count, short)
        return put(self, name, data, tag)

    monkeypatch.setattr(ConditionalStorage, "put", watched)
    return names


def die_at(last: int) -> Callable[[int, str], None]:
    def die(count: int, name: str) -> None:
        if count >= last:
            raise KeyboardInterrupt

    return die


def test_a_published_store_is_the_local_one(one: Path, target: Target) -> None:
    events: list[Any] = []
    assert publish_store(one, target[0], events.append, **target[1]) == manifest_hash(one)
    assert remote_bytes(target) == local_bytes(one)
    assert verify_store(open_storage(target[0], **target[1])) == []
    assert verify_store(one) == []
    assert events[-1].done == events[-1].total


def test_publishing_again_sends_nothing(one: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_store(one, target[0], **target[1])
    names = puts(monkeypatch)
    publish_store(one, target[0], **target[1])
    assert names == []


@pytest.mark.parametrize("damage", ["missing", "altered", "short"])
def test_damage_over_there_is_repaired(one: Path, target: Target, damage: str) -> None:
    publish_store(one, target[0], **target[1])
    remote = open_storage(target[0], **target[1])
    path = f"{remote.path}/segments.parquet"
    data = remote.read("segments.parquet")
    remote.files.rm(path)
    if damage != "missing":
        remote.files.pipe_file(path, data[:-1] + b"?" * (damage == "altered"))
    publish_store(one, target[0], **target[1])
    assert remote_bytes(target) == local_bytes(one)


def test_a_pointer_to_another_manifest_than_lies_there_is_damage(one: Path, two: Path, target: Target) -> None:
    """A flipped digit of the pointer, or a manifest that is whole and of another store."""
    publish_store(one, target[0], **target[1])
    files, path = fsspec.core.url_to_fs(target[0], **target[1])
    register = files.cat_file(f"{path}/manifest.json")
    digit = register.index(manifest_hash(one).encode())
    other = b"0" if register[digit : digit + 1] != b"0" else b"1"
    inside = f"{open_storage(target[0], **target[1]).path}/manifest.json"
    for name, content in (
        (f"{path}/manifest.json", register[:digit] + other + register[digit + 1 :]),
        (inside, (two / "manifest.json").read_bytes()),
    ):
        before = files.cat_file(name)
        files.pipe_file(name, content)
        with pytest.raises(StoreCorrupt, match=r"manifest.json: the pointer names a manifest of sha256"):
            Store.open(target[0], **target[1])
        problems = verify_store(open_storage(target[0], **target[1]))
        assert [problem.object for problem in problems] == ["manifest.json"]
        files.pipe_file(name, before)
    assert verify_store(open_storage(target[0], **target[1])) == []


def test_a_publication_killed_again_and_again_is_continued(
    one: Path, target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each run puts its claim and one object, then dies: no store until the end, and nothing is sent twice."""
    monkeypatch.setattr(stores.cloud.publish, "THREADS", 1)
    shutil.copytree(one, tmp_path / "copy")  # the same content from another folder
    sent: list[str] = []
    for number in range(len(local_bytes(one)) + 2):
        with monkeypatch.context() as patch:
            names = puts(patch, die_at(3))  # the claim, one object
            with contextlib.suppress(KeyboardInterrupt):
                publish_store((one, tmp_path / "copy")[number % 2], target[0], **target[1])
        sent += [name for name in names[1:2] if name != "(register)"]
        if names[1:2] == ["(register)"]:
            break
        with pytest.raises(StoreMissing, match="not a store yet: one is being published"):
            Store.open(target[0], **target[1])
    assert sorted(sent) == sorted(local_bytes(one))
    assert remote_bytes(target) == local_bytes(one)


def test_its_owner_replaces_a_store_and_leaves_nothing_of_it(
    one: Path, two: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_store(one, target[0], **target[1])
    remote = ConditionalStorage(target[0], **target[1])
    remote.put("shards/stranger.tar", b"of somebody else", None)
    become(one, two)
    assert check_target(one, target[0], **target[1]) == (_hash_there(target),)
    seen: list[str] = []

    def look(count: int, name: str) -> None:
        if name != "(register)" and "manifest.json" not in seen:
            with pytest.raises(StoreMissing, match="not a store yet"):
                Store.open(target[0], **target[1])
        seen.append(name)

    with monkeypatch.context() as patch:
        puts(patch, look)
        publish_store(one, target[0], **target[1])
    assert len(seen) > 3
    assert remote_bytes(target) == local_bytes(two)
    folders = {name.partition("/")[0] for name in remote.listing()}
    assert sum(map(is_publication, folders)) == 1
    assert folders - {"manifest.json", "shards"} == {name for name in folders if is_publication(name)}
    assert remote.get("shards/stranger.tar") is not None  # no store of ours named it


def test_what_did_not_change_is_copied_over_there(
    one: Path, two: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_store(one, target[0], **target[1])
    become(one, two)
    names = puts(monkeypatch)
    publish_store(one, target[0], **target[1])
    assert "frames.zarr/index/c/0" not in names
    assert "frames.zarr/action/c/0/0" in names
    assert remote_bytes(target) == local_bytes(one)


def test_a_store_copied_by_other_means_is_read_and_replaced(one: Path, two: Path, target: Target) -> None:
    remote = ConditionalStorage(target[0], **target[1])
    for name, data in local_bytes(one).items():
        remote.put(name, data, None)
    assert remote_bytes(target) == local_bytes(one)
    publish_store(one, target[0], **target[1])  # it is there
    assert "publication" not in str(sorted(remote.listing()))
    publish_store(two, target[0], replace=True, **target[1])
    assert remote_bytes(target) == local_bytes(two)
    assert {name for name in remote.listing() if not name.startswith("publication-")} == {"manifest.json"}


@pytest.mark.parametrize("content", [b'{"name": "my app"}', b"[" * 100_000, b"\xff", b'{\n "published": {"at": ".."}}'])
def test_a_manifest_of_something_else_is_never_overwritten(one: Path, target: Target, content: bytes) -> None:
    remote = ConditionalStorage(target[0], **target[1])
    remote.put("manifest.json", content, None)
    for replace in (False, True):
        with pytest.raises(StoreLocked, match="is not one of a store"):
            publish_store(one, target[0], replace=replace, **target[1])
    assert set(remote.listing()) == {"manifest.json"}


def _hash_there(target: Target) -> str:
    return manifest_hash(open_storage(target[0], **target[1]))


def test_an_interrupted_publication_of_ours_gives_way_to_newer_content(
    one: Path, two: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        puts(patch, die_at(4))
        with pytest.raises(KeyboardInterrupt):
            publish_store(one, target[0], **target[1])
    become(one, two)
    publish_store(one, target[0], **target[1])
    assert remote_bytes(target) == local_bytes(two)


def test_another_store_is_refused_and_untouched_unless_it_is_to_be_replaced(
    one: Path, two: Path, target: Target
) -> None:
    publish_store(one, target[0], **target[1])
    for refused in (publish_store, check_target):
        with pytest.raises(StoreLocked, match=r"another store is there, which this folder did not publish.*--replace"):
            refused(two, target[0], **target[1])
    assert remote_bytes(target) == local_bytes(one)
    publish_store(two, target[0], replace=True, **target[1])
    assert remote_bytes(target) == local_bytes(two)
    make_tiny_store(one, episodes=2, seed=9, stats=False)  # what was there was ours, but somebody changed it since
    with pytest.raises(StoreLocked, match="did not publish"):
        publish_store(one, target[0], **target[1])


def test_a_store_that_was_replaced_since_it_was_looked_at_is_refused(one: Path, two: Path, target: Target) -> None:
    allowed = check_target(one, target[0], **target[1])
    assert allowed == ()
    publish_store(two, target[0], **target[1])  # an hour later
    with pytest.raises(StoreLocked, match="another store is there"):
        publish_store(one, target[0], allowed=allowed, **target[1])
    assert remote_bytes(target) == local_bytes(two)


def test_while_one_publishes_another_is_refused_by_name(
    one: Path, two: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals: list[str] = []

    def meanwhile(count: int, name: str) -> None:
        if count == 3:
            with pytest.raises(StoreLocked) as caught:
                publish_store(two, target[0], **target[1])
            refusals.append(str(caught.value))

    puts(monkeypatch, meanwhile)
    publish_store(one, target[0], **target[1])
    assert "is being published there, by process" in refusals[0]
    assert remote_bytes(target) == local_bytes(one)


def test_who_lost_its_claim_does_not_commit(
    one: Path, two: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept, was taken for dead and replaced; then it wakes up."""
    last = len(local_bytes(one)) + 1  # the claim, the objects, the manifest

    def replaced(count: int, name: str) -> None:
        if count == last:
            publish_store(two, target[0], replace=True, **target[1])

    puts(monkeypatch, replaced)
    with pytest.raises(StoreChanged, match="changed by somebody else"):
        publish_store(one, target[0], **target[1])
    assert remote_bytes(target) == local_bytes(two)


def test_of_two_publishers_at_once_exactly_one_wins(one: Path, two: Path, target: Target) -> None:
    start = threading.Barrier(2)

    def write(root: Path) -> str | None:
        start.wait()
        try:
            return publish_store(root, target[0], **target[1])
        except StoreLocked:
            return None

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(write, [one, two]))
    assert sum(end is not None for end in ends) == 1
    assert ends.index(_hash_there(target)) == [end is not None for end in ends].index(True)
    assert verify_store(open_storage(target[0], **target[1])) == []


def test_two_publishers_of_the_same_content_agree(one: Path, target: Target, tmp_path: Path) -> None:
    shutil.copytree(one, tmp_path / "copy")
    start = threading.Barrier(2)

    def write(root: Path) -> bool:
        start.wait()
        with contextlib.suppress(StoreLocked):
            publish_store(root, target[0], **target[1])
            return True
        return False

    with ThreadPoolExecutor(2) as pool:
        assert any(pool.map(write, [one, tmp_path / "copy"]))
    assert remote_bytes(target) == local_bytes(one)


def test_a_damaged_local_store_is_not_published(one: Path, two: Path, target: Target) -> None:
    publish_store(one, target[0], **target[1])
    before = remote_bytes(target)
    become(one, two)
    path = one / "frames.zarr/action/c/0/0"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(StoreCorrupt, match=r"frames\.zarr/action"):
        publish_store(one, target[0], **target[1])
    assert remote_bytes(target) == before


def test_a_place_that_holds_something_else_is_refused(one: Path, target: Target) -> None:
    ConditionalStorage(target[0], **target[1]).put("letters/to_a_friend.txt", b"dear", None)
    with pytest.raises(StoreLocked, match=r"nothing there, got \['letters/to_a_friend.txt'\]"):
        publish_store(one, target[0], **target[1])


def test_a_folder_that_cannot_be_written_to_is_published_all_the_same(
    one: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    publish_store(one, target[0], **target[1])
    assert not (one / PUBLISHED).exists()
    assert remote_bytes(target) == local_bytes(one)


def test_wrong_targets_are_said(one: Path, s3: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="no such bucket"):
        publish_store(one, "s3://no-such-bucket/store", **s3)
    with pytest.raises(UsageError, match="expected a URL"):
        publish_store(one, str(tmp_path))
    (one / PUBLISHED).write_text("{")
    with pytest.raises(StoreError, match=r"\.published\.json: not JSON"):
        publish_store(one, f"s3://robots/{uuid.uuid4().hex}", **s3)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"s3://robots/a": 3}', 100_000 * "["])
def test_a_note_of_what_was_published_that_is_none_is_one_clear_error(one: Path, text: str) -> None:
    (one / PUBLISHED).write_text(text)
    with pytest.raises(StoreError, match=r"\.published\.json: .*; remove it and say --replace"):
        publish_store(one, f"memory://robots/{uuid.uuid4().hex}")


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_place_may_be_called_anything(one: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """Errors are told by the server's code: words of the URL that are also words of errors change nothing."""
    options = request.getfixturevalue("s3") if kind == "s3" else {}
    name = f"my-bucket-{uuid.uuid4().hex[:8]}"
    if kind == "s3":
        fsspec.filesystem("s3", **options).mkdir(name)
    url = f"{kind}://{name}/NoSuchBucket/PreconditionFailed/the bucket does not exist"
    publish_store(one, url, **options)
    assert verify_store(open_storage(url, **options)) == []
    publish_store(one, url, **options)  # there already
    with pytest.raises(StoreMissing, match="is not a store"):
        Manifest.load(open_storage(f"{url}/404", **options))
