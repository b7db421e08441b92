"""A new system is one file and one row: this file is one, and the whole way works with it."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from statevla.config import Config
from statevla.config.load import flatten, load_config
from statevla.config.options import option
from statevla.config.schema import SystemOptions
from statevla.data.batch import Batch
from statevla.models.losses import LossParts, masked_mse
from statevla.runs import layout
from statevla.runs.state import read_state
from statevla.systems import table
from statevla.systems.find import to_resume
from statevla.systems.system import Given, Noise, Objective, System, Terms
from statevla.trainers.command import TrainFlags, run_training
from statevla.trainers.trainer import train
from stores.errors import UsageError
from tests.trainers.micro import SETTINGS, at_step, micro_store


@dataclass(frozen=True)
class ToyOptions(SystemOptions):
    width: int = option(4, "hidden width", least=1)
    jitter: float = option(0.1, "noise on the robot's state", least=0)


class Toy(Objective):
    """Regresses the chunk from the robot's state."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.options: ToyOptions = config.section("toy")
        self.chunk = config.model.action_seq_len
        self.layers = nn.Sequential(
            nn.Linear(9, self.options.width), nn.SiLU(), nn.Linear(self.options.width, 7 * self.chunk)
        )
        self.query = nn.Parameter(torch.ones(1, self.options.width))

    def draw(self, rows: int, generator: torch.Generator) -> Noise:
        return {"jitter": torch.randn(rows, 9, generator=generator)}

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        state = batch.obs.robot_state + self.options.jitter * noise["jitter"]
        hidden = self.layers[1](self.layers[0](state)) * self.query
        told = self.layers[2](hidden).reshape(len(batch), self.chunk, 7)
        return {"told": told, "wanted": batch.chunk, "keep": ~batch.is_pad}

    def loss(self, terms: Terms) -> LossParts:
        total = masked_mse(terms["told"], terms["wanted"], terms["keep"])
        return LossParts(total, {"mse": total.detach()}, terms["keep"].sum().float())

    def monitors(self, terms: Terms) -> dict[str, float]:
        return {"spread": float(terms["told"].std())}


def build(config: Config, given: Given) -> Toy:
    return Toy(config)


TOY = System("toy", "toy", "policy", "a toy", build, ToyOptions, "toy")


@pytest.fixture
def toy() -> Iterator[System]:
    table.SYSTEMS.append(TOY)
    yield TOY
    table.SYSTEMS.remove(TOY)


@pytest.mark.resume
def test_it_trains_stops_resumes_to_the_bit_and_is_found(toy: System, tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    common = (text for text in SETTINGS if text.startswith(("data.", "training.")) and "phase" not in text)
    settings = (*common, "training.max_steps=12", "toy.width=5", "toy.learning_rate=1e-2")
    config = load_config("tiny", None, settings, table.sections())
    whole = train("toy", config, store, tmp_path / "whole")
    assert whole.steps == 12
    interrupt = at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    told: list[str] = []
    flags = TrainFlags(system="toy", store=str(store), run=tmp_path / "part", preset="tiny", overrides=settings)
    part = run_training(flags, told.append, interrupt)
    assert (part.steps, part.signal) == (5, signal.SIGTERM)
    assert told[-1] == f"stopped at step 5; go on with: statevla train --resume {part.checkpoint}"
    assert to_resume(tmp_path / "part") == (toy, Path(part.checkpoint))
    again = run_training(TrainFlags(resume=tmp_path / "part"), told.append)
    assert (again.steps, again.signal) == (12, None)
    mine, theirs = read_state(again.checkpoint), read_state(whole.checkpoint)
    assert mine.files["model.safetensors"] == theirs.files["model.safetensors"]
    assert table.config_of(mine, "here").section("toy") == ToyOptions(width=5, learning_rate=1e-2)
    assert "toy.width" in flatten(mine.config)
    lines = layout.metrics(tmp_path / "whole", "toy").read_text()
    assert '"spread"' in lines
    assert (tmp_path / "whole/checkpoints/toy/checkpoint_best").is_dir()


def test_its_options_are_its_own(toy: System) -> None:
    sections = table.sections()
    with pytest.raises(
        UsageError, match=r"jitter is an option of toy, not of training.phase2; did you mean toy.jitter"
    ):
        load_config("tiny", None, ("training.phase2.jitter=1",), sections)
    with pytest.raises(UsageError, match=r"gripper_weight is an option of training.phase2, not of toy"):
        load_config("tiny", None, ("toy.gripper_weight=1",), sections)
    with pytest.raises(UsageError, match=r"toy.width: expected 1 or more, got 0"):
        load_config("tiny", None, ("toy.width=0",), sections)
    with pytest.raises(UsageError, match=r"unknown configuration key 'toy.width'"):
        load_config("tiny", None, ("toy.width=1",))


def test_other_systems_checkpoints_do_not_change_with_it(toy: System, tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    config = load_config("tiny", None, (*SETTINGS, "training.max_steps=1"), table.sections())
    summary = train("temporal_jepa", config, store, tmp_path / "run")
    assert "toy" not in read_state(summary.checkpoint).config
