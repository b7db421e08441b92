"""Keeps worlds and a policy busy until no trial is left.

Legend: n actions of a request.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from statevla.evaluators.trials import (
    LOG,
    Outcome,
    Record,
    RunDescription,
    Trial,
    load_records,
    record_line,
    unfinished,
)
from statevla.observation import Observation, ObsSpec, from_simulator, spec_of
from statevla.policies.controls import REPLAY_PATIENCE, ExpertControl, ReplayDemos
from statevla.policies.execution import ChunkBuffer, Execution
from statevla.policies.noise import Draw
from statevla.reports.films import Clip, write_gif
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.suites import Suite
from statevla.sims.world import Answer, Start, World
from statevla.systems.acting import Acted
from stores.disk import durable
from stores.errors import StateVLAError
from stores.progress import Progress, ProgressEvent
from stores.spec import LIBERO

CONTROL_BLOCK: Final = 40
"""Actions that a control, which waits for nobody, executes in one request."""
FILM_EVERY: Final = 2
"""Steps between two frames of a video (10 frames a second)."""
START_FAILURES: Final = 2
"""Worlds in a row that do not come up before the evaluation gives up: the machine is not set up for them."""
HOPELESS: Final = 3
"""Trials that end in an error before any other outcome; then the evaluation gives up."""


@runtime_checkable
class ChunkPolicy(Protocol):
    """What a trained policy, and every control that sees what it sees, offers."""

    @property
    def obs_spec(self) -> ObsSpec: ...

    @property
    def chunk(self) -> int: ...

    @property
    def identity(self) -> str: ...

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        """Chunks [B, K, 7] on the CPU, in action units; each row's noise by its draw."""
        ...


Policy = ChunkPolicy | ExpertControl | ReplayDemos
Listen = Callable[[Observation, Draw, NDArray[np.float32]], None]
"""Is told of each decision: what was seen, the draw, and the chunk ``[K, A]``."""


@runtime_checkable
class Prepares(Protocol):
    """A policy that needs something of its own for a trial before it can be asked."""

    def prepare(self, draw: Draw) -> None: ...


@dataclass
class _Episode:
    """A trial in progress."""

    trial: Trial
    limit: int
    buffer: ChunkBuffer
    film: int
    begun: bool = False
    steps: int = 0
    calls: int = 0
    began: float = field(default_factory=time.perf_counter)
    observation: Observation | None = None
    frames: list[Observation] = field(default_factory=list)
    plans: list[tuple[int, NDArray[np.float32]]] = field(default_factory=list)
    actions: "hashlib._Hash" = field(default_factory=hashlib.sha256)


@dataclass
class _Slot:
    """Place of one world and of its episode; either may be absent."""

    world: World | None = None
    episode: _Episode | None = None
    thinking: bool = False


class Runner:
    """Runs the trials of ``trials`` that ``out`` has no result for. Use as a context manager: it ends the worlds.

    listen: is told of every decision. milliseconds: of each call of the policy, neither what it prepares for a trial
    nor what `listen` does counted. steps_run: simulator steps, settling not counted.
    """

    def __init__(
        self,
        policy: Policy,
        suite: Suite,
        description: RunDescription,
        trials: list[Trial],
        out: Path,
        workers: int,
        filmed: set[tuple[str, int]],
        progress: Progress | None,
        label: str = "trials",
        listen: Listen | None = None,
    ) -> None:
        self.milliseconds: list[float] = []
        self.steps_run = 0
        self._policy, self._suite = policy, suite
        self._out = out
        self._description = description
        self._execution = Execution(
            description.replan, description.ensemble, description.vote, description.latency_steps
        )
        self._filmed = filmed
        self._progress, self._label, self._listen = progress, label, listen
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
            running = {id(s.world): s for s in busy if not s.thinking and s.world is not None}
            worlds = [s.world for s in running.values() if s.world is not None]
            # With somebody waiting for the policy, collect who else is there, but do not wait for them.
            heard = self._suite.ready(worlds, 0.0 if thinking else None) if worlds else []
            for world in heard:
                self._advance(running[id(world)])
            for slot in thinking:
                self._think(slot)

    def close(self) -> None:
        """Ends all worlds."""
        for slot in self._slots:
            if slot.world is not None:
                slot.world.close()
                slot.world = None

    def _assign(self, slot: _Slot) -> None:
        """Gives a free place the next trial, of its own task if there is one: starting a simulator takes long."""
        if not self._waiting:
            if slot.world is not None:
                slot.world.close()
                slot.world = None
            return
        own = slot.world.task.name if slot.world is not None else None
        held = Counter(s.world.task.name for s in self._slots if s.world is not None and s is not slot)
        trial = next((t for t in self._waiting if t.task.name == own), None)
        if trial is None:
            trial = min(self._waiting, key=lambda t: held[t.task.name])  # the first of those with fewest workers
        self._waiting.remove(trial)
        if slot.world is not None and own != trial.task.name:
            slot.world.close()
            slot.world = None
        film = FILM_EVERY if trial.key in self._filmed else 0
        slot.episode = _Episode(trial, self._limit_of(trial), ChunkBuffer(self._execution), film)
        slot.thinking = False
        if slot.world is None:
            slot.world = self._suite.open(trial.task, self._description.image_size, self._threads)
            if slot.world.starting:
                return
        self._ask(slot, slot.episode)

    def _limit_of(self, trial: Trial) -> int:
        if isinstance(self._policy, ReplayDemos):
            return len(self._policy.demos[trial.task.name][trial.start].actions) + REPLAY_PATIENCE
        return self._description.max_steps

    def _start_of(self, trial: Trial) -> Start:
        if isinstance(self._policy, ReplayDemos):
            return Start(trial.start, state=self._policy.demos[trial.task.name][trial.start].state)
        if isinstance(self._policy, ExpertControl):
            return Start(trial.start, self._policy.seed, expert=True)
        return Start(trial.start, self._description.seed)

    def _ask(self, slot: _Slot, episode: _Episode, actions: NDArray[np.float64] | None = None) -> None:
        """What a world does next: begin, the policy's `actions`, or a control's. One that cannot costs its trial."""
        world, policy = slot.world, self._policy
        if world is None:
            return
        count = min(CONTROL_BLOCK, episode.limit - episode.steps)
        try:
            if actions is not None:
                world.run(actions, look=True, film=episode.film)
            elif not episode.begun:
                world.begin(self._start_of(episode.trial))
            elif isinstance(policy, ExpertControl):
                world.run_expert(count, look=False, film=episode.film)
            elif isinstance(policy, ReplayDemos):
                recorded = policy.demos[episode.trial.task.name][episode.trial.start].actions
                still = np.zeros((REPLAY_PATIENCE, LIBERO.action_dim))
                still[:, -1] = recorded[-1, -1]
                block = np.concatenate([recorded, still])[episode.steps : episode.steps + count]
                world.run(block, look=False, film=episode.film)
        except SimulatorFailed as error:
            self._fail(slot, error)

    def _advance(self, slot: _Slot) -> None:
        """Takes a world's answer and gives it what comes next."""
        world, episode = slot.world, slot.episode
        if world is None or episode is None:
            return
        try:
            if world.starting:
                world.come_up()
                self._start_failures = 0
                self._ask(slot, episode)
                return
            answer = world.receive()
        except SimulatorFailed as error:
            if world.starting:
                self._start_failures += 1
                if self._start_failures >= START_FAILURES:
                    raise self._hopeless(f"{START_FAILURES} simulators in a row did not start", error) from error
            self._fail(slot, error)
            return
        self._take(slot, episode, answer)

    def _take(self, slot: _Slot, episode: _Episode, answer: Answer) -> None:
        instruction = episode.trial.task.instruction
        first, episode.begun = not episode.begun, True
        episode.steps += len(answer.actions)
        self.steps_run += len(answer.actions)
        episode.actions.update(np.ascontiguousarray(answer.actions, np.float64).tobytes())
        if episode.film:
            episode.frames += [from_simulator(seen, instruction) for seen in (answer.film or [])]
            if first and not answer.film:
                episode.frames.append(from_simulator(answer.observation, instruction))
        if answer.success_step is not None:
            self._finish(slot, "success")
        elif episode.steps >= episode.limit:
            self._finish(slot, "failure")
        elif isinstance(self._policy, ExpertControl | ReplayDemos):
            self._ask(slot, episode)
        else:
            episode.observation = from_simulator(answer.observation, instruction)
            if first:
                wanted = self._policy.obs_spec
                seen = spec_of(episode.observation, wanted.language_width)
                seen.require_same(wanted, "the simulator", "the policy")
            slot.thinking = True

    def _think(self, slot: _Slot) -> None:
        """Puts one trial to the policy and starts what it decides.

        One at a time: in a batch, a matrix product rounds by how many rows there are, and with workers that is a matter
        of timing. So a trial's actions are the same to the last bit, whatever runs beside it.
        """
        policy, episode = self._policy, slot.episode
        if isinstance(policy, ExpertControl | ReplayDemos) or episode is None or episode.observation is None:
            raise TypeError("only an episode that was seen waits for a policy's decision")
        draw = Draw(self._description.seed, episode.trial.number, episode.calls)
        try:
            if isinstance(policy, Prepares):
                policy.prepare(draw)
            began = time.perf_counter()
            chunks = policy.act([episode.observation], [draw]).chunk.numpy()
        except SimulatorFailed as error:  # of the world in which a goal's picture is made
            self._fail(slot, error)
            return
        self.milliseconds.append(1e3 * (time.perf_counter() - began))
        episode.calls += 1
        _check_chunks(chunks, policy.chunk)
        if self._listen is not None:
            self._listen(episode.observation, draw, chunks[0])
        if episode.film:
            episode.plans.append((episode.steps, chunks[0]))
        slot.thinking = False
        self._ask(slot, episode, episode.buffer.add(chunks[0])[: episode.limit - episode.steps])

    def _fail(self, slot: _Slot, error: SimulatorFailed) -> None:
        if slot.world is not None:
            slot.world.kill()
            slot.world = None
        self._finish(slot, "error", str(error))
        if self._counts["error"] >= HOPELESS and not self._counts["success"] + self._counts["failure"]:
            raise self._hopeless(f"the first {self._counts['error']} trials all ended in an error", error) from error

    def _hopeless(self, what: str, error: SimulatorFailed) -> SimulatorFailed:
        return SimulatorFailed(
            f"{what}; finished trials are kept in {self._out / LOG}. The last one: {error}. Run: statevla doctor"
        )

    def _finish(self, slot: _Slot, outcome: Outcome, message: str = "") -> None:
        episode, slot.episode, slot.thinking = slot.episode, None, False
        if episode is None:
            return
        video = ""
        try:
            video = self._film(episode, outcome)
        finally:  # an outcome is kept, whatever becomes of its film
            self._keep(episode, outcome, message, video)

    def _film(self, episode: _Episode, outcome: Outcome) -> str:
        """Where below the results the film is; empty where the trial has none."""
        if not episode.frames:
            return ""
        video = f"videos/{episode.trial.task.index:02d}-{episode.trial.start:03d}-{outcome}.gif"
        each = tuple(frame for frame in episode.frames for _ in range(FILM_EVERY))
        clip = Clip(each[: 1 - FILM_EVERY], outcome, tuple(episode.plans))
        write_gif(self._out / video, clip, stride=FILM_EVERY)
        return video

    def _keep(self, episode: _Episode, outcome: Outcome, message: str, video: str) -> None:
        trial = episode.trial
        record = Record(
            suite=self._suite.name,
            task=trial.task.name,
            task_index=trial.task.index,
            start=trial.start,
            seed=self._description.seed,
            instruction=trial.task.instruction,
            outcome=outcome,
            steps=episode.steps,
            seconds=round(time.perf_counter() - episode.began, 3),
            policy=self._description.policy,
            actions=episode.actions.hexdigest(),
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
            self._progress(ProgressEvent(self._label, won + lost + errors, self._total, "trials", rate + extra))


def _check_chunks(chunks: NDArray[np.float32], chunk: int) -> None:
    if chunks.shape != (1, chunk, LIBERO.action_dim):
        raise StateVLAError(f"policy: expected chunks [1, {chunk}, {LIBERO.action_dim}], got {list(chunks.shape)}")
    if not np.isfinite(chunks).all():
        raise StateVLAError("policy: returned actions that are NaN or infinite; its training diverged")
