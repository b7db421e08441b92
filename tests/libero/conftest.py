"""Simulator tests run where the simulator is installed (`make libero`) and say plainly where it is not."""

import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from statevla.sims.libero import assets, paths, suites
from statevla.sims.libero.errors import SimulatorMissing
from statevla.sims.libero.worker import Simulator
from stores.errors import StateVLAError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "libero"
SUITE = "libero_object"


def missing_simulator() -> str | None:
    """Why simulator tests cannot run here; None when they can."""
    if "LIBERO_ASSETS" not in os.environ and (SHARED / "assets").is_dir():
        os.environ["LIBERO_ASSETS"] = str(SHARED / "assets")
    try:
        paths.prepare()
        assets.find(SUITE)
    except StateVLAError as error:
        return str(error)
    return None


def require_assets(suite: str) -> None:
    """Skips, with the reason, where a suite's are not: of `make test-libero` one suite alone is asked for."""
    try:
        assets.find(suite)
    except SimulatorMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def simulator_installed() -> None:
    reason = missing_simulator()
    if reason is not None:
        missing = pytest.fail if os.environ.get("SIMULATOR_REQUIRED") == "1" else pytest.skip
        missing(reason)


@pytest.fixture(scope="session")
def task(simulator_installed: None) -> suites.Task:
    return suites.tasks(SUITE)[0]


@pytest.fixture(scope="module")
def simulator(task: suites.Task) -> Iterator[Simulator]:
    with Simulator(task, render_threads=2) as running:
        yield running


@pytest.fixture(scope="session")
def demo_file(task: suites.Task) -> Path:
    """A demonstration file of the first task, with states and pictures from another machine."""
    file = SHARED / "demos" / f"{task.name}_demo.hdf5"
    if not file.is_file():
        pytest.skip(f"no demonstration file {file.name}: the folder ../shared/libero/demos is not there")
    with h5py.File(file):
        return file
