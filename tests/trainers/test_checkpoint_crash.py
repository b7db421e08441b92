"""Saving a checkpoint, crashed at every operation: the old one or the new one loads, whole."""

from pathlib import Path

import pytest

from statevla.runs import write as checkpoint
from statevla.runs.files import LANGUAGE, MODEL, OPTIMIZER, read_tensors
from statevla.runs.state import read_state
from stores.disk import durable
from stores.disk.lock import lock
from stores.errors import StoreMissing
from tests.stores.faults import STRIDES, every_crash, read_tree
from tests.trainers.test_checkpoint import make_snapshot

pytestmark = pytest.mark.crash


@STRIDES
@pytest.mark.parametrize("old", [True, False], ids=["over an old one", "the first"])
def test_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool, stride: int) -> None:
    monkeypatch.setenv(durable.NO_FSYNC, "1")
    first, second = make_snapshot(1), make_snapshot(2)

    def prepare(disk: Path) -> None:
        if old:
            checkpoint.save(disk / "run/checkpoint_latest", first)

    def work(disk: Path) -> None:
        with lock(disk / "run", "test"):
            checkpoint.save(disk / "run/checkpoint_latest", second)

    for crash, disk in every_crash(tmp_path, prepare, work, name="checkpoint", stride=stride):
        folder = disk / "run/checkpoint_latest"
        try:
            state = read_state(folder)
            assert state.step in ((1, 2) if old else (2,)), crash
            for name in (MODEL, OPTIMIZER, LANGUAGE):
                read_tensors(folder, state, name)
        except StoreMissing:
            assert not old, crash
        if crash.operation == "end":
            assert read_state(folder).step == 2, crash
        work(disk)
        assert read_tree(disk) == read_tree(tmp_path / "undisturbed"), crash
