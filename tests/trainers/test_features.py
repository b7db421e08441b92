"""Training from kept features is training on the frozen tower, within the dtype's tolerance, without a picture."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.derive.features import FeatureConfig, make_features
from statevla.encoders import siglip
from statevla.runs import layout
from statevla.runs.state import read_state
from statevla.systems.table import find_system
from statevla.trainers.latents import latents_of_checkpoint
from statevla.trainers.trainer import train
from stores.errors import StaleKey, StoreMissing, UsageError
from tests.encoders.test_siglip import save_small_siglip
from tests.trainers.micro import at_step, micro_config, micro_store
from tests.trainers.test_latents import encoder_of, no_pictures
from tests.trainers.test_loop import interrupt

JEPA, FLOW = "temporal_jepa", "flow_matching"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with features in three ways, and the tower."""
    folder = tmp_path_factory.mktemp("features")
    store, tower = micro_store(folder / "store"), save_small_siglip(folder / "tower")
    for name, options in {"half": {}, "int8": {"dtype": "int8"}, "pooled": {"pool": 2}}.items():
        make_features(FeatureConfig(store, str(tower), name=name, device="cpu", **options))  # type: ignore[arg-type]
    return store, tower


def settings(tower: Path, *more: str) -> Any:
    vision = ("model.vision=siglip", f"model.vision_model={tower}", "model.vision_width=24", "model.patch_size=16")
    return micro_config("training.max_steps=6", *vision, *more)


def losses(run: Path, system: str) -> np.ndarray:
    lines = layout.metrics(run, find_system(system).folder).read_text().splitlines()
    return np.array([record["loss"] for record in map(json.loads, lines)])


@pytest.mark.parametrize(("name", "more", "tolerance"), [
    ("half", (), 2e-3), ("int8", (), 5e-2), ("pooled", ("model.vision_pool=2",), 2e-3),
    ("half", ("training.precision=bf16",), 2e-2), ("int8", ("training.precision=bf16",), 6e-2),
])  # fmt: skip
def test_losses_are_those_of_the_tower(
    made: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    more: tuple[str, ...],
    tolerance: float,
) -> None:
    store, tower = made
    train(JEPA, settings(tower, *more), store, tmp_path / "online")
    no_pictures(monkeypatch)
    monkeypatch.setattr(siglip, "load_siglip", None)  # nor is the tower loaded
    train(JEPA, settings(tower, f"data.features={name}", *more), store, tmp_path / "kept")
    np.testing.assert_allclose(losses(tmp_path / "kept", JEPA), losses(tmp_path / "online", JEPA), rtol=tolerance)
    identities = [read_state(encoder_of(tmp_path / run)).backbone for run in ("kept", "online")]
    assert identities[0] == identities[1]


def test_a_policy_trains_from_states_that_were_made_of_features(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, tower = made
    train(JEPA, settings(tower), store, tmp_path)
    train(FLOW, settings(tower), store, tmp_path / "online", encoder_checkpoint=encoder_of(tmp_path))
    no_pictures(monkeypatch)
    kept = settings(tower, "data.features=half")
    train(FLOW, kept, store, tmp_path / "kept", encoder_checkpoint=encoder_of(tmp_path))
    np.testing.assert_allclose(losses(tmp_path / "kept", FLOW), losses(tmp_path / "online", FLOW), rtol=2e-3)


def test_features_that_are_not_there_or_do_not_fit(made: tuple[Path, Path], tmp_path: Path) -> None:
    store, tower = made
    with pytest.raises(StoreMissing, match=r"are not there yet \(there are: half, .*\); run `statevla features"):
        train(JEPA, settings(tower, "data.features=none"), store, tmp_path / "a")
    with pytest.raises(UsageError, match=r"model\.vision_pool: 2 in the configuration, 1 in the features"):
        train(JEPA, settings(tower, "data.features=half", "model.vision_pool=2"), store, tmp_path / "b")
    with pytest.raises(UsageError, match=r"model\.vision=conv is not"):
        micro_config("data.features=half")


def test_a_resumed_run_reads_the_features_that_it_began_with(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Of the same name but made another way they are refused; a checkpoint of before, which has no record, goes on."""
    store, tower = Path(shutil.copytree(made[0], tmp_path / "store")), made[1]
    config, run = settings(tower, "data.features=half"), tmp_path / "run"
    assert train(JEPA, config, store, run, progress=at_step(3, interrupt)).steps == 3
    checkpoint = encoder_of(run)
    make_features(FeatureConfig(store, str(tower), name="half", device="cpu", dtype="int8"), replace=True)
    said = "features/half are not those that it was trained from .dtype: float16 then, int8 now.*; make them again"
    with pytest.raises(StaleKey, match=said):
        train(JEPA, config, store, run, resume=True)
    with pytest.raises(StaleKey, match=said):
        latents_of_checkpoint(store, checkpoint, device="cpu")
    before = tmp_path / "before"
    shutil.copytree(run, before)
    state = json.loads((encoder_of(before) / layout.STATE).read_text())
    del state["loader"]["kept"]
    (encoder_of(before) / layout.STATE).write_text(json.dumps(state))
    assert train(JEPA, config, store, before, resume=True).steps == 6
    make_features(FeatureConfig(store, str(tower), name="half", device="cpu"), replace=True)
    assert train(JEPA, config, store, run, resume=True).steps == 6
