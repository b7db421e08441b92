"""Features by workers: the same bytes, of the driver's store and tower, whenever a worker began and however it ends."""

# ruff: noqa: F811 (fixtures of another file)

import copy
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.derive import features
from pipelines.derive.features import FeatureConfig, make_features
from stores.disk.lock import lock
from stores.errors import StaleKey, StateVLAError, StoreError
from stores.verify import verify_store
from tests.pipelines.test_features import make, store, tower  # noqa: F401
from tests.stores.faults import read_tree
from tests.stores.make_store import make_tiny_store


@pytest.mark.slow
def test_workers_make_the_same_bytes(store: Path, tower: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(store, tmp_path / "other"))
    make(other, tower)
    make_features(FeatureConfig(store, str(tower), name="kept", batch=8, device="cpu"), workers=2)
    assert read_tree(store / "features") == read_tree(other / "features")


class Worker:
    """Stands for a cluster: one worker, this process, that lives on. before: what happens to it first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(features, "run_units", self)
        self.before: Callable[[], None] = lambda: None

    def __call__(self, function: Any, tasks: Any, workers: int, scheduler: str | None) -> Any:
        if scheduler is not None:
            self.before()
        for name, task in tasks:
            yield name, function(copy.deepcopy(task))

    def make(self, store: Path, tower: Path, device: str = "cpu", replace: bool = False) -> dict[str, Any]:
        config = FeatureConfig(store, str(tower), name="kept", batch=8, device=device)
        return make_features(config, scheduler="tcp://lives-on", replace=replace)


def other_weights(tower: Path, folder: Path) -> Path:
    """A tower like `tower`, of other numbers."""
    other = Path(shutil.copytree(tower, folder))
    weights = load_file(other / "model.safetensors")
    save_file({name: values + 0.1 for name, values in weights.items()}, other / "model.safetensors")
    return other


def test_a_worker_that_lives_on_takes_the_store_and_tower_that_are_there_now(
    store: Path, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = Path(shutil.copytree(tower, tmp_path / "tower"))
    worker = Worker(monkeypatch)
    worker.make(store, moving)
    shutil.rmtree(store)
    make_tiny_store(store, episodes=5, frames=30, image=24, window=8, seed=3)
    worker.make(store, moving)
    other = Path(shutil.copytree(store, tmp_path / "other", ignore=shutil.ignore_patterns("features")))
    make(other, moving)
    assert read_tree(store / "features") == read_tree(other / "features")
    shutil.rmtree(moving)
    other_weights(tower, moving)
    worker.make(store, moving, replace=True)
    make(other, moving, replace=True)
    assert read_tree(store / "features") == read_tree(other / "features")
    assert verify_store(store) == []


def test_a_worker_with_another_store_or_tower_than_the_drivers_is_refused(
    store: Path, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = Path(shutil.copytree(tower, tmp_path / "tower"))
    worker = Worker(monkeypatch)

    def change_weights() -> None:
        shutil.rmtree(moving)
        other_weights(tower, moving)

    worker.before = change_weights
    with pytest.raises(StaleKey, match=r"expected {'revision': 'sha256:.*this worker .* has {'revision': 'sha256:"):
        worker.make(store, moving)
    worker.before = lambda: (store / "manifest.json").write_bytes(elsewhere)
    make_tiny_store(tmp_path / "elsewhere", episodes=3, frames=30, image=24, window=8, seed=3)
    elsewhere = (tmp_path / "elsewhere/manifest.json").read_bytes()
    with pytest.raises(StoreError):
        worker.make(store, moving)
    assert not (store / "features/kept/manifest.json").exists()


def test_a_worker_that_outlives_its_driver_changes_nothing_of_a_later_ones(
    store: Path, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Callable[[], Any]] = []

    def killed(function: Any, tasks: Any, workers: int, scheduler: str | None) -> Any:
        late.extend(functools.partial(function, task) for _, task in tasks)
        raise KeyboardInterrupt

    def going_on(function: Any, tasks: Any, workers: int, scheduler: str | None) -> Any:
        for name, task in tasks:
            yield name, function(task)
        late[0]()

    newer = other_weights(tower, tmp_path / "newer")
    other = Path(shutil.copytree(store, tmp_path / "other"))
    make(other, newer)
    monkeypatch.setattr(features, "run_units", killed)
    with pytest.raises(KeyboardInterrupt):
        make_features(FeatureConfig(store, str(tower), name="kept", batch=8, device="cpu"), scheduler="tcp://there")
    monkeypatch.setattr(features, "run_units", going_on)
    make_features(FeatureConfig(store, str(newer), name="kept", batch=8, device="cpu"), scheduler="tcp://there")
    late[1]()
    with lock(store, "the next writer"):
        assert read_tree(store / "features") == read_tree(other / "features")
    assert verify_store(store) == []


def test_shards_that_a_worker_leaves_on_a_disk_of_its_own_are_missed(
    store: Path, tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "run_units", lambda function, tasks, workers, scheduler: [("kept-000000", 0)])
    with pytest.raises(StateVLAError, match="a worker made it, and it is not here: all must see the same files"):
        make(store, tower)


def test_the_drivers_device_goes_for_all_workers(
    store: Path, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(monkeypatch)
    worker.before = lambda: monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    other = Path(shutil.copytree(store, tmp_path / "other"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    make(other, tower)
    worker.make(store, tower, "auto")
    assert read_tree(store / "features") == read_tree(other / "features")
    original = features._load

    def in_bfloat16(encoder: str, device: str) -> Any:
        kind, loaded = original(encoder, device)
        return kind, loaded.to("cpu", torch.bfloat16)

    shutil.rmtree(store / "features")
    features._opened.cache_clear()
    worker.before = lambda: monkeypatch.setattr(features, "_load", in_bfloat16)
    with pytest.raises(StaleKey, match=r"expected {'precision': 'float32'}.* has {'precision': 'bfloat16'}"):
        worker.make(store, tower)
