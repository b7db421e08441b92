"""Policies of a robot that no suite has: refused before anything else is said, with what can be measured of them."""

import re
from pathlib import Path

import pytest

from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from statevla.evaluators.diagnose import diagnose
from statevla.evaluators.evaluate import evaluate
from statevla.evaluators.language import evaluate_language
from statevla.policies.policy import Policy
from stores.errors import ObsSpecMismatch, UsageError
from stores.reader import Store
from tests.pipelines.test_robomimic import write_robomimic
from tests.trainers.micro import micro_config

OTHER_ROBOT = r"the simulator of tabletop has .*, the policy has .*statevla eval offline"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("cans")
    source = write_robomimic(folder / "can.hdf5")
    ingest(IngestConfig("robomimic", source, folder / "store", codec="png", language="hashed"), isolated=False)
    compute_statistics(folder / "store")
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def policy(store: Store) -> Policy:
    return Policy.untrained(micro_config(), store)


def test_success_is_refused_by_the_robot_not_by_the_words(policy: Policy, tmp_path: Path) -> None:
    """More words, which the refusal of instructions would advise, would not help."""
    with pytest.raises(ObsSpecMismatch, match=OTHER_ROBOT):
        evaluate(policy, "tabletop", out=tmp_path / "out", name="p")
    with pytest.raises(ObsSpecMismatch, match=OTHER_ROBOT):
        evaluate_language(policy, "tabletop", out=tmp_path / "out", name="p")
    assert not (tmp_path / "out").exists()


def test_a_diagnosis_says_that_there_is_no_simulator(policy: Policy, store: Store) -> None:
    wanted = f"{store.root}: its suite is called 'robomimic', which no simulator here has"
    with pytest.raises(UsageError, match=f"{re.escape(wanted)}.*statevla eval offline") as refused:
        diagnose(policy, store, name="p")
    assert "Did you mean" not in str(refused.value)
    with pytest.raises(UsageError, match=r"no episode of the tasks .*; it has PickPlaceCan"):
        diagnose(policy, store, name="p", suite="tabletop")
