"""Two publishers of derived folders of one name, each stalled before every request: a reader finds all of one or none.

As in `tests.stores.test_publish_races`: a publisher stands still before its request k while the other goes on to its
request m; then the first ends, then the other. Both folders have one key and different contents, so that nothing but
the protocol keeps them apart.
"""

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stores.cloud.publish_derived
from stores.arrays import ArraySpec, write_region
from stores.cloud.publish import publish_store
from stores.cloud.publish_derived import publish_derived
from stores.cloud.storage import open_storage
from stores.derived import begin, open_derived
from stores.errors import StoreLocked, StoreMissing
from stores.manifest import content_hash
from stores.verify import verify_store
from tests.stores.faults import TALLY
from tests.stores.make_store import make_tiny_store
from tests.stores.test_publish_races import (
    NEVER,
    Gated,
    Publisher,
    Target,
    forget,
    let_pass,
    stall_both,
    target_of,
    use,
)

SPEC = ArraySpec((4, 2), "float32", 2)
VALUES = {"old": 0.0, "one": 1.0, "two": 2.0}


class DerivedPublisher(Publisher):
    def publish(self) -> None:
        publish_derived(self.root, self.target[0], replace=self.replace, **self.target[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store three times, with features of one name and key."""
    root = tmp_path_factory.mktemp("made")
    make_tiny_store(root / "old", episodes=1, frames=4, image=8, stats=False)
    for name, value in VALUES.items():
        if name != "old":
            shutil.copytree(root / "old", root / name, ignore=shutil.ignore_patterns("features"))
        folder = begin(root / name, "features", "kept", key(root / name), {"x": SPEC})
        write_region(folder.root, "x", SPEC, 0, np.full((4, 2), value, np.float32))
        folder.commit({"value": value})
    return root


def key(root: Path) -> dict[str, Any]:
    return {"content_hash": content_hash(root), "encoder": "tower"}


@pytest.fixture(autouse=True)
def _gated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.cloud.publish_derived, "ConditionalStorage", Gated)
    monkeypatch.setenv("STATEVLA_UNSAFE_NO_FSYNC", "1")


def race(made: Path, target: Target, there: str | None, k: int, m: int) -> tuple[str, str, int, int]:
    """The first stalls before k, ``--replace`` before m. there: what lies there, which the first replaces too."""
    publish_store(made / "old", target[0], **target[1])
    if there is not None:
        let_pass()
        publish_derived(made / there, target[0], **target[1])
    first = DerivedPublisher(made / "one", target, k, there is not None)
    return stall_both(first, DerivedPublisher(made / "two", target, m, True))


def check(made: Path, target: Target, ends: tuple[str, str], where: object) -> None:
    """Who says that it won has its whole content there, unless the other came after it; nothing else is there."""
    storage = open_storage(target[0], **target[1])
    try:
        found = open_derived(storage, "features", key(made / "old"), "x", name="kept")
    except StoreMissing:
        raise AssertionError(f"{where}: nothing is left") from None
    value = found.about["value"]
    np.testing.assert_array_equal(found.array("x").read(), np.full((4, 2), value), str(where))
    assert verify_store(storage) == [], where
    assert "running" not in ends, where
    winners = {VALUES[name] for name, end in zip(("one", "two"), ends, strict=True) if end == "won"}
    assert value in winners, where


@pytest.mark.parametrize("there", [None, "old"])
@pytest.mark.parametrize(("kind", "every_first", "every_other"), [
    pytest.param("memory", 4, 3, id="memory, some"),
    pytest.param("memory", 1, 1, marks=(pytest.mark.slow, pytest.mark.crash), id="memory, every pair"),
    pytest.param("s3", 1, 0, marks=(pytest.mark.slow, pytest.mark.crash), id="S3, every stall of the first"),
    pytest.param("s3", 5, 5, marks=(pytest.mark.slow, pytest.mark.crash), id="S3, pairs"),
])  # fmt: skip
def test_what_is_sealed_is_whole_whoever_stalls(
    made: Path, kind: str, every_first: int, every_other: int, there: str | None, request: pytest.FixtureRequest
) -> None:
    """every_other 0: the other never stalls; it begins and ends while the first stands still."""
    *_, first, other = race(made, target_of(kind, request), there, NEVER, NEVER)
    stalls: Iterable[int] = range(1, other + 2, every_other) if every_other else [NEVER]
    ends = Counter[tuple[str, str]]()
    for k in range(1, first + 2, every_first):
        for m in stalls:
            target = target_of(kind, request)
            won = race(made, target, there, k, m)[:2]
            ends[won] += 1
            check(made, target, won, (k, m, won))
            forget(target)
    label = f"derived publishers stalled, {kind}, over {there}, every {every_first} x {every_other or 'end'}"
    TALLY.setdefault(label, Counter()).update({" / ".join(pair): count for pair, count in ends.items()})


@pytest.mark.parametrize("there", [None, "old"])
def test_one_that_dies_anywhere_is_continued_or_replaced(made: Path, there: str | None) -> None:
    """Dead before each request in turn: a reader has what was there or finds none, and the next one makes it whole."""

    class Died(Exception):
        pass

    class Dies:
        """A gate at whose request `at` the publisher dies."""

        def __init__(self, at: int) -> None:
            self.at, self.count = at, 0

        def __call__(self) -> None:
            self.count += 1
            if self.count == self.at:
                raise Died

    for who, replace in (("one", there is not None), ("two", True)):
        for at in range(1, 40):
            target = target_of("memory", None)  # type: ignore[arg-type]
            publish_store(made / "old", target[0])
            let_pass()
            if there is not None:
                publish_derived(made / there, target[0])
            gate = Dies(at)
            with contextlib.suppress(Died):
                use(gate)
                publish_derived(made / "one", target[0], replace=there is not None)
            with contextlib.suppress(StoreMissing):
                found = open_derived(target[0], "features", key(made / "old"), "x", name="kept")
                assert (found.array("x").read() == found.about["value"]).all(), at
            let_pass()
            publish_derived(made / who, target[0], replace=replace)
            check(made, target, ("won", "lost") if who == "one" else ("lost", "won"), (who, at))
            forget(target)
            if gate.count < at:
                break
        else:
            raise AssertionError("more requests than expected")


def test_a_seal_beside_its_objects_is_read_and_replaced(made: Path) -> None:
    """Copied there by other means."""
    target = target_of("memory", None)  # type: ignore[arg-type]
    publish_store(made / "old", target[0])
    storage = open_storage(target[0])
    for path in sorted((made / "old/features/kept").rglob("*")):
        if path.is_file():
            name = path.relative_to(made / "old").as_posix()
            storage.files.pipe_file(f"{storage.path}/{name}", path.read_bytes())  # type: ignore[attr-defined]
    assert verify_store(target[0]) == []
    assert open_derived(target[0], "features", key(made / "old"), "x", name="kept").about == {"value": 0.0}
    let_pass()
    publish_derived(made / "old", target[0])  # the same: nothing to do
    with pytest.raises(StoreLocked, match="another one of that name is there"):
        publish_derived(made / "one", target[0])
    publish_derived(made / "one", target[0], replace=True)
    check(made, target, ("won", "lost"), "beside")
    assert not any(name.startswith("features/kept/x/") for name in storage.sizes())


def test_what_was_altered_there_is_mended_with_replace(made: Path) -> None:
    target = target_of("memory", None)  # type: ignore[arg-type]
    publish_store(made / "old", target[0])
    let_pass()
    publish_derived(made / "one", target[0])
    storage = open_storage(target[0])
    (name,) = [name for name in storage.sizes() if name.endswith("x/c/1/0")]
    data = bytearray(storage.read(name))
    data[3] ^= 1
    storage.files.pipe_file(f"{storage.path}/{name}", bytes(data))  # type: ignore[attr-defined]
    assert [problem.object for problem in verify_store(target[0])] == [name]
    publish_derived(made / "one", target[0], replace=True)
    check(made, target, ("won", "lost"), "mended")
