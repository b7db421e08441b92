"""Conditional puts: create once, replace only what was seen; who may not write is told before any work."""

import json
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stores.cloud.conditional import ConditionalStorage
from stores.errors import StoreChanged, StoreError, StoreMissing, UsageError


@pytest.fixture(params=["s3", "memory"])
def storage(request: pytest.FixtureRequest) -> ConditionalStorage:
    name = uuid.uuid4().hex
    if request.param == "memory":
        return ConditionalStorage(f"memory://{name}/deep")
    return ConditionalStorage(f"s3://robots/{name}", **request.getfixturevalue("s3"))


def test_an_object_is_created_once_and_replaced_only_as_it_was_seen(storage: ConditionalStorage) -> None:
    assert storage.get("a/b") is None
    first = storage.put("a/b", b"first", None)
    assert storage.get("a/b") == (b"first", first)
    with pytest.raises(StoreChanged, match=r"a/b was changed by somebody else"):
        storage.put("a/b", b"second", None)
    second = storage.put("a/b", b"second", first)
    with pytest.raises(StoreChanged):
        storage.put("a/b", b"third", first)
    assert storage.get("a/b") == (b"second", second)
    storage.remove(["a/b", "never"])
    assert storage.get("a/b") is None
    with pytest.raises(StoreChanged):
        storage.put("a/b", b"third", second)
    assert storage.listing() == {}


def test_a_put_sent_twice_is_one_put(storage: ConditionalStorage) -> None:
    """The answer to the first was lost, and the client sent it again."""
    first = storage.put("a", b"same", None)
    assert storage.put("a", b"same", None) == first
    second = storage.put("a", b"other", first)
    assert storage.put("a", b"other", first) == second


def test_a_listing_has_sizes_and_tags_of_now(storage: ConditionalStorage) -> None:
    tags = {name: storage.put(name, name.encode(), None) for name in ("x", "y/z")}
    for name, entry in storage.listing().items():
        assert (entry.bytes, entry.tag) == (len(name), tags[name])
        assert storage.holds(name, entry, name.encode())
        assert not storage.holds(name, entry, b"!" * len(name))
        assert not storage.holds(name, entry, name.encode() + b"!")
    storage.remove(["x"])
    assert set(storage.listing()) == {"y/z"}


def test_of_many_writers_of_one_object_one_wins(storage: ConditionalStorage) -> None:
    tag = storage.put("register", b"free", None)

    def take(writer: int) -> bytes | None:
        try:
            storage.put("register", b"writer %d" % writer, tag)
        except StoreChanged:
            return None
        return b"writer %d" % writer

    with ThreadPoolExecutor(8) as pool:
        won = [name for name in pool.map(take, range(8)) if name]
    found = storage.get("register")
    assert found is not None
    if storage.root.startswith("memory"):  # the S3 of these tests looks and writes in two steps; S3 in one
        assert won == [found[0]]
    assert found[0] in won


def test_the_check_writes_nothing_and_finds_servers_that_ignore_conditions(
    storage: ConditionalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.check()
    assert storage.listing() == {}
    sound = storage._kind.put

    def careless(files: Any, path: str, data: bytes, tag: str | None) -> str:
        return sound(files, path, data, None)

    monkeypatch.setattr(storage, "_kind", type(storage._kind)(careless, storage._kind.tag, storage._kind.tag_of))
    with pytest.raises(StoreError, match="ignores the condition"):
        storage.check()
    assert storage.listing() == {}


def test_what_cannot_be_written_to_is_said(s3: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"expected a URL such as s3://"):
        ConditionalStorage("/some/folder")
    with pytest.raises(UsageError, match=r"gs://bucket/store: stores can be written to s3://.*by other means"):
        ConditionalStorage("gs://bucket/store")
    with pytest.raises(StoreMissing, match="no such bucket"):
        ConditionalStorage("s3://no-such-bucket/store", **s3).check()


@pytest.fixture
def readers_key(s3: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Options for a user who may read the bucket, not write to it, on a server that asks for rights."""
    import boto3

    options = {"endpoint_url": s3["endpoint_url"], "region_name": "us-east-1"}
    iam = boto3.client("iam", aws_access_key_id="test", aws_secret_access_key="test", **options)
    user = f"reader-{uuid.uuid4().hex}"
    iam.create_user(UserName=user)
    rights = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
    iam.put_user_policy(UserName=user, PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    _free_requests(s3, "0")
    yield {**s3, "key": key["AccessKeyId"], "secret": key["SecretAccessKey"]}
    _free_requests(s3, "inf")


def _free_requests(s3: dict[str, Any], count: str) -> None:
    """How many requests the server answers before it asks for rights."""
    url = f"{s3['endpoint_url']}/moto-api/reset-auth"
    headers = {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, data=count.encode(), method="POST", headers=headers)).close()


def test_who_may_only_read_is_told(readers_key: dict[str, Any]) -> None:
    storage = ConditionalStorage("s3://robots/store", **readers_key)
    assert storage.listing() == {}
    with pytest.raises(StoreError, match=r"s3://robots/store: \.tmp-probe.* cannot be written: the credentials do not"):
        storage.check()
    unknown = ConditionalStorage("s3://robots/store", **{**readers_key, "key": "nobody"})
    with pytest.raises(StoreError, match="the credentials do not allow it"):
        unknown.listing()
