"""Steps a second of the LIBERO simulator behind its process boundary, against the bare simulator.

The limit is LIBERO's own environment in a loop, cameras drawn at every step, as many processes as there are workers.
Ours is driven the same way: one message, one step, one look. What is gained by looking only at the frames that a policy
asks for is a detail beside it. Both take turns, so that other load on the machine meets both.
"""

import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statevla.bench.machine import describe_machine, usable_cores
from statevla.sims.libero import assets, paths, suites
from statevla.sims.libero.protocol import Reset, Run
from statevla.sims.libero.worker import Simulator, ready
from stores.errors import UsageError

IMAGE_SIZE = 128
CHUNK = 10
READY, DONE = "ready", "done"


def bench_libero(workers: int = 1, steps: int = 60, rounds: int = 3, suite: str = "libero_object") -> dict[str, Any]:
    """Environment steps a second, all workers together; medians over ``rounds`` turns.

    Returns name, unit, ours, limit, ratio (ours / limit), peers, machine, details. ``details.look_every_10`` is ours
    with chunks of 10 steps and one look each.

    Raises:
        UsageError: a count is below 1.
        SimulatorMissing, SimulatorVersion, SimulatorFailed: the simulator is not set up.
    """
    if min(workers, steps, rounds) < 1:
        raise UsageError(f"expected workers, steps and rounds of at least 1, got {workers}, {steps} and {rounds}")
    paths.prepare()
    task = suites.tasks(suite)[0]
    threads = max(1, usable_cores() // workers)
    rates: dict[str, list[float]] = {"ours": [], "limit": [], "chunked": []}
    simulators = [Simulator(task, image_size=IMAGE_SIZE, render_threads=threads) for _ in range(workers)]
    bare = [_Bare(task, threads) for _ in range(workers)]
    try:
        for simulator in simulators:
            simulator.ask(Reset(suites.init_states(task)[0], suites.SETTLE_STEPS))
        for process in bare:
            process.wait()
        for _ in range(rounds):
            rates["limit"].append(workers * steps / _run_bare(bare, steps))
            rates["ours"].append(workers * steps / _run_ours(simulators, steps, 1))
            rates["chunked"].append(workers * steps / _run_ours(simulators, steps, CHUNK))
    finally:
        for simulator in simulators:
            simulator.close()
        for process in bare:
            process.close()
    middle = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "name": "libero",
        "unit": "env steps/s",
        "ours": middle["ours"],
        "limit": middle["limit"],
        "ratio": middle["ours"] / middle["limit"],
        "peers": {},
        "machine": describe_machine(),
        "details": {"workers": workers, "steps": steps, "look_every_10": middle["chunked"], "rates": rates},
    }


def bench_actions(steps: int) -> NDArray[np.float64]:
    """Slow random motion ``[steps, 7]``, the same in both."""
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (steps, 7))
    actions[:, 6] = -1.0
    return actions


def _run_ours(simulators: list[Simulator], steps: int, block: int) -> float:
    """Seconds until every simulator has made ``steps`` steps, ``block`` in a message."""
    actions = bench_actions(steps)
    left = dict.fromkeys(simulators, 0)
    began = time.perf_counter()
    for simulator in simulators:
        simulator.send(Run(actions[:block], through=True))
    while left:
        for simulator in ready(list(left)):
            simulator.receive()
            left[simulator] += block
            if left[simulator] >= steps:
                del left[simulator]
            else:
                simulator.send(Run(actions[left[simulator] : left[simulator] + block], through=True))
    return time.perf_counter() - began


class _Bare:
    """LIBERO's environment in a process, nothing of ours around it."""

    def __init__(self, task: suites.Task, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve_bare, args=(theirs, task, threads), daemon=True)
        self._process.start()
        theirs.close()

    def wait(self) -> Any:
        """What the process says next."""
        return self.connection.recv()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()


def _run_bare(processes: list[_Bare], steps: int) -> float:
    began = time.perf_counter()
    for process in processes:
        process.connection.send(steps)
    for process in processes:
        process.wait()
    return time.perf_counter() - began


def _serve_bare(connection: Connection, task: suites.Task, threads: int) -> None:
    os.environ.update({"LP_NUM_THREADS": str(threads), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    paths.prepare()
    paths.use_assets(assets.find(task.suite))
    from libero.libero.envs import OffScreenRenderEnv

    environment = OffScreenRenderEnv(
        bddl_file_name=str(task.bddl), camera_heights=IMAGE_SIZE, camera_widths=IMAGE_SIZE, horizon=10**6
    )
    environment.seed(0)
    environment.reset()
    environment.set_init_state(suites.init_states(task)[0])
    for _ in range(suites.SETTLE_STEPS):
        environment.step(list(suites.SETTLE_ACTION))
    connection.send(READY)
    while True:
        steps = connection.recv()
        for action in bench_actions(steps):
            environment.step(action)
        connection.send(DONE)
