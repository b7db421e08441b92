"""What a worker does when its simulator raises, dies, hangs or cannot draw: a named error, and no process left."""

import os
import signal

import numpy as np
import psutil
import pytest

from statevla.sims.libero import paths, suites
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.libero.protocol import Reset, Run, RunExpert
from statevla.sims.libero.worker import Simulator, Timeouts
from stores.errors import UsageError

pytestmark = pytest.mark.libero


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def test_what_the_simulator_raises_arrives_as_text(task: suites.Task) -> None:
    simulator = Simulator(task)
    _ = simulator.scenery
    pid = simulator.pid or 0
    with pytest.raises(SimulatorFailed, match="RunExpert before a Reset"):
        simulator.ask(RunExpert(1))
    assert gone(pid)
    with pytest.raises(SimulatorFailed):
        simulator.ask(RunExpert(1))
    simulator.close()


def test_a_killed_worker_is_named_and_so_is_the_likely_reason(task: suites.Task) -> None:
    simulator = Simulator(task)
    _ = simulator.scenery
    pid = simulator.pid or 0
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(SimulatorFailed, match=r"memory.*fewer --workers"):
        simulator.ask(Reset(suites.init_states(task)[0], 1))
    assert gone(pid)
    simulator.close()


def test_a_worker_that_hangs_is_killed(task: suites.Task) -> None:
    simulator = Simulator(task, timeouts=Timeouts(step=0.01))
    simulator.ask(Reset(suites.init_states(task)[0], 1))
    pid = simulator.pid or 0
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(SimulatorFailed, match="did not answer 'Run' in time"):
        simulator.ask(Run(np.zeros((4, 7))))
    assert gone(pid)
    simulator.close()


def test_without_opengl_the_packages_and_the_variable_are_named(
    task: suites.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", os.devnull)  # libEGL finds no driver
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(SimulatorFailed, match=r"libegl-mesa0.*MUJOCO_GL=") as raised, Simulator(task) as simulator:
        _ = simulator.scenery
    assert "\n" not in str(raised.value)


def test_a_library_that_draws_into_windows_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(UsageError, match=r"MUJOCO_GL: expected egl or osmesa, .*got 'glfw'; unset it"):
        paths.prepare()
