"""Validation says of a split what a mean over its rows is, however the split is cut into batches."""

from pathlib import Path

import pytest
import torch

from statevla.config import Config
from statevla.data.loaders import SplitReader
from statevla.runs import layout
from statevla.systems.table import find_system
from statevla.trainers.ranks import Ranks
from statevla.trainers.run import Run
from statevla.trainers.trainer import train
from statevla.trainers.validation import validate
from stores.reader import Store
from tests.trainers.micro import config_of_all, micro_store

JEPA = "temporal_jepa"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_store(tmp_path_factory.mktemp("validation") / "store")


@pytest.fixture(scope="module")
def encoder(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("encoder")
    train(JEPA, config_of_all("training.max_steps=1"), store, run)
    return layout.checkpoints(run, find_system(JEPA).folder) / layout.LATEST


def found(run: Run, config: Config, batch: int) -> dict[str, float]:
    reader = SplitReader(
        run.store, "val", batch, config.model.action_seq_len, config.data, needs=run.model.needs, mixed=True
    )
    return validate(run.model, reader, torch.device("cpu"), False, Ranks())


@pytest.mark.parametrize("target", ["motion", "state"])
def test_rows_without_a_target_do_not_weigh(store: Path, encoder: Path, tmp_path: Path, target: str) -> None:
    config = config_of_all("film.world_horizon=7", "film.encoder=temporal_jepa", f"film.world_target={target}")
    run = Run(find_system("film"), config, Store.open(store), tmp_path, encoder, unfinished_parent=True)
    assert run.model.world is not None
    run.model.world.mean.fill_(0.1)
    whole = found(run, config, 1000)
    assert 0 < whole["world_rows"] < 1
    for batch in (4, 8, 32):
        assert found(run, config, batch) == pytest.approx(whole, rel=1e-4)
    parts = whole["world_mse"] + whole["world_l1"]
    assert whole["loss"] == pytest.approx(whole["action_loss"] + config.sections["film"].world_weight * parts)


def test_a_latents_divergence_is_of_rows_and_the_inverse_dynamics_of_steps(store: Path, tmp_path: Path) -> None:
    for system, names in (("act", ("kl",)), (JEPA, ("inverse", "jepa_mse", "copy_mse"))):
        inverse = "training.phase1.inverse_dynamics_"  # of several steps, which episodes end before
        config = config_of_all(f"{inverse}weight=1", f"{inverse}horizon=6")
        run = Run(find_system(system), config, Store.open(store), tmp_path)
        whole = found(run, config, 1000)
        for batch in (4, 8, 32):
            each = found(run, config, batch)
            assert [each[name] for name in names] == pytest.approx([whole[name] for name in names], rel=1e-4)


def test_a_split_without_any_target_is_0(store: Path, encoder: Path, tmp_path: Path) -> None:
    config = config_of_all("film.world_horizon=7", "film.encoder=temporal_jepa", "film.world_target=motion")
    run = Run(find_system("film"), config, Store.open(store), tmp_path, encoder, unfinished_parent=True)
    assert run.model.world is not None
    run.model.world.horizon = 40
    whole = found(run, config, 8)
    assert whole["world_mse"] == 0
    assert whole["loss"] == pytest.approx(whole["action_loss"])
