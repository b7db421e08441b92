"""Collects demonstrations in the LIBERO simulator: the scripted expert's episodes, one HDF5 file a task.

States first: an attempt runs without drawing, and only one that succeeded, and still succeeds ten steps later, is
drawn, once, from what was recorded; the pictures are those of drawing on the way. Files have the layout of LIBERO's
official ones.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import h5py

from pipelines.collect.libero_driver import Drive, check_driver
from pipelines.collect.libero_parts import Settings, TaskWork, with_expert
from pipelines.collect.tabletop import CollectSummary
from pipelines.collect.writer import ALIGNMENTS, Align
from statevla.evaluators.evaluate import usual_execution
from statevla.evaluators.runner import ChunkPolicy
from statevla.policies.execution import Execution
from statevla.sims.libero import memory, paths, suites
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.libero.protocol import Reply, Run
from statevla.sims.libero.scatter import check_scatter
from statevla.sims.libero.worker import Simulator, Timeouts, ready
from statevla.sims.suites import find_suite
from stores.disk.lock import lock
from stores.errors import StateVLAError, UsageError
from stores.progress import Progress, ProgressEvent

MAX_CRASHES: Final = 3
"""Simulators in a row that may fail before a collection gives up."""
USUAL_LENGTH: Final = 0.5
"""Of a suite's step limit: a demonstration's length, to foresee the room it needs."""


def collect_libero(
    suite: str,
    out: Path,
    *,
    tasks: Sequence[int] | str | None = None,
    episodes: int = 50,
    workers: int | None = 1,
    seed: int = 0,
    first_init: int = 0,
    init_states: int | None = None,
    align: Align = "after",
    image_size: int = 128,
    noise: float = 0.0,
    noise_share: float = 1.0,
    scatter: float = 0.0,
    from_policy: ChunkPolicy | None = None,
    execution: Execution | None = None,
    timeouts: Timeouts | None = None,
    progress: Progress | None = None,
    replace: bool = False,
) -> CollectSummary:
    """Writes ``<task>_demo.hdf5`` with ``episodes`` successful demonstrations for each task; skips complete files, and
    goes on with those of fewer.

    The same arguments give the same demonstrations, whatever ``workers`` and however often it was interrupted.
    Attempt ``k`` starts from initial state ``first_init + k modulo init_states``. Which ones were used is in the
    attributes ``init_states_used`` (of ``data``) and ``init_state_index`` (of each demonstration), so that an
    evaluation can start past them.

    Args:
        tasks: indices of the suite's tasks, or as ``"0-2,5"``; None: all that have an expert.
        workers: simulator processes; None: as many as memory and cores allow.
        init_states: number of initial states to use, from ``first_init`` on; None: all up to the last.
        noise: standard deviation, in action units, of pushes that are added to the executed actions now and then. The
            recorded action is what the expert wanted at that moment, so that the data show how to come back
            (DART: Laskey et al. 2017); what was executed is in ``executed_actions``.
        noise_share: share of the attempts that have the noise.
        scatter: share of the attempts in which the things stand at random places (`statevla.sims.libero.scatter`).
        from_policy: drives the first steps of every attempt, as many as the attempt's seed says; then the expert takes
            over, and what it does is recorded (`libero_driver`).
        execution: of the chunks of that policy; None, or where it says none: as evaluations in the suite.
        replace: a task's file or unfinished part of a collection with other settings gives way to this one.

    Raises:
        UnknownTask: no such suite or task.
        UsageError: a task has no expert, a number is out of range, a file was collected with other settings, memory has
            no room for so many workers, or the expert keeps failing.
        SimulatorMissing, SimulatorVersion, SimulatorFailed: see the exceptions.
        StateVLAError: the disk has no room.
    """
    suites.check_suite(suite)
    if align not in ALIGNMENTS:
        raise UsageError(f"align: expected one of {', '.join(ALIGNMENTS)}, got {align!r}")
    paths.prepare()
    chosen = with_expert(suite, suites.select(suite, tasks), tasks is None)
    workers = memory.workers_that_fit() if workers is None else workers
    last = min(len(suites.init_states(task)) for task in chosen)
    span = last - first_init if init_states is None else init_states
    if episodes < 1 or workers < 1 or image_size < 1 or first_init < 0 or span < 1 or first_init + span > last:
        raise UsageError(
            f"expected episodes, workers and init_states of at least 1 and initial states within 0-{last - 1}, got "
            f"episodes {episodes}, workers {workers}, first_init {first_init}, init_states {init_states}"
        )
    if not 0 <= noise <= 1 or not 0 <= noise_share <= 1:
        raise UsageError(f"expected noise and noise_share from 0 to 1, got {noise} and {noise_share}")
    if from_policy is not None:
        check_driver(from_policy, chosen, image_size)
    check_scatter(suite, scatter)
    driver, driven = "", {}
    if from_policy is not None:
        driver = from_policy.identity
        driven = asdict(usual_execution(find_suite(suite), execution).resolve(from_policy.chunk))
    settings = Settings(
        suite, episodes, seed, first_init, span, align, image_size, noise, noise_share, from_policy=driver,
        scatter=scatter, execution=tuple(driven.items()),
    )  # fmt: skip
    with lock(out, f"collection of {suite}"):
        todo = [TaskWork(task, out, settings, replace) for task in chosen]
        for work in todo:
            work.look()
        _check_room(out, settings, sum(not work.done for work in todo))
        memory.require_room(min(workers, episodes * sum(not work.done for work in todo)))  # no more are started
        for work in todo:
            work.begin()
        _Collection(todo, workers, timeouts, progress, from_policy).run()
    headers = [_totals(work.file) for work in todo]
    return CollectSummary(
        files=tuple(work.file for work in todo),
        episodes=sum(header[0] for header in headers),
        steps=sum(header[1] for header in headers),
        failures=sum(work.failures for work in todo),
    )


def _check_room(out: Path, settings: Settings, files: int) -> None:
    frames = files * settings.episodes * suites.max_steps(settings.suite) * USUAL_LENGTH
    need = 2 * frames * 2 * 3 * settings.image_size**2  # pictures of two cameras, in the parts and in the file
    free = shutil.disk_usage(out).free
    if free < need:
        raise StateVLAError(
            f"{out}: {files} files of {settings.episodes} demonstrations need about {need / 2**30:.1f} GiB while they "
            f"are collected, {free / 2**30:.1f} GiB are free. Make room, or collect fewer tasks at a time (--tasks)"
        )


def _totals(file: Path) -> tuple[int, int]:
    with h5py.File(file) as demos:
        return int(demos["data"].attrs["num_demos"]), int(demos["data"].attrs["total"])


@dataclass
class _Slot:
    """Place of one worker. attempt: that it draws; None while it records. model: of the episode it records. drive: the
    policy that acts in it first."""

    simulator: Simulator
    work: TaskWork
    attempt: int | None = None
    model: str | None = None
    drive: Drive | None = None


class _Collection:
    """Keeps up to ``workers`` simulators busy until every file is written.

    A task's attempts are recorded by one worker, one after the other. Pictures are drawn by that worker when it has
    recorded all, and before that by workers that have nothing to record.
    """

    def __init__(
        self,
        todo: list[TaskWork],
        workers: int,
        timeouts: Timeouts | None,
        progress: Progress | None,
        policy: ChunkPolicy | None,
    ) -> None:
        self._todo = todo
        self._policy = policy
        self._workers = workers
        self._timeouts, self._progress = timeouts, progress
        self._slots: list[_Slot] = []
        self._threads = max(1, (os.cpu_count() or 1) // workers)

    def run(self) -> None:
        """Records, draws and writes everything that is missing."""
        with ExitStack() as stack:
            stack.callback(self._close)
            self._report()
            while True:
                while len(self._slots) < self._workers and (work := self._somebody_else()) is not None:
                    self._start(work)
                if not self._slots:
                    return
                for simulator in ready([slot.simulator for slot in self._slots]):
                    slot = next(s for s in self._slots if s.simulator is simulator)
                    try:
                        self._advance(slot)
                    except SimulatorFailed:
                        # What was under way is neither success nor failure: it is done again in a new simulator.
                        self._drop(slot, kill=True)
                        slot.work.crashes += 1
                        if slot.work.crashes >= MAX_CRASHES:
                            raise

    def _close(self) -> None:
        for slot in self._slots:
            slot.simulator.close()

    def _start(self, work: TaskWork) -> None:
        simulator = Simulator(
            work.task, image_size=work.settings.image_size, timeouts=self._timeouts, render_threads=self._threads
        )
        slot = _Slot(simulator, work)
        self._slots.append(slot)
        self._reserve(slot)

    def _drop(self, slot: _Slot, kill: bool = False) -> None:
        (slot.simulator.kill if kill else slot.simulator.close)()
        self._slots.remove(slot)

    def _recording(self, work: TaskWork) -> bool:
        return any(slot.work is work and slot.attempt is None for slot in self._slots)

    def _undrawn(self, work: TaskWork) -> list[int]:
        """Attempts to draw that nobody is drawing."""
        taken = {slot.attempt for slot in self._slots if slot.work is work}
        return [attempt for attempt in work.undrawn() if attempt not in taken]

    def _somebody_else(self) -> TaskWork | None:
        """A task for a new worker: first one that nobody records, then the one with most to draw, if much, and last one
        that was interrupted between its last picture and its file, which wants what a simulator says of the scene.
        """
        left = [work for work in self._todo if not work.done]
        unrecorded = [work for work in left if work.wanted and not self._recording(work)]
        if unrecorded:
            return unrecorded[0]
        most = max(left, key=lambda work: len(self._undrawn(work)), default=None)
        if most is not None and len(self._undrawn(most)) > (1 if self._held(most) else 0):
            return most
        return next((work for work in left if not (work.wanted or work.undrawn() or self._held(work))), None)

    def _held(self, work: TaskWork) -> bool:
        return any(slot.work is work for slot in self._slots)

    def _reserve(self, slot: _Slot) -> bool:
        """Chooses what a worker does next; False when there is nothing left to do in its task."""
        others_record = any(s.work is slot.work and s.attempt is None for s in self._slots if s is not slot)
        if slot.work.wanted and not others_record:
            slot.attempt = None
            return True
        undrawn = self._undrawn(slot.work)
        slot.attempt = undrawn[0] if undrawn else -1
        return bool(undrawn)

    def _advance(self, slot: _Slot) -> None:
        """Takes a worker's answer and gives it what comes next."""
        work, simulator = slot.work, slot.simulator
        if simulator.starting:
            work.scenery = simulator.scenery
        else:
            reply = simulator.receive()
            if slot.attempt is not None:
                work.keep_pictures(slot.attempt, reply)
            elif reply.track is None:
                if slot.model is None:
                    slot.model = reply.model
                    slot.drive = None if self._policy is None else work.drive(self._policy)
                if self._go_on(slot, reply):
                    return
                work.pass_over()
                slot.model = None
            elif slot.model is not None:
                work.keep(slot.model, reply.track)
                slot.model = None
            work.crashes = 0
            self._report()
        slot.attempt = -1
        if not self._reserve(slot):
            self._finish(slot)
        elif slot.attempt is None:
            simulator.send(work.requests()[0])
        else:
            simulator.send(work.drawing(slot.attempt))

    def _go_on(self, slot: _Slot, reply: Reply) -> bool:
        """Lets the policy drive on, or the expert record; False when the policy has succeeded by itself."""
        drive, simulator = slot.drive, slot.simulator
        if drive is not None and reply.success_step is not None:
            return False
        if drive is not None and drive.left > 0:
            simulator.send(Run(drive.actions(reply)))
        else:
            simulator.send(slot.work.requests()[1])
        return True

    def _finish(self, slot: _Slot) -> None:
        """Ends a worker that has nothing left to do in its task; writes the file if it was the last."""
        work = slot.work
        self._drop(slot)
        if not work.wanted and not work.undrawn() and work.scenery is not None and not work.done:
            work.write(work.scenery)

    def _report(self) -> None:
        if self._progress is None:
            return
        total = sum(work.settings.episodes for work in self._todo)
        recorded = sum(work.count for work in self._todo)
        drawn = sum(work.count_drawn for work in self._todo)
        failed = sum(work.failures for work in self._todo)
        message = f"{recorded} recorded, {failed} attempts failed"
        if drawn == 0:
            # A bar of its own: a pace of drawing that counts what came before the first is far too slow.
            self._progress(ProgressEvent("states", recorded, total, "demos", message))
        else:
            self._progress(ProgressEvent("demonstrations", drawn, total, "demos", message))
