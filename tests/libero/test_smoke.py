"""The whole way in the real simulator, as short as it can be: collect, replay, evaluate a policy, resume."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipelines.collect.libero import collect_libero
from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from pipelines.replay import replay_of_files
from statevla.evaluators.evaluate import evaluate
from statevla.observation import LIBERO, Observation, ObsSpec
from statevla.policies.execution import Execution
from statevla.policies.noise import Draw, normal_rows
from statevla.policies.policy import Policy
from statevla.sims.libero import suites
from statevla.systems.acting import Acted
from statevla.systems.find import find_policy
from statevla.trainers.command import TrainFlags, run_training

pytestmark = pytest.mark.libero

BUTTER = 6
"""A task whose demonstrations are short."""


@dataclass
class Wander:
    """A policy that moves at random and keeps what it saw."""

    obs_spec: ObsSpec = field(default_factory=lambda: LIBERO)
    identity: str = "wander"
    chunk: int = 8
    seen: list[Observation] = field(default_factory=list)

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        self.seen += observations
        return Acted(0.5 * normal_rows(draws or [], (8, 7)).clamp(-1, 1), None)


@pytest.fixture(scope="module")
def collected(simulator_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collected")
    summary = collect_libero("libero_object", out, tasks=[BUTTER], episodes=1, first_init=30)
    assert summary.episodes == 1
    return out


def layout(file: Path) -> dict[str, object]:
    """Names, dtypes, ranks and attribute names of a demonstration file."""
    found: dict[str, object] = {}

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if name.startswith("demo_0"):
            found[name] = (
                (item.dtype, item.shape[1:])
                if isinstance(item, h5py.Dataset)
                else sorted({*item.attrs} - {"init_state_index", "attempt", "made_by"})
            )

    with h5py.File(file) as demos:
        demos["data"].visititems(add)
        found["data"] = sorted({*demos["data"].attrs} - {"init_states_used", "collected_with"})
    return found


def test_a_collected_file_has_the_layout_of_a_recorded_one(collected: Path, demo_file: Path) -> None:
    (ours,) = collected.glob("*.hdf5")
    theirs = demo_file.with_name(ours.name)
    assert layout(ours) == layout(theirs)


def test_a_collected_demonstration_succeeds_when_replayed(collected: Path, tmp_path: Path) -> None:
    demos = replay_of_files(collected, "libero_object", [BUTTER])
    results = evaluate(demos, "libero_object", out=tmp_path, name="replay", tasks=[BUTTER])
    assert (results.successes, results.trials, results.errors) == (1, 1, 0)


def test_a_demonstration_of_another_machine_succeeds_when_replayed(demo_file: Path, tmp_path: Path) -> None:
    demos = replay_of_files(demo_file.parent, "libero_object", [0], limit=1)
    results = evaluate(demos, "libero_object", out=tmp_path, name="replay", tasks=[0])
    assert (results.successes, results.trials, results.errors) == (1, 1, 0)


def test_two_short_trials_of_a_policy(simulator_installed: None, tmp_path: Path) -> None:
    policy = Wander()
    options = {"out": tmp_path, "name": "wander", "tasks": [BUTTER], "num_trials": 2, "first_init": 40}
    results = evaluate(policy, "libero_object", max_steps=12, execution=Execution(4), videos=1, **options)
    assert (results.successes, results.trials, results.errors) == (0, 2, 0)
    assert len(policy.seen) == 2 * 3
    assert {o.instruction for o in policy.seen} == {"pick the butter and place it in the basket"}
    starts = [policy.seen[0], policy.seen[3]]
    assert not np.array_equal(starts[0].images, starts[1].images)
    np.testing.assert_allclose(starts[0].robot_state[7:], [0.04, -0.04], atol=0.003)  # settled: gripper open
    assert (tmp_path / results.records[0].video).is_file()
    again = evaluate(policy, "libero_object", max_steps=12, execution=Execution(4), videos=1, **options)
    assert again.steps_run == 0
    assert again.records == results.records


@pytest.fixture(scope="module")
def trained(simulator_installed: None, demo_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both phases, a few steps each, on the recorded demonstrations of two tasks."""
    root = tmp_path_factory.mktemp("trained")
    (root / "raw").mkdir()
    for index in (0, BUTTER):
        name = f"{suites.tasks('libero_object')[index].name}_demo.hdf5"
        (root / "raw" / name).symlink_to(demo_file.with_name(name))
    ingest(IngestConfig(suite="libero_object", source=root / "raw", out=root / "store", language="hashed"))
    compute_statistics(root / "store")
    for phase in (1, 2):
        run_training(
            TrainFlags(
                phase=phase, store=str(root / "store"), run=root / "run", recipe="libero",
                overrides=("training.max_steps=3", "training.batch_size=4"),
            ),
            print,
        )  # fmt: skip
    return root / "run"


def test_one_and_two_workers_do_the_same(trained: Path, tmp_path: Path) -> None:
    options = {"name": "trained", "tasks": [0, BUTTER], "num_trials": 2, "first_init": 40, "max_steps": 12}
    told = []
    for workers in (1, 2):
        policy = Policy.load(find_policy(trained))
        results = evaluate(policy, "libero_object", out=tmp_path / str(workers), workers=workers, **options)
        told.append([(r.key, r.outcome, r.steps, r.actions) for r in results.records])
    assert told[0] == told[1]
    assert len({actions for *_, actions in told[0]}) == 4


def test_the_task_list_is_the_benchmarks(simulator_installed: None) -> None:
    counts = {suite: len(suites.tasks(suite)) for suite in suites.BASES}
    assert counts == {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
    assert all(suites.init_states(task).shape[0] == 50 for suite in counts for task in suites.tasks(suite))
