"""Collects demonstrations in the LIBERO simulator: the scripted expert's episodes, one HDF5 file a task.

Files have the layout of LIBERO's official ones. Every finished demonstration is kept beside the file to be until the
file is complete, so that a collection that was interrupted goes on where it stopped.

Legend: T steps of a demonstration, k number of an attempt at a task.
"""

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.collect.tabletop import CollectSummary
from pipelines.collect.writer import ALIGNMENTS, SETTINGS, Align, Demo, FileHeader, write_demos
from statevla.sims.libero import paths, suites
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.libero.experts import EXPERTS
from statevla.sims.libero.pick_place import LAST
from statevla.sims.libero.protocol import Reply, Reset, RunExpert, Scenery
from statevla.sims.libero.rotations import axis_angle_of_quaternion
from statevla.sims.libero.worker import Simulator, Timeouts, ready
from stores.disk import durable
from stores.errors import StateVLAError, UsageError
from stores.progress import Progress, ProgressEvent

HOLD: Final = 10
"""Steps kept after the first success, as LIBERO's own recording does; more while the gripper still moves away."""
MAX_FAILURES: Final = 10
"""Attempts in a row at one task that may fail before a collection gives up."""
MAX_CRASHES: Final = 3
"""Simulators in a row that may fail before a collection gives up."""
TAG: Final = "statevla-scripted-expert"
INIT_STATES: Final = "init_states_used"
INIT_STATE: Final = "init_state_index"


@dataclass(frozen=True)
class _Settings:
    """What must be equal for demonstrations to belong to one file."""

    suite: str
    episodes: int
    seed: int
    first_init: int
    init_states: int
    align: Align
    image_size: int


def collect_libero(
    suite: str,
    out: Path,
    *,
    tasks: Sequence[int] | str | None = None,
    episodes: int = 50,
    workers: int = 1,
    seed: int = 0,
    first_init: int = 0,
    init_states: int | None = None,
    align: Align = "after",
    image_size: int = 128,
    timeouts: Timeouts | None = None,
    progress: Progress | None = None,
    replace: bool = False,
) -> CollectSummary:
    """Writes ``<task>_demo.hdf5`` with ``episodes`` successful demonstrations for each task; skips complete files.

    The same arguments give the same demonstrations, whatever ``workers`` and however often it was interrupted.
    Attempt ``k`` starts from initial state ``first_init + k modulo init_states``. Which ones were used is in the
    attributes ``init_states_used`` (of ``data``) and ``init_state_index`` (of each demonstration), so that an
    evaluation can start past them.

    Args:
        tasks: indices of the suite's tasks, or as ``"0-2,5"``; None: all.
        workers: simulator processes, one task each.
        replace: a task's file or unfinished part of a collection with other settings gives way to this one.
        init_states: number of initial states to use, from ``first_init`` on; None: all up to the last.

    Raises:
        UnknownTask: no such suite or task.
        UsageError: the suite has no expert, a number is out of range, a file was collected with other settings, or
            the expert keeps failing.
        SimulatorMissing, SimulatorVersion, SimulatorFailed: see the exceptions.
    """
    suites.check_suite(suite)
    if suite not in EXPERTS:
        raise UsageError(f"{suite} has no scripted expert; there is one for {', '.join(EXPERTS)}")
    if align not in ALIGNMENTS:
        raise UsageError(f"align: expected one of {', '.join(ALIGNMENTS)}, got {align!r}")
    paths.prepare()
    chosen = suites.select(suite, tasks)
    last = min(len(suites.init_states(task)) for task in chosen)
    span = last - first_init if init_states is None else init_states
    if episodes < 1 or workers < 1 or image_size < 1 or first_init < 0 or span < 1 or first_init + span > last:
        raise UsageError(
            f"expected episodes, workers and init_states of at least 1 and initial states within 0-{last - 1}, got "
            f"episodes {episodes}, workers {workers}, first_init {first_init}, init_states {init_states}"
        )
    settings = _Settings(suite, episodes, seed, first_init, span, align, image_size)
    with durable.lock(out, f"collection of {suite}"):
        todo = [_TaskWork(task, out, settings, replace) for task in chosen]
        _collect([work for work in todo if not work.complete()], workers, timeouts, progress, len(todo) * episodes)
    headers = [_totals(work.file) for work in todo]
    return CollectSummary(
        files=tuple(work.file for work in todo),
        episodes=sum(header[0] for header in headers),
        steps=sum(header[1] for header in headers),
        failures=sum(work.failures for work in todo),
    )


def _totals(file: Path) -> tuple[int, int]:
    with h5py.File(file) as demos:
        return int(demos["data"].attrs["num_demos"]), int(demos["data"].attrs["total"])


class _TaskWork:
    """One task's file and what there is of it."""

    def __init__(self, task: suites.Task, out: Path, settings: _Settings, replace: bool = False) -> None:
        self.task = task
        self.settings = settings
        self.replace = replace
        self.file = out / f"{task.name}_demo.hdf5"
        self.parts = out / f".{task.name}.parts"
        self.attempt = 0
        self.done: list[int] = []
        self.failures = 0
        self.failed_in_a_row = 0
        self.crashes = 0

    def complete(self) -> bool:
        """Whether the file is there. Raises UsageError when it is there, but collected with other settings."""
        if not self.file.exists():
            self._load_parts()
            return False
        with h5py.File(self.file) as file:
            present = file["data"].attrs.get(SETTINGS)
        if present != self._settings_text() and self.replace:
            self._load_parts()
            return False  # the new file takes its place when it is whole
        if present != self._settings_text():
            raise UsageError(
                f"{self.file} was collected with {present}, this collection has {self._settings_text()}. "
                "Choose another folder with --out, or pass --replace"
            )
        return True

    def _settings_text(self) -> str:
        return json.dumps(vars(self.settings), sort_keys=True)

    def _load_parts(self) -> None:
        settings = self.parts / "settings.json"
        other = settings.exists() and json.loads(settings.read_text()) != vars(self.settings)
        if other and self.replace:
            durable.remove(self.parts)
        elif other:
            raise UsageError(
                f"{self.parts} holds part of a collection with other settings ({settings.read_text().strip()}). "
                "Choose another folder with --out, or pass --replace"
            )
        durable.write_json(settings, vars(self.settings))
        self.done = sorted(int(part.stem) for part in self.parts.glob("*.npz"))
        failed = [int(part.stem) for part in self.parts.glob("*.failed")]
        self.failures = len(failed)
        self.attempt = max([*self.done, *failed], default=-1) + 1

    @property
    def wanted(self) -> bool:
        """Whether another demonstration is needed."""
        return len(self.done) < self.settings.episodes

    @property
    def init_state(self) -> int:
        """Index of the initial state of the present attempt."""
        return self.init_state_of(self.attempt)

    def init_state_of(self, attempt: int) -> int:
        """Index of the initial state of an attempt."""
        return self.settings.first_init + attempt % self.settings.init_states

    def request(self) -> Reset:
        """Starts the present attempt."""
        round_number = self.attempt // self.settings.init_states
        seed = (self.settings.seed, self.task.index, self.init_state, round_number)
        state = suites.init_states(self.task)[self.init_state]
        return Reset(state, suites.SETTLE_STEPS, expert_seed=seed)

    def keep(self, demo: Demo | None) -> None:
        """Records the present attempt's outcome; None for a failure."""
        name = f"{self.attempt:05d}"
        if demo is None:
            durable.write_text(self.parts / f"{name}.failed", f"initial state {self.init_state}\n")
            self.failures += 1
            self.failed_in_a_row += 1
        else:
            durable.write_bytes(self.parts / f"{name}.npz", _pack(demo))
            self.done.append(self.attempt)
            self.failed_in_a_row = 0
        if self.failed_in_a_row >= MAX_FAILURES:
            raise UsageError(f"task {self.task.name!r}: the expert failed {MAX_FAILURES} times in a row")
        self.attempt += 1

    def write(self, scenery: Scenery) -> None:
        """Turns the parts into the file."""
        attempts = self.done[: self.settings.episodes]
        used = [self.init_state_of(attempt) for attempt in attempts]
        bddl = _portable(str(self.task.bddl))
        env_args = {
            "type": 1,
            "env_name": scenery.env_name,
            "problem_name": scenery.problem_info["problem_name"],
            "bddl_file": bddl,
            "env_kwargs": {**scenery.env_kwargs, "bddl_file_name": bddl},
        }
        header = FileHeader(
            instruction=scenery.problem_info["language_instruction"],
            env_name=scenery.env_name,
            env_args=env_args,
            tag=TAG,
            problem_name=scenery.problem_info["problem_name"],
            extra=(
                ("bddl_file_name", bddl),
                ("bddl_file_content", scenery.bddl_content),
                (INIT_STATES, json.dumps(sorted(set(used)))),
                (SETTINGS, self._settings_text()),
            ),
        )
        write_demos(self.file, header, self._demos(attempts), self.settings.align)
        durable.remove(self.parts)

    def _demos(self, attempts: list[int]) -> Iterator[Demo]:
        for attempt in attempts:
            yield _unpack(self.parts / f"{attempt:05d}.npz", ((INIT_STATE, self.init_state_of(attempt)),))


@dataclass
class _Episode:
    """One attempt in progress: what the demonstration will consist of."""

    model: str
    last: Reply
    seen: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    states: list[NDArray[np.float64]] = field(default_factory=list)
    actions: list[NDArray[np.float64]] = field(default_factory=list)
    first_success: int | None = None
    held: int = 0

    def take(self, reply: Reply) -> None:
        """Adds one executed step."""
        self.states.append(self.last.state)
        self.actions.append(reply.actions[0])
        self.seen.append(reply.observation)
        self.held = self.held + 1 if reply.succeeded else 0
        if reply.succeeded and self.first_success is None:
            self.first_success = len(self.actions)
        self.last = reply

    def ended(self, limit: int) -> bool:
        """Success held and the gripper gone, or out of steps."""
        if self.first_success is None:
            return len(self.actions) >= limit
        return (self.held >= HOLD and self.last.stage == LAST) or len(self.actions) >= limit + HOLD

    def demo(self) -> Demo | None:
        """The demonstration; None where the task is not achieved in the end."""
        if self.first_success is None or not self.last.succeeded:
            return None
        column = {key: np.stack([seen[key] for seen in self.seen]) for key in self.seen[0]}
        return Demo(
            actions=np.stack(self.actions),
            states=np.stack(self.states),
            agentview=column["agentview_image"],
            eye_in_hand=column["robot0_eye_in_hand_image"],
            joints=column["robot0_joint_pos"],
            fingers=column["robot0_gripper_qpos"],
            ee_pos=column["robot0_eef_pos"],
            ee_axis_angle=axis_angle_of_quaternion(column["robot0_eef_quat"]),
            ee_quaternion=column["robot0_eef_quat"],
            model_file=_portable(self.model),
        )


def _collect(
    todo: list[_TaskWork], workers: int, timeouts: Timeouts | None, progress: Progress | None, total: int
) -> None:
    """Keeps up to ``workers`` simulators busy, one task each, until every file is written."""
    waiting = list(todo)
    skipped = total - sum(work.settings.episodes for work in todo)
    running: dict[Simulator, _TaskWork] = {}
    episodes: dict[Simulator, _Episode] = {}
    threads = max(1, (os.cpu_count() or 1) // max(1, min(workers, len(todo))))

    def report() -> None:
        if progress is not None:
            done = skipped + sum(min(len(work.done), work.settings.episodes) for work in todo)
            failed = sum(work.failures for work in todo)
            progress(ProgressEvent("demonstrations", done, total, "demos", f"{failed} attempts failed"))

    with ExitStack() as stack:
        report()
        while waiting or running:
            while waiting and len(running) < workers:
                work = waiting.pop(0)
                simulator = Simulator(
                    work.task, image_size=work.settings.image_size, timeouts=timeouts, render_threads=threads
                )
                stack.callback(simulator.close)
                running[simulator] = work
            for simulator in ready(list(running)):
                work = running[simulator]
                before = work.attempt
                try:
                    finished = _advance(simulator, work, episodes)
                except SimulatorFailed:
                    # The attempt is neither success nor failure: it is made again in a new simulator.
                    work.crashes += 1
                    simulator.kill()
                    del running[simulator]
                    episodes.pop(simulator, None)
                    if work.crashes >= MAX_CRASHES:
                        raise
                    waiting.insert(0, work)
                    continue
                if work.attempt != before:
                    report()
                if finished:
                    work.write(simulator.scenery)
                    simulator.close()
                    del running[simulator]


def _advance(simulator: Simulator, work: _TaskWork, episodes: dict[Simulator, _Episode]) -> bool:
    """Takes a simulator's answer and sends the next request; True when the task has all its demonstrations."""
    if simulator.starting:
        _ = simulator.scenery
    else:
        reply = simulator.receive()
        episode = episodes.get(simulator)
        if episode is None:
            episode = episodes[simulator] = _Episode(reply.model, reply, [reply.observation])
        else:
            episode.take(reply)
        if not episode.ended(suites.MAX_STEPS[work.task.suite]):
            simulator.send(RunExpert(1, through=True))
            return False
        del episodes[simulator]
        work.keep(episode.demo())
        work.crashes = 0
    if not work.wanted:
        return True
    simulator.send(work.request())
    return False


def _portable(text: str) -> str:
    """Text without this machine's folder of packages: ``libero/...`` and ``robosuite/...`` are left."""
    return text.replace(f"{paths.package_root().parents[1]}/", "")


_ARRAYS = tuple(f.name for f in fields(Demo) if f.name not in ("model_file", "attrs"))


def _pack(demo: Demo) -> bytes:
    buffer = io.BytesIO()
    arrays = {name: getattr(demo, name) for name in _ARRAYS}
    np.savez(buffer, model_file=np.frombuffer(demo.model_file.encode(), np.uint8), **arrays)
    return buffer.getvalue()


def _unpack(file: Path, attrs: tuple[tuple[str, int], ...]) -> Demo:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            text = arrays["model_file"].tobytes().decode()
            return Demo(**{name: arrays[name] for name in _ARRAYS}, model_file=text, attrs=attrs)
    except (OSError, KeyError, ValueError) as error:
        raise StateVLAError(f"{file}: part of an interrupted collection cannot be read ({error}); remove it") from error
