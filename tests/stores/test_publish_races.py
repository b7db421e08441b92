"""Two publishers and a ``--replace``, each stalled before every request it makes: the committed store is always whole.

A publisher stands still before its request number k while the other goes on to its request m; then the first ends, then
the other. By default a sample in memory; `pytest -m crash` takes every pair in memory, and S3 one by one.
"""

import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fsspec.core
import pytest

import stores.cloud.publish
from stores.cloud.conditional import ConditionalStorage, Entry
from stores.cloud.publish import publish_store
from stores.cloud.storage import open_storage
from stores.errors import StoreLocked, StoreMissing
from stores.verify import verify_store
from tests.stores.faults import TALLY
from tests.stores.make_store import make_tiny_store, manifest_hash

Target = tuple[str, dict[str, Any]]
NEVER = 10**9


class Gate:
    """Lets a publisher pass all requests but number `at`, before which it waits until it is let go."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0
        self.there, self.go = threading.Event(), threading.Event()
        self.guard = threading.Lock()

    def __call__(self) -> None:
        with self.guard:
            self.count += 1
            stop = self.count == self.at
        if stop:
            self.there.set()
            assert self.go.wait(60)


_current = threading.local()


def use(gate: Callable[[], None]) -> None:
    """Ask `gate` before every request of this thread."""
    _current.gate = gate


def let_pass() -> None:
    """Requests of this thread do not stall."""
    use(Gate(NEVER))


class Gated(ConditionalStorage):
    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.gate: Callable[[], None] = _current.gate

    def listing(self, folder: str = "") -> dict[str, Entry]:
        self.gate()
        return super().listing(folder)

    def get(self, name: str) -> tuple[bytes, str] | None:
        self.gate()
        return super().get(name)

    def put(self, name: str, data: bytes, tag: str | None) -> str:
        self.gate()
        return super().put(name, data, tag)

    def copy(self, name: str, target: str) -> bool:
        self.gate()
        return super().copy(name, target)

    def remove_one(self, name: str) -> None:
        self.gate()
        super().remove_one(name)


class Publisher(threading.Thread):
    """Publishes `root` in a thread of its own, through a gate."""

    def __init__(self, root: Path, target: Target, at: int, replace: bool) -> None:
        super().__init__(daemon=True)
        self.root, self.target, self.replace, self.gate = root, target, replace, Gate(at)
        self.end = "running"

    def run(self) -> None:
        _current.gate = self.gate
        try:
            self.publish()
            self.end = "won"
        except StoreLocked:
            self.end = "refused"
        except StoreMissing:
            self.end = "lost"
        finally:
            self.gate.there.set()

    def publish(self) -> None:
        publish_store(self.root, self.target[0], replace=self.replace, **self.target[1])


def stall_both(owner: Publisher, other: Publisher) -> tuple[str, str, int, int]:
    """Each goes to its stall; then the first ends, then the other: both ends, both counts of requests."""
    for publisher in (owner, other):
        publisher.start()
        assert publisher.gate.there.wait(60)
    for publisher in (owner, other):
        publisher.gate.go.set()
        publisher.join(60)
    return owner.end, other.end, owner.gate.count, other.gate.count


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An old store and two that would take its place."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("old", "one", "two")):
        make_tiny_store(root / name, episodes=1, frames=4, image=8, seed=seed, stats=False)
    return root


@pytest.fixture(autouse=True)
def _gated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.cloud.publish, "ConditionalStorage", Gated)
    monkeypatch.setattr(stores.cloud.publish, "THREADS", 1)
    monkeypatch.setenv("STATEVLA_UNSAFE_NO_FSYNC", "1")


def fresh(made: Path, tmp_path: Path, target: Target) -> None:
    """At the URL lies the old store, published from the folder "one", which has new content since; "two" is another."""
    for name in ("one", "two"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    shutil.copytree(made / "old", tmp_path / "one")
    let_pass()
    publish_store(tmp_path / "one", target[0], **target[1])
    kept = (tmp_path / "one" / stores.cloud.publish.PUBLISHED).read_bytes()
    shutil.rmtree(tmp_path / "one")
    shutil.copytree(made / "one", tmp_path / "one")
    (tmp_path / "one" / stores.cloud.publish.PUBLISHED).write_bytes(kept)
    shutil.copytree(made / "two", tmp_path / "two")


def race(made: Path, tmp_path: Path, target: Target, k: int, m: int) -> tuple[str, str, int, int]:
    """The owner stalls before k, ``--replace`` before m; the owner ends, then the other: both ends, both counts."""
    fresh(made, tmp_path, target)
    return stall_both(Publisher(tmp_path / "one", target, k, False), Publisher(tmp_path / "two", target, m, True))


def check(made: Path, target: Target, ends: tuple[str, str], where: object) -> None:
    """The last commit is whole, or nobody committed and the next publication does."""
    try:
        storage = open_storage(target[0], **target[1])
        found = manifest_hash(storage)
    except StoreMissing:
        raise AssertionError(f"{where}: no store is left, {ends}") from None
    assert verify_store(storage) == [], where
    assert found in {manifest_hash(made / name) for name in ("one", "two")}, where
    if ends[1] == "won" and ends[0] != "won":
        assert found == manifest_hash(made / "two"), where


def forget(target: Target) -> None:
    """Remove what was published: both clouds of these tests look at all that they hold for every listing."""
    fsspec.core.url_to_fs(target[0], **target[1])[0].rm(target[0], recursive=True)


def requests(made: Path, tmp_path: Path, target: Target) -> tuple[int, int]:
    """How many requests each makes when the other has ended."""
    *_, owner, other = race(made, tmp_path, target, NEVER, NEVER)
    return owner, other


def target_of(kind: str, request: pytest.FixtureRequest) -> Target:
    name = uuid.uuid4().hex
    return (f"s3://robots/{name}", request.getfixturevalue("s3")) if kind == "s3" else (f"memory://{name}", {})


EVERY = pytest.param("memory", 1, 1, marks=(pytest.mark.slow, pytest.mark.crash), id="memory, every pair")
S3 = pytest.param("s3", 1, 0, marks=(pytest.mark.slow, pytest.mark.crash), id="S3, every stall of the owner")
S3_PAIRS = pytest.param("s3", 5, 5, marks=(pytest.mark.slow, pytest.mark.crash), id="S3, pairs")


@pytest.mark.parametrize(
    ("kind", "every_owner", "every_other"), [pytest.param("memory", 9, 11, id="memory, some"), EVERY, S3, S3_PAIRS]
)
def test_the_committed_store_is_whole_whoever_stalls(
    made: Path, tmp_path: Path, kind: str, every_owner: int, every_other: int, request: pytest.FixtureRequest
) -> None:
    """every_other 0: the replacement never stalls; it begins and ends while the owner stands still."""
    owner, other = requests(made, tmp_path, target_of(kind, request))
    stalls: Iterable[int] = range(1, other + 2, every_other) if every_other else [NEVER]
    ends = Counter[tuple[str, str]]()
    for k in range(1, owner + 2, every_owner):
        for m in stalls:
            target = target_of(kind, request)
            won = race(made, tmp_path, target, k, m)[:2]
            ends[won] += 1
            check(made, target, won, (k, m, won))
            forget(target)
    label = f"publishers stalled, {kind}, every {every_owner} x {every_other or 'end'}"
    TALLY.setdefault(label, Counter()).update({" / ".join(pair): count for pair, count in ends.items()})
    assert sum(ends.values())
