"""Where cabinets, stoves and racks stand in an evaluation's trials, and in the demonstrations."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.collect.libero_parts import Settings, TaskWork
from statevla.evaluators.conditions import Conditions, Fixtures
from statevla.sims.libero import suites
from statevla.sims.libero.row import LiberoSuite, LiberoWorld
from statevla.sims.suites import find_suite
from statevla.sims.world import Start
from tests.libero.conftest import require_assets

pytestmark = pytest.mark.libero

DEMONSTRATED, OTHER = 3, 40
"""Initial states."""
FURTHEST = 0.022
"""[m] that they stand apart, as the documents say."""


@pytest.fixture(scope="module")
def scene(simulator_installed: None) -> suites.Task:
    require_assets("libero_goal")
    return suites.tasks("libero_goal")[0]


def standing(task: suites.Task, model: str) -> NDArray[np.float64]:
    """Places ``[F, 3]`` of the scene's F fixtures in a MuJoCo model, as XML."""
    bodies = {body.get("name"): body for body in ET.fromstring(model).iter("body")}
    return np.array([str(bodies[f"{name}_main"].get("pos")).split() for name in suites.fixtures(task)], np.float64)


@contextmanager
def trials(task: suites.Task, fixtures: Fixtures) -> Iterator[LiberoWorld]:
    """The world in which `statevla eval libero --fixtures` makes its trials."""
    row = Conditions(fixtures=fixtures).of(find_suite(task.suite))
    assert isinstance(row, LiberoSuite)
    world = row.open(task, image_size=16, threads=1)
    try:
        world.come_up()
        yield world
    finally:
        world.close()


def begun(world: LiberoWorld, number: int) -> NDArray[np.float64]:
    """Places in the trial from this initial state."""
    world.begin(Start(number))
    return standing(world.task, world.receive().model)


def test_fixed_is_where_they_stand_in_the_demonstrations_and_drawn_is_elsewhere_in_every_trial(
    scene: suites.Task, tmp_path: Path
) -> None:
    collection = TaskWork(scene, tmp_path, Settings(scene.suite, 1, 0, DEMONSTRATED, 1, "after", 16, 0.0, 1.0))
    with trials(scene, "fixed") as world:
        fixed = [begun(world, number) for number in (DEMONSTRATED, OTHER)]
        recorded = standing(scene, world.simulator.ask(collection.requests()[0]).model)
    assert len(recorded) == 3  # a cabinet, a stove, a rack
    for places in fixed:
        np.testing.assert_array_equal(places, recorded)
    with trials(scene, "drawn") as world:
        first, second, again = (begun(world, number) for number in (DEMONSTRATED, OTHER, DEMONSTRATED))
    np.testing.assert_array_equal(again, first)
    for one, other in ((first, second), (first, recorded), (second, recorded)):
        apart = np.linalg.norm(one - other, axis=1)
        assert (apart > 1e-3).all()
        assert (apart < FURTHEST + 1e-3).all()
