"""Policies over a frozen tower: kept features and pictures train alike, and what does not fit is one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipelines.derive.features import FeatureConfig, make_features
from statevla.config import Config, load_config
from statevla.encoders import siglip
from statevla.encoders.siglip import load_siglip
from statevla.evaluators.offline import evaluate_offline
from statevla.models.tokenizer import FrozenFeatures
from statevla.policies.policy import Policy
from statevla.systems.describe import describe_system
from statevla.systems.film import PooledFilmNet
from statevla.systems.table import find_system, sections
from statevla.trainers.trainer import train
from stores.errors import UsageError
from stores.reader import Store
from stores.spec import LIBERO
from tests.encoders.test_siglip import save_small_siglip
from tests.trainers.micro import SETTINGS, micro_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with kept features, and the tower."""
    folder = tmp_path_factory.mktemp("features")
    store, tower = micro_store(folder / "store"), save_small_siglip(folder / "tower")
    make_features(FeatureConfig(store, str(tower), name="half", device="cpu", dtype="float16"))
    return store, tower


def settings(system: str, tower: Path, *more: str) -> Config:
    vision = ("model.vision=siglip", f"model.vision_model={tower}", "model.vision_width=24", "model.patch_size=16")
    mine = (f"{system}.vision=siglip", "training.max_steps=4")
    return load_config("tiny", None, (*SETTINGS, *vision, *mine, *more), sections())


def losses(run: Path, system: str) -> np.ndarray:
    lines = (run / f"metrics_{system}.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


@pytest.mark.parametrize(
    ("system", "more"),
    [
        ("film", ()),
        ("act", ()),
        ("act", ("act.observation=vector",)),
        ("vla", ()),
        ("goal", ()),
        ("goal", ("goal.fusion=late",)),
    ],
)
def test_kept_features_stand_in_the_place_of_pictures(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, more: tuple[str, ...]
) -> None:
    store, tower = made
    train(system, settings(system, tower, *more), store, tmp_path / "online")
    with monkeypatch.context() as without:
        without.setattr(siglip, "load_siglip", None)
        said: list[str] = []
        config = settings(system, tower, "data.features=half", *more)
        train(system, config, store, tmp_path / "kept", progress=lambda event: said.append(event.message))
    assert "trains from features/half, no picture is opened" in said
    np.testing.assert_allclose(losses(tmp_path / "kept", system), losses(tmp_path / "online", system), rtol=2e-3)
    latest = tmp_path / "kept/checkpoints" / system / "checkpoint_latest"
    weights = load_file(latest / "model.safetensors")
    assert not any(value.ndim == 4 for value in weights.values()), "no convolution of its own"
    rows = Store.open(store)
    folders = [tmp_path / run / "checkpoints" / system / "checkpoint_latest" for run in ("kept", "online")]
    kept, online = (evaluate_offline(Policy.load(folder), rows).mse_normalized for folder in folders)
    assert kept == pytest.approx(online, rel=1e-2)


def test_kept_features_are_enough_for_a_vector_of_states_that_a_tower_sees(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    """Whether the states are kept, or encoded at every step of kept features."""
    store, tower = made
    sees = ("act.vision=parent", "act.observation=vector", "act.encoder=temporal_jepa")
    train("temporal_jepa", settings("act", tower, *sees), store, tmp_path / "encoder")
    encoder = tmp_path / "encoder/checkpoints" / find_system("temporal_jepa").folder / "checkpoint_latest"
    ways = {"online": ("data.latents=false",), "kept": ("data.features=half",)}
    ways["encoded"] = (*ways["online"], *ways["kept"])
    for name, how in ways.items():
        train("act", settings("act", tower, *sees, *how), store, tmp_path / name, encoder_checkpoint=encoder)
    for name in ("kept", "encoded"):
        np.testing.assert_allclose(losses(tmp_path / name, "act"), losses(tmp_path / "online", "act"), rtol=2e-3)


def test_the_chapters_film_has_its_count_and_starts_as_without_instruction() -> None:
    changes = ("model.vision=siglip", "film.vision=siglip", "film.hidden=512")
    found = describe_system(find_system("film"), load_config("base", None, changes, sections()))
    assert found["trainable"] == sum(found["parts"].values()) == 4_220_230
    config = settings("film", Path("nowhere"))
    torch.manual_seed(0)
    net = PooledFilmNet(FrozenFeatures(config.model, None), 16, 10, LIBERO)
    features, condition = torch.randn(3, 2, 4, 24), net.condition(torch.randn(3, 512))
    plain = net.visual(features.mean(dim=2).flatten(1)).relu()
    assert torch.equal(net.see(features, condition), plain)
    torch.nn.init.normal_(net.generator[-1].bias)
    gamma, beta = net.generator(condition).chunk(2, dim=-1)
    expected = (net.visual(features.mean(dim=2).flatten(1)) * (1 + gamma) + beta).relu()
    torch.testing.assert_close(net.see(features, condition), expected)


def test_the_towers_patches_are_counted_and_get_no_gradient(made: tuple[Path, Path]) -> None:
    changes = ("model.vision=siglip", "vla.vision=siglip", "vla.head=continuous")
    found = describe_system(find_system("vla"), load_config("base", None, changes, sections()))
    stems, places = 2 * (3 * 14 * 14 * 768 + 768), 2 * 256 * 768
    assert found["trainable"] == 130_523_206 - stems - places + 2 * (768 * 768 + 768) + 2 * 196 * 768
    backbone = load_siglip(str(made[1]))
    assert not any(parameter.requires_grad for parameter in backbone.tower.parameters())


@pytest.mark.parametrize("system", ["film", "act", "vla", "goal"])
def test_what_does_not_go_together(made: tuple[Path, Path], tmp_path: Path, system: str) -> None:
    store, tower = made
    plain = load_config("tiny", None, (*SETTINGS, f"{system}.vision=dinov2"), sections())
    with pytest.raises(
        UsageError, match=rf"{system}.vision: dinov2, but model.vision is conv; set model.vision=dinov2"
    ):
        train(system, plain, store, tmp_path / "a")
    with pytest.raises(UsageError, match=rf"leave it out, or set {system}.vision to that tower"):
        train(system, settings(system, tower, f"{system}.vision=conv"), store, tmp_path / "b")
    moved = settings(system, tower, "data.features=half", "training.augment_shift=4")
    with pytest.raises(UsageError, match=r"data.features: augmentation makes other pictures at every step"):
        train(system, moved, store, tmp_path / "c")
    with pytest.raises(UsageError, match=r"its features are \(4, 24\) \(patches, width\), the configuration expects"):
        train(system, settings(system, tower, "model.vision_width=48"), store, tmp_path / "d")


@pytest.mark.parametrize("system", ["vla", "goal"])
def test_stages_in_the_place_of_patches_are_not_a_towers(made: tuple[Path, Path], system: str) -> None:
    said = rf"{system}.stem: conv is for {system}.vision=conv, not for a frozen tower; set {system}.stem=patch"
    with pytest.raises(UsageError, match=said):
        settings(system, made[1], f"{system}.stem=conv")


def test_a_goals_state_is_read_from_pictures(made: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"goal.fusion: state is read from pictures, goal.vision=siglip sees features"):
        settings("goal", made[1], "goal.fusion=state")
