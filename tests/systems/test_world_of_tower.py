"""A world head that foretells a frozen tower's features: the mean of each camera's patches, later on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.config import Config, load_config
from statevla.encoders import siglip
from statevla.encoders.siglip import load_siglip
from statevla.policies.policy import Policy
from statevla.systems.frozen import PooledTower
from statevla.systems.system import Given
from statevla.systems.table import find_system, sections
from statevla.trainers.command import TrainFlags, run_training
from statevla.trainers.trainer import train
from stores.errors import UsageError
from tests.models.build import batch, observations
from tests.systems.test_seen_by_tower import made as made  # the store and the tower, made once for both
from tests.trainers.micro import SETTINGS


def settings(system: str, tower: Path, *more: str) -> Config:
    vision = ("model.vision=siglip", f"model.vision_model={tower}", "model.vision_width=24", "model.patch_size=16")
    mine = (f"{system}.encoder=siglip", f"{system}.world_horizon=1", f"{system}.image_size=32", "training.max_steps=3")
    return load_config("tiny", None, (*SETTINGS, *vision, *mine, *more), sections())


def log(run: Path, system: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / f"metrics_{system}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("target", ["state", "motion"])
def test_the_target_is_the_mean_of_each_cameras_patches(made: tuple[Path, Path], target: str) -> None:
    tower = load_siglip(str(made[1]))
    config = settings("film", made[1], f"film.world_target={target}")
    policy = find_system("film").build(config, Given(backbone=tower))
    data = batch(4)
    with torch.no_grad():
        seen = [
            torch.cat([tower.patch_features(frames).mean(dim=1) for frames in obs.images], dim=1)
            for obs in (data.obs, data.next_obs)
        ]
        terms = policy.terms(data, {})
    wanted = seen[1] - seen[0] if target == "motion" else seen[1]
    torch.testing.assert_close(terms["world_wanted"], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["world_copied"], torch.zeros_like(wanted) if target == "motion" else seen[0],
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    assert policy.state_encoder is None
    assert policy.encoder.state(observations(3)).shape == (3, 2, 24)


@pytest.mark.parametrize("system", ["film", pytest.param("act", marks=pytest.mark.slow), "goal",
                                    pytest.param("vla", marks=pytest.mark.slow)])  # fmt: skip
def test_it_trains_without_an_encoder_from_pictures_and_from_kept_features(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    store, tower = made
    told = f"{system}.world_target=motion"
    train(system, settings(system, tower, told), store, tmp_path / "online")
    with monkeypatch.context() as without:
        without.setattr(siglip, "load_siglip", None)
        train(system, settings(system, tower, told, "data.features=half"), store, tmp_path / "kept")
    online, kept = (log(tmp_path / name, system) for name in ("online", "kept"))
    for name in ("loss", "world_mse"):
        np.testing.assert_allclose([line[name] for line in kept], [line[name] for line in online], rtol=5e-3)
    assert "world_copy_ratio" in online[-1]
    latest = tmp_path / "kept/checkpoints" / system / "checkpoint_latest"
    monkeypatch.setattr(siglip, "load_siglip", None)  # acting never asks it
    assert Policy.load(latest).model.world is not None


def test_beside_eyes_of_the_same_tower_no_picture_is_opened(made: tuple[Path, Path], tmp_path: Path) -> None:
    said: list[str] = []
    more = ("film.vision=siglip", "film.world_target=state", "data.features=half")
    config = load_config("tiny", None, (
        *SETTINGS, "model.vision=siglip", f"model.vision_model={made[1]}", "model.vision_width=24",
        "model.patch_size=16", "film.encoder=siglip", "film.world_horizon=1", "training.max_steps=2", *more,
    ), sections())  # fmt: skip
    train("film", config, made[0], tmp_path / "run", progress=lambda event: said.append(event.message))
    assert "trains from features/half, no picture is opened" in said


def test_what_a_tower_cannot_be_asked_is_one_line(made: tuple[Path, Path], tmp_path: Path) -> None:
    for key in ("film.world_target=motions", "film.world_target=latent"):
        with pytest.raises(UsageError, match=r"film\.encoder: siglip is a frozen tower, but film\.world_target=\w+ is"):
            settings("film", made[1], key)
    with pytest.raises(UsageError, match=r"goal\.encoder: siglip is a frozen tower, but what this policy sees is"):
        settings("goal", made[1], "goal.fusion=state", "goal.world_target=state")
    other = settings("film", made[1], "film.world_target=state", "film.encoder=dinov2")
    with pytest.raises(UsageError, match=r"encoder: dinov2, but model\.vision is siglip; set model\.vision=dinov2"):
        find_system("film").build(other, Given())


def test_a_command_may_say_it(made: tuple[Path, Path], tmp_path: Path) -> None:
    store, tower = made
    keys = ("film.encoder=siglip", "film.world_target=state", "film.world_horizon=1", "film.image_size=32",
            "model.vision=siglip", f"model.vision_model={tower}", "model.vision_width=24", "model.patch_size=16",
            "model.image_size=32", "training.max_steps=1", "training.batch_size=8", "data.lanes=2")  # fmt: skip
    flags = TrainFlags(system="film", preset="tiny", store=str(store), run=tmp_path / "run", overrides=keys)
    summary = run_training(flags, say=[].append)
    assert summary.steps == 1
    with pytest.raises(UsageError, match=r"film\.encoder.*not seen by film"):
        run_training(TrainFlags(system="film", preset="tiny", store=str(store), run=tmp_path / "other",
                                overrides=("film.encoder=siglip",)), say=[].append)  # fmt: skip


def test_it_is_no_part_of_the_weights(made: tuple[Path, Path]) -> None:
    config = settings("film", made[1], "film.world_target=state")
    policy = find_system("film").build(config, Given(backbone=load_siglip(str(made[1]))))
    assert isinstance(policy.encoder, PooledTower)
    assert not any(name.startswith("encoder.") for name in policy.state_dict())
