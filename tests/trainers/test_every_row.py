"""What training must do with every system of the table: a new row is tested by being there."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from statevla.config import Config, load_config
from statevla.data.loaders import iterate_once
from statevla.observation import Observation
from statevla.policies.checkpoint_controls import NoInstruction
from statevla.policies.noise import Draw, normal_rows
from statevla.policies.policy import Policy
from statevla.runs.files import MODEL, load_strict, read_tensors
from statevla.runs.state import read_state
from statevla.systems.acting import Scene
from statevla.systems.system import Given, Objective
from statevla.systems.table import find_system, sections
from statevla.trainers import run as running
from statevla.trainers.outcome import TrainSummary
from statevla.trainers.trainer import train
from stores.reader import Store
from tests.systems.build import ROWS, SMALL, Case
from tests.trainers.micro import SETTINGS, at_step, micro_store
from tests.trainers.together import checkpoint, lines

STEPS, STOP = 10, 4  # an epoch has 8
LENGTH = (f"training.max_steps={STEPS}", "training.schedule=cosine", "training.warmup_steps=2")
CLOCK = {"samples_per_s", "data_wait"}


@dataclass(frozen=True)
class Trained:
    """A row's whole run, and the model as it was when that ended. root: has the store, and runs of encoders by name."""

    case: Case
    root: Path
    run: Path
    model: Objective

    @property
    def latest(self) -> Path:
        return checkpoint(self.run, self.case.row.name)


def configuration(case: Case) -> Config:
    told = [text for text in SETTINGS if not text.startswith("model.")]
    return load_config("tiny", None, (*told, *SMALL, *case.options, *LENGTH), sections())


def trained(case: Case, root: Path, run: Path, **more: Any) -> TrainSummary:
    config = configuration(case)
    parents = () if more.get("resume") else case.row.parents_of(config)
    encoder = checkpoint(root / parents[0], parents[0]) if parents else None
    return train(case.row, config, root / "store", run, encoder_checkpoint=encoder, **more)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rows")
    micro_store(root / "store")
    for name in {name for case in ROWS for name in case.row.parents_of(configuration(case))}:
        trained(Case(find_system(name)), root, root / name)
    return root


@pytest.fixture(scope="module", params=ROWS, ids=str)
def whole(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    models: list[Objective] = []
    step = running.Run.train_step

    def watched(self: running.Run, batch: Any) -> Any:
        models.append(self.model)
        return step(self, batch)

    run = tmp_path_factory.mktemp(request.param.row.name) / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.Run, "train_step", watched)
        assert trained(request.param, root, run).steps == len(models) == STEPS
    return Trained(request.param, root, run, models[-1].eval())


def records(run: Path, system: str) -> list[dict[str, Any]]:
    """Metrics without what depends on the clock."""
    kinds = ("train", "val")
    return [{k: v for k, v in line.items() if k not in CLOCK} for kind in kinds for line in lines(run, system, kind)]


@pytest.mark.resume
def test_stopped_and_resumed_it_is_the_run_that_was_not(whole: Trained, tmp_path: Path) -> None:
    case, name = whole.case, whole.case.row.name
    interrupt = at_step(STOP, lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopped = trained(case, whole.root, tmp_path / "part", progress=interrupt)
    assert (stopped.steps, stopped.signal) == (STOP, signal.SIGTERM)
    assert trained(case, whole.root, tmp_path / "part", resume=True).steps == STEPS
    mine, theirs = read_state(checkpoint(tmp_path / "part", name)), read_state(whole.latest)
    assert mine.files == theirs.files  # sha256 of all weights and moments
    assert mine.rng == theirs.rng
    assert len(lines(whole.run, name, "train")) == STEPS
    assert records(tmp_path / "part", name) == records(whole.run, name)


def test_what_is_loaded_gives_what_was_trained_to_the_bit(whole: Trained) -> None:
    """A policy its chunks, by the way that evaluations load it; an encoder its states."""
    store, model = Store.open(whole.root / "store"), whole.model
    obs = next(iter(iterate_once(store, "val", 4, 10))).obs
    if whole.case.row.kind == "encoder":
        loaded = whole.case.row.build(configuration(whole.case), Given(store.spec)).eval()
        load_strict(loaded, read_tensors(whole.latest, read_state(whole.latest), MODEL), MODEL)
        with torch.inference_mode():
            assert torch.equal(loaded.state(obs), model.state(obs))
        return
    draws = [Draw(3, row) for row in range(4)]
    noise = None if model.noise_shape is None else normal_rows(draws, model.noise_shape)
    with torch.inference_mode():
        wanted = model.decide(Scene(obs.images, obs.robot_state, model.condition(obs.language), noise))
    got = Policy.load(whole.latest).act_batch(obs, draws)
    assert torch.equal(got.chunk, wanted.chunk)
    assert torch.equal(got.closing, wanted.closing)
    assert not torch.equal(got.chunk[0], got.chunk[1])


def test_a_policys_controls_act_and_are_others(whole: Trained) -> None:
    """Untrained, and told nothing; tests/evaluators/test_checkpoint_controls.py has what they are."""
    if whole.case.row.kind == "encoder":
        pytest.skip("it does not act")
    obs = next(iter(iterate_once(Store.open(whole.root / "store"), "val", 1, 10))).obs
    policy = Policy.load(whole.latest)
    text = next(iter(policy.trained))
    seen = Observation(tuple(frames[0].numpy() for frames in obs.images), obs.robot_state[0].numpy(), text)
    policies = policy, Policy.load(whole.latest, untrained=0), NoInstruction(policy)
    chunks = [each.act([seen], [Draw()]).chunk for each in policies]
    assert all(chunk.isfinite().all() for chunk in chunks)
    assert len({chunk.numpy().tobytes() for chunk in chunks}) == len({each.identity for each in policies}) == 3
