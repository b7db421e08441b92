"""Keeps simulator workers and a policy busy until no trial is left.

Legend: B trials that wait for the policy, K chunk, n actions of a request.
"""

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from statevla.evaluators.libero.trials import (
    LOG,
    Outcome,
    Record,
    RunDescription,
    Trial,
    load_records,
    record_line,
    unfinished,
)
from statevla.evaluators.rollout import ChunkPolicy
from statevla.observation import Observation, from_simulator, spec_of
from statevla.policies.controls import REPLAY_PATIENCE, ExpertControl, ReplayDemos
from statevla.policies.execution import ChunkBuffer
from statevla.reports.films import Clip, write_gif
from statevla.sims.libero import suites
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.libero.protocol import Reply, Request, Reset, Run, RunExpert
from statevla.sims.libero.worker import Simulator, Timeouts, ready
from stores.disk import durable
from stores.errors import StateVLAError
from stores.progress import Progress, ProgressEvent
from stores.spec import LIBERO

CONTROL_BLOCK = 40
"""Actions that a control, which waits for nobody, executes in one request."""
FILM_EVERY = 2
"""Steps between two frames of a video (10 frames a second)."""
START_FAILURES = 2
"""Simulators in a row that do not come up before the evaluation gives up: the machine is not set up for them."""

Policy = ChunkPolicy | ExpertControl | ReplayDemos


@dataclass
class _Episode:
    """A trial in progress."""

    trial: Trial
    limit: int
    buffer: ChunkBuffer
    film: int
    steps: int = 0
    began: float = field(default_factory=time.perf_counter)
    observation: Observation | None = None
    frames: list[Observation] = field(default_factory=list)


@dataclass
class _Slot:
    """Place of one worker: its simulator and its episode, either may be absent."""

    simulator: Simulator | None = None
    episode: _Episode | None = None
    thinking: bool = False


class Runner:
    """Runs the trials of ``trials`` that ``out`` has no result for. Use as a context manager: it ends the workers.

    milliseconds: of each call of the policy. steps_run: simulator steps, settling not counted.
    """

    def __init__(
        self,
        policy: Policy,
        description: RunDescription,
        trials: list[Trial],
        out: Path,
        workers: int,
        filmed: set[tuple[str, int]],
        timeouts: Timeouts | None,
        progress: Progress | None,
    ) -> None:
        self.milliseconds: list[float] = []
        self.steps_run = 0
        self._policy = policy
        self._out = out
        self._description = description
        self._filmed = filmed
        self._timeouts, self._progress = timeouts, progress
        self._total = len(trials)
        records = load_records(out)
        self._waiting = unfinished(trials, records)
        left = {trial.key for trial in self._waiting}
        wanted = {trial.key for trial in trials}
        self._counts = Counter(r.outcome for k, r in records.items() if k in wanted - left)
        self._slots = [_Slot() for _ in range(min(workers, len(self._waiting)))]
        self._threads = max(1, (os.cpu_count() or 1) // max(1, len(self._slots)))
        self._start_failures = 0

    def __enter__(self) -> "Runner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self) -> None:
        """Runs every waiting trial."""
        self._report()
        while True:
            for slot in self._slots:
                if slot.episode is None:
                    self._assign(slot)
            busy = [slot for slot in self._slots if slot.episode is not None]
            if not busy:
                return
            thinking = [slot for slot in busy if slot.thinking]
            running = {id(s.simulator): s for s in busy if not s.thinking and s.simulator is not None}
            simulators = [s.simulator for s in running.values() if s.simulator is not None]
            # With somebody waiting for the policy, collect who else is there, but do not wait for them.
            heard = ready(simulators, timeout=0.0 if thinking else None) if simulators else []
            for simulator in heard:
                self._advance(running[id(simulator)])
            if thinking:
                self._think([slot for slot in busy if slot.thinking])

    def close(self) -> None:
        """Ends all workers."""
        for slot in self._slots:
            if slot.simulator is not None:
                slot.simulator.close()
                slot.simulator = None

    def _assign(self, slot: _Slot) -> None:
        """Gives a free worker the next trial, of its own task if there is one: starting a simulator takes long."""
        if not self._waiting:
            if slot.simulator is not None:
                slot.simulator.close()
                slot.simulator = None
            return
        own = slot.simulator.task if slot.simulator is not None else None
        held = Counter(s.simulator.task.name for s in self._slots if s.simulator is not None and s is not slot)
        trial = next((t for t in self._waiting if t.task == own), None)
        if trial is None:
            trial = min(self._waiting, key=lambda t: held[t.task.name])  # the first of those with fewest workers
        self._waiting.remove(trial)
        if slot.simulator is not None and slot.simulator.task != trial.task:
            slot.simulator.close()
            slot.simulator = None
        slot.episode = _Episode(
            trial,
            self._limit_of(trial),
            ChunkBuffer(self._description.replan, self._description.ensemble),
            FILM_EVERY if trial.key in self._filmed else 0,
        )
        slot.thinking = False
        if slot.simulator is None:
            slot.simulator = Simulator(
                trial.task,
                image_size=self._description.image_size,
                timeouts=self._timeouts,
                render_threads=self._threads,
            )
        else:
            self._guard(slot, self._reset_request(trial))

    def _limit_of(self, trial: Trial) -> int:
        if isinstance(self._policy, ReplayDemos):
            return len(self._policy.demos[trial.task.name][trial.start].actions) + REPLAY_PATIENCE
        return self._description.max_steps

    def _reset_request(self, trial: Trial) -> Reset:
        if isinstance(self._policy, ReplayDemos):
            return Reset(self._policy.demos[trial.task.name][trial.start].state, suites.SETTLE_STEPS, True)
        expert = (self._policy.seed, trial.task.index, trial.start) if isinstance(self._policy, ExpertControl) else None
        return Reset(suites.init_states(trial.task)[trial.start], suites.SETTLE_STEPS, expert_seed=expert)

    def _guard(self, slot: _Slot, request: Request) -> None:
        """Sends a request; a worker that cannot take it costs its trial an error."""
        try:
            if slot.simulator is not None:
                slot.simulator.send(request)
        except SimulatorFailed as error:
            self._fail(slot, error)

    def _advance(self, slot: _Slot) -> None:
        """Takes a worker's answer and gives it what comes next."""
        simulator, episode = slot.simulator, slot.episode
        if simulator is None or episode is None:
            return
        try:
            if simulator.starting:
                _ = simulator.scenery
                self._start_failures = 0
                simulator.send(self._reset_request(episode.trial))
                return
            reply = simulator.receive()
        except SimulatorFailed as error:
            if simulator.starting:
                self._start_failures += 1
                if self._start_failures >= START_FAILURES:
                    raise SimulatorFailed(
                        f"{START_FAILURES} simulators in a row did not start; finished trials are kept in "
                        f"{self._out / LOG}. The last one: {error}. Run: statevla doctor"
                    ) from error
            self._fail(slot, error)
            return
        self._take(slot, episode, reply)

    def _take(self, slot: _Slot, episode: _Episode, reply: Reply) -> None:
        instruction = episode.trial.task.instruction
        episode.steps += len(reply.actions)
        self.steps_run += len(reply.actions)
        if episode.film:
            frames = reply.film or ([reply.observation] if episode.steps == 0 else [])
            episode.frames += [from_simulator(seen, instruction) for seen in frames]
        if reply.success_step is not None:
            self._finish(slot, "success")
        elif episode.steps >= episode.limit:
            self._finish(slot, "failure")
        elif isinstance(self._policy, ExpertControl | ReplayDemos):
            self._guard(slot, self._control_request(self._policy, episode))
        else:
            episode.observation = from_simulator(reply.observation, instruction)
            if episode.steps == 0:
                spec_of(episode.observation).require_same(self._policy.obs_spec, "the simulator", "the policy")
            slot.thinking = True

    def _control_request(self, policy: ExpertControl | ReplayDemos, episode: _Episode) -> Request:
        count = min(CONTROL_BLOCK, episode.limit - episode.steps)
        if isinstance(policy, ExpertControl):
            return RunExpert(count, look=False, film=episode.film)
        recorded = policy.demos[episode.trial.task.name][episode.trial.start].actions
        still = np.zeros((REPLAY_PATIENCE, LIBERO.action_dim))
        still[:, -1] = recorded[-1, -1]
        return Run(np.concatenate([recorded, still])[episode.steps : episode.steps + count], False, episode.film)

    def _think(self, slots: list[_Slot]) -> None:
        """Puts all waiting trials to the policy and starts what it decides."""
        policy = self._policy
        if isinstance(policy, ExpertControl | ReplayDemos):
            raise TypeError("a control does not wait for decisions")
        observations = [
            s.episode.observation for s in slots if s.episode is not None and s.episode.observation is not None
        ]
        began = time.perf_counter()
        chunks = policy.act(observations)
        self.milliseconds.append(1e3 * (time.perf_counter() - began))
        _check_chunks(chunks, len(slots))
        for slot, chunk in zip(slots, chunks, strict=True):
            slot.thinking = False
            if slot.episode is not None:
                actions = slot.episode.buffer.add(chunk)[: slot.episode.limit - slot.episode.steps]
                self._guard(slot, Run(actions, look=True, film=slot.episode.film))

    def _fail(self, slot: _Slot, error: SimulatorFailed) -> None:
        if slot.simulator is not None:
            slot.simulator.kill()
            slot.simulator = None
        self._finish(slot, "error", str(error))

    def _finish(self, slot: _Slot, outcome: Outcome, message: str = "") -> None:
        episode, slot.episode, slot.thinking = slot.episode, None, False
        if episode is None:
            return
        trial = episode.trial
        video = ""
        if episode.frames:
            video = f"videos/{trial.task.index:02d}-{trial.start:03d}-{outcome}.gif"
            twice = tuple(frame for frame in episode.frames for _ in range(FILM_EVERY))
            write_gif(self._out / video, Clip(twice, outcome), stride=FILM_EVERY)
        record = Record(
            task=trial.task.name,
            task_index=trial.task.index,
            start=trial.start,
            outcome=outcome,
            steps=episode.steps,
            seconds=round(time.perf_counter() - episode.began, 3),
            message=message,
            video=video,
        )
        durable.append_line(self._out / LOG, record_line(record))
        self._counts[outcome] += 1
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            won, lost, errors = (self._counts[o] for o in ("success", "failure", "error"))
            rate = f"{100 * won / (won + lost):.0f} % success" if won + lost else "no result yet"
            extra = f", {errors} errors" if errors else ""
            self._progress(ProgressEvent("trials", won + lost + errors, self._total, "trials", rate + extra))


def _check_chunks(chunks: NDArray[np.float32], trials: int) -> None:
    if chunks.ndim != 3 or chunks.shape[0] != trials or chunks.shape[2] != LIBERO.action_dim or chunks.shape[1] < 1:
        raise StateVLAError(f"policy: expected chunks [{trials}, K, {LIBERO.action_dim}], got {list(chunks.shape)}")
    if not np.isfinite(chunks).all():
        raise StateVLAError("policy: returned actions that are NaN or infinite; its training diverged")
