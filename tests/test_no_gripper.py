"""A robot whose action has no binary dimension: LeRobot's rows without ``--spec`` that names one."""

import json
import warnings
from pathlib import Path

import pytest

pytest.importorskip("av")

from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from statevla.config import Config, load_config
from statevla.evaluators.offline import evaluate_offline
from statevla.observation import Observation
from statevla.policies.policy import Policy
from statevla.runs import layout
from statevla.systems.table import find_system, sections
from statevla.trainers.trainer import train
from stores.errors import UsageError
from stores.reader import Store
from tests.pipelines.make_lerobot import write_dataset
from tests.trainers.micro import SETTINGS

SMALL = ("film.image_size=32", "act.image_size=32", "vla.image_size=32", "model.action_seq_len=4")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    source = write_dataset(folder / "push")
    ingest(IngestConfig("push", source, folder / "store", codec="png", language="hashed", train_split=0.75),
           isolated=False)  # fmt: skip
    compute_statistics(folder / "store")
    return folder / "store"


def config(*more: str) -> Config:
    return load_config("tiny", None, (*SETTINGS, *SMALL, "training.max_steps=2", "data.lanes=2", *more), sections())


@pytest.mark.parametrize(
    ("system", "option"),
    [
        ("flow_matching", "model.policy_context=z"),
        ("flow_matching", "model.policy_context=z+tokens"),
        ("film", "film.loss=l1"),
        ("act", "act.prior=learned"),
        ("vla", "vla.head=chunked"),
        ("vla", "vla.head=discrete"),
    ],
)
def test_it_trains_is_measured_and_acts(store: Path, tmp_path: Path, system: str, option: str) -> None:
    settings, encoder = config(option), None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch's of a layer without weights
        if system == "flow_matching":
            train("temporal_jepa", settings, store, tmp_path / "run")
            encoder = layout.checkpoints(tmp_path / "run", "phase1_temporal_jepa") / layout.LATEST
        train(system, settings, store, tmp_path / "run", encoder_checkpoint=encoder)
    name = find_system(system).folder
    lines = [json.loads(line) for line in layout.metrics(tmp_path / "run", name).read_text().splitlines()]
    assert {line["gripper_loss"] for line in lines} == {0.0}
    assert not any("gripper_accuracy" in line for line in lines)  # 0 would say that every command is wrong

    policy, opened = Policy.load(layout.checkpoints(tmp_path / "run", name) / layout.LATEST), Store.open(store)
    results = evaluate_offline(policy, opened)
    assert list(results.mse) == ["left", "right"]
    assert (results.gripper_accuracy, results.gripper_transition_f1, results.gripper_ece) == (None, None, None)
    segment = opened.read_segment(0)
    seen = Observation(tuple(f[0] for f in segment.decode()), segment.robot_state[0], opened.manifest.instructions[0])
    acted = policy.act([seen])
    assert acted.chunk.shape == (1, 4, 2)
    assert acted.chunk.isfinite().all()


def test_changes_of_a_gripper_that_is_not_there_are_not_drawn_more_often(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.oversample_gripper: .*no binary dimension.*leave it out"):
        train("film", config("data.oversample_gripper=4"), store, tmp_path / "run")
