"""StaMo over a frozen tower: kept features and the tower itself train alike, and what does not fit is one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pipelines.derive.features import FeatureConfig, make_features
from statevla.config import Config
from statevla.config.load import load_config
from statevla.encoders import siglip
from statevla.evaluators.state import evaluate_states
from statevla.models.frozen_tokens import FrozenTokens
from statevla.runs.state import read_state
from statevla.systems.stamo import StamoModel, build
from statevla.systems.system import Given
from statevla.systems.table import sections
from statevla.trainers.trainer import train
from stores.errors import StaleKey, UsageError
from stores.reader import Store
from tests.encoders.test_siglip import save_small_siglip
from tests.models.build import normalization, observations
from tests.systems.test_stamo import MICRO
from tests.trainers.micro import SETTINGS, micro_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with kept features, and the tower."""
    folder = tmp_path_factory.mktemp("features")
    store, tower = micro_store(folder / "store"), save_small_siglip(folder / "tower")
    for name, dtype in {"half": "float16", "int8": "int8"}.items():
        make_features(FeatureConfig(store, str(tower), name=name, device="cpu", dtype=dtype))
    return store, tower


def settings(tower: Path, *more: str) -> Config:
    vision = ("model.vision=siglip", f"model.vision_model={tower}", "model.vision_width=24", "model.patch_size=16")
    return load_config(
        "tiny", None, (*SETTINGS, *MICRO, "stamo.features=siglip", "training.max_steps=4", *vision, *more), sections()
    )


def losses(run: Path) -> np.ndarray:
    return np.array([json.loads(line)["loss"] for line in (run / "metrics_stamo.jsonl").read_text().splitlines()])


def latest(run: Path) -> Path:
    return run / "checkpoints/stamo/checkpoint_latest"


@pytest.mark.parametrize(("name", "tolerance"), [("half", 2e-3), ("int8", 5e-2)])
def test_kept_features_come_beside_the_pictures_and_give_the_towers_losses(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tolerance: float
) -> None:
    store, tower = made
    train("stamo", settings(tower), store, tmp_path / "online")
    with monkeypatch.context() as without:
        without.setattr(siglip, "load_siglip", None)
        said: list[str] = []
        config = settings(tower, f"data.features={name}", "data.cache=decoded")
        train("stamo", config, store, tmp_path / "kept", progress=lambda event: said.append(event.message))
    assert f"trains from pictures, beside features/{name}" in said
    np.testing.assert_allclose(losses(tmp_path / "kept"), losses(tmp_path / "online"), rtol=tolerance)
    identities = [read_state(latest(tmp_path / run)).backbone for run in ("kept", "online")]
    assert identities[0] == identities[1] is not None
    weights = load_file(latest(tmp_path / "kept") / "model.safetensors")
    assert not any(key.startswith("stem") for key in weights)
    found = evaluate_states(tmp_path / "kept", Store.open(store), "cpu")
    assert found.notes[0].startswith(f"its features are of the frozen siglip {tower}, revision ")


def test_the_state_follows_the_features_and_the_tower_gets_no_gradient(made: tuple[Path, Path]) -> None:
    from statevla.encoders.siglip import load_siglip

    tower = load_siglip(str(made[1]))
    torch.manual_seed(0)
    model: StamoModel = build(settings(made[1]), Given(backbone=tower))
    obs = observations(3)
    state = model.state(obs)
    state.square().sum().backward()
    assert model.compressor.enter.weight.grad is not None
    assert all(parameter.grad is None for parameter in tower.tower.parameters())
    features = tuple(tower.patch_features(frames) for frames in obs.images)
    kept = type(obs)(obs.images, obs.robot_state, obs.language, features=features)
    torch.testing.assert_close(model.state(kept), state)
    other = type(obs)(obs.images, obs.robot_state, obs.language, features=tuple(f.flip(1) for f in features))
    assert not torch.allclose(model.state(other), state)


def test_another_revision_of_the_tower_is_named(made: tuple[Path, Path], tmp_path: Path) -> None:
    store, tower = made
    mine = Path(shutil.copytree(tower, tmp_path / "tower"))
    train("stamo", settings(mine, "training.max_steps=1"), store, tmp_path / "run")
    weights = load_file(mine / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, mine / "model.safetensors", {"format": "pt"})
    with pytest.raises(StaleKey, match=r"trained with the vision backbone .*; use the same weights"):
        evaluate_states(tmp_path / "run", Store.open(store), "cpu")


def test_features_and_towers_that_do_not_go_together(made: tuple[Path, Path], tmp_path: Path) -> None:
    store, tower = made
    plain = load_config("tiny", None, (*MICRO, "stamo.features=dinov2"), sections())
    with pytest.raises(UsageError, match=r"stamo.features: dinov2, but model.vision is conv; set model.vision=dinov2"):
        build(plain, Given())
    with pytest.raises(UsageError, match=r"data.features: half are of a frozen tower, which stamo.features=conv does"):
        train("stamo", settings(tower, "stamo.features=conv", "data.features=half"), store, tmp_path / "a")
    with pytest.raises(UsageError, match=r"model.vision_width: 48 in the configuration, 24 in the features"):
        train("stamo", settings(tower, "data.features=half", "model.vision_width=48"), store, tmp_path / "b")
    with pytest.raises(UsageError, match=r"its features are \(4, 24\) \(patches, width\), the configuration expects"):
        train("stamo", settings(tower, "model.vision_width=48"), store, tmp_path / "c")


def test_tokens_of_a_frozen_encoder_are_those_of_the_patches_by_camera() -> None:
    config = load_config("tiny", None, (*SETTINGS, *MICRO, "stamo.features=parent"), sections())
    torch.manual_seed(0)
    model = build(config, Given(statistics=normalization()))
    assert isinstance(model.stem, FrozenTokens)
    assert not any(parameter.requires_grad for parameter in model.stem.parameters())
    assert not model.train().stem.encoder.training
    obs, other = observations(2), observations(2, seed=1)
    whole = model.stem.encoder(obs).tokens
    found = model.stem.of(obs)
    patches = config.model.patches
    assert torch.equal(found[:, 0], whole[:, 2 : 2 + patches])
    assert torch.equal(found[:, 1], whole[:, 2 + patches : 2 + 2 * patches])
    second = dataclasses.replace(obs, images=(obs.images[0], other.images[1]))
    assert torch.equal(model.stem.of(second)[:, 0], found[:, 0]), "causal: what comes later is not seen"
    assert not torch.allclose(model.stem.of(second)[:, 1], found[:, 1])
    assert not torch.allclose(model.stem.of(dataclasses.replace(obs, language=other.language)), found)
    assert not torch.allclose(model.state(second), model.state(obs))


def test_kept_features_are_refused_where_a_parents_tokens_are_seen(made: tuple[Path, Path]) -> None:
    _, tower = made
    with pytest.raises(UsageError, match=r"frozen tower, which stamo\.features=parent does not see; leave them"):
        build(settings(tower, "stamo.features=parent", "data.features=half"), Given())
