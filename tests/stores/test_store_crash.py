"""A store crashed at every operation of writing it: with a manifest it is complete; a rerun gives the same bytes."""

from collections import Counter
from pathlib import Path

import pytest

from stores.disk import durable
from stores.disk.lock import lock
from stores.errors import StoreMissing
from stores.verify import verify_store
from tests.stores.faults import FAULTS, every_crash, read_tree
from tests.stores.make_store import make_tiny_store


def _write(disk: Path) -> None:
    with lock(disk / "store", "test"):
        make_tiny_store(disk / "store", episodes=1, frames=6, image=8, stats=False)


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_manifest_means_a_complete_store(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(durable.NO_FSYNC, "1")
    outcomes = Counter()
    for crash, disk in every_crash(tmp_path, lambda disk: None, _write, [fault]):
        try:
            left = [p for p in verify_store(disk / "store") if "interrupted writer" not in p.problem]
            assert left == [], crash
            outcomes["complete"] += 1
        except StoreMissing:
            outcomes["no store yet"] += 1
        _write(disk)
        assert read_tree(disk) == read_tree(tmp_path / "undisturbed"), crash
    print(f"{fault}: {dict(outcomes)}")
    assert outcomes["no store yet"] > 0
    assert outcomes["complete"] > 0 or fault in ("torn", "enospc")
