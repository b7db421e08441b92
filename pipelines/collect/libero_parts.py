"""One task's demonstrations while they are collected: what is recorded, what is drawn, and the file that becomes of it.

Beside the file to be lies a folder with two files for each attempt that succeeded: what happened, and the pictures. So
an interrupted collection goes on where it stopped, and no picture is drawn twice. A file of fewer demonstrations is
gone on with in the same way: attempts are numbered, and a larger collection makes those of a smaller one first.

Legend: T steps of a demonstration, k number of an attempt at a task.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.collect.libero_driver import Drive, steps_of
from pipelines.collect.writer import EXPERT, SETTINGS, Align, Attribute, Demo, FileHeader, write_demos
from statevla.evaluators.known import in_trained_words
from statevla.evaluators.runner import ChunkPolicy
from statevla.policies.execution import Execution
from statevla.sims.libero import paths, suites
from statevla.sims.libero.experts import check_expert, program_of
from statevla.sims.libero.protocol import IMAGE_KEYS, Demonstrate, Draw, Reply, Reset, Scenery, Track
from statevla.sims.libero.rotations import axis_angle_of_quaternion
from statevla.sims.libero.scatter import seed_of_places
from stores.disk import durable
from stores.errors import StateVLAError, UsageError
from stores.made_by import MADE_BY
from stores.npz import read_npz

HOLD: Final = 10
"""Steps for which a success must hold, as LIBERO's own recording has it; more while the expert is not done."""
DRIVES: Final = 2**20
"""Noise of a policy that drives: numbers of two tasks' attempts do not meet."""
MAX_PASSED: Final = 10
"""Attempts in a row at one task that may succeed before the expert's turn."""
MAX_FAILURES: Final = 10
"""Attempts in a row at one task that may fail before a collection gives up."""
EXPERT_FORMAT: Final = 5
"""Raised when the scripted experts' actions or the noise change: demonstrations of two formats do not share a file."""
TAG: Final = "statevla-scripted-expert"
INIT_STATES: Final = "init_states_used"
INIT_STATE: Final = "init_state_index"
ATTEMPT: Final = "attempt"
DRIVEN_STEPS: Final = "driven_steps"
RARE: Final = ("from_policy", "scatter", "execution")
"""Settings that files have only where they say something."""
PICTURES: Final = ".pictures.npz"


@dataclass(frozen=True)
class Settings:
    """What must be equal for demonstrations to belong to one file. from_policy: identity of the policy that drives;
    empty: none does. scatter: share of the attempts in which the things stand elsewhere. execution: of that policy's
    chunks, by field of `Execution`."""

    suite: str
    episodes: int
    seed: int
    first_init: int
    init_states: int
    align: Align
    image_size: int
    noise: float
    noise_share: float
    expert_format: int = EXPERT_FORMAT
    from_policy: str = ""
    scatter: float = 0.0
    execution: tuple[tuple[str, Any], ...] = ()

    def plain(self) -> dict[str, Any]:
        """JSON-ready; without what most collections have not."""
        return {name: value for name, value in vars(self).items() if name not in RARE or value} | (
            {"execution": dict(self.execution)} if self.execution else {}
        )

    def noise_of(self, attempt: int) -> float:
        """Noise of an attempt: of any run of attempts, the share ``noise_share`` has it."""
        noisy = int((attempt + 1) * self.noise_share) > int(attempt * self.noise_share)
        return self.noise if noisy else 0.0

    def text(self) -> str:
        """As the files have it."""
        return json.dumps(self.plain(), sort_keys=True)

    def begun_by(self, text: str | None) -> bool:
        """Whether what has these settings, or holds a part of it, is a beginning of this collection."""
        try:
            found = json.loads(text or "")
        except ValueError:
            return False
        if not isinstance(found, dict) or not isinstance(fewer := found.get("episodes"), int):
            return False
        return fewer <= self.episodes and found | {"episodes": self.episodes} == self.plain()

    def against(self, text: str | None) -> str:
        """What differs in other settings, each with what is asked for now."""
        try:
            found = json.loads(text or "")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            return "no settings of this command that can be read"
        own = self.plain()
        return ", ".join(
            f"{name} {found.get(name, 'not set')} (now {own.get(name, 'not set')})"
            for name in sorted(found.keys() | own.keys())
            if found.get(name) != own.get(name)
        )


class TaskWork:
    """One task's file and what there is of it.

    done: whether the file is whole. kept: attempts that a file of fewer demonstrations holds. recorded: attempts since
    that succeeded. drawn: those of them with pictures. failures: attempts that did not. crashes: simulators in a row
    that failed at this task. replace: what was collected with other settings gives way.
    """

    def __init__(self, task: suites.Task, out: Path, settings: Settings, replace: bool = False) -> None:
        self.task = task
        self.settings = settings
        self.replace = replace
        self.file = out / f"{task.name}_demo.hdf5"
        self.parts = out / f".{task.name}.parts"
        self.done = False
        self.attempt = 0
        self.kept: list[int] = []
        self.recorded: list[int] = []
        self.drawn: set[int] = set()
        self.failures = 0
        self.failed_in_a_row = 0
        self.passed_in_a_row = 0
        self.crashes = 0
        self.scenery: Scenery | None = None
        self._outdated = False

    def look(self) -> None:
        """Finds what there is, and changes nothing. Raises UsageError where it was collected with other settings."""
        if self.file.exists():
            with h5py.File(self.file) as file:
                present = file["data"].attrs.get(SETTINGS)
                attempts = [demo.attrs.get(ATTEMPT) for demo in file["data"].values()]
            self.done = present == self.settings.text()
            if self.done:
                return
            if self.settings.begun_by(present) and None not in attempts:
                self.kept = sorted(int(attempt) for attempt in attempts)
            elif not self.replace:
                raise UsageError(
                    f"{self.file} was collected with {self.settings.against(present)}. "
                    "Choose another folder with --out, or pass --replace"
                )
        self._load()

    def _load(self) -> None:
        settings = self.parts / "settings.json"
        other = settings.exists() and not self.settings.begun_by(settings.read_text())
        if other and not self.replace:
            raise UsageError(
                f"{self.parts} holds part of a collection with {self.settings.against(settings.read_text())}. "
                "Choose another folder with --out, or pass --replace"
            )
        self._outdated = other
        last = max(self.kept, default=-1)  # a file may have been finished, and its parts not removed
        present = [] if other or not self.parts.exists() else list(self.parts.iterdir())
        names = [name for part in present if _number(name := part.name) > last]
        self.drawn = {_number(name) for name in names if name.endswith(PICTURES)}
        self.recorded = sorted(_number(n) for n in names if n.endswith(".npz") and not n.endswith(PICTURES))
        failed = [_number(name) for name in names if name.endswith(".failed")]
        self.failures = len(failed)
        self.attempt = max([last, *self.recorded, *failed]) + 1

    def begin(self) -> None:
        """Makes place for what is collected; parts of other settings go, where that was asked for."""
        if self.done:
            return
        if self._outdated:
            durable.remove(self.parts)
        durable.write_json(self.parts / "settings.json", self.settings.plain())

    @property
    def count(self) -> int:
        """Demonstrations in the file to be, so far."""
        return self.settings.episodes if self.done else len(self.kept) + len(self.recorded)

    @property
    def count_drawn(self) -> int:
        """Those of them with pictures."""
        return self.count - len(self.undrawn())

    @property
    def wanted(self) -> bool:
        """Whether another demonstration must be recorded."""
        return self.count < self.settings.episodes

    def undrawn(self) -> list[int]:
        """Recorded attempts without pictures."""
        return [attempt for attempt in self.recorded if attempt not in self.drawn]

    def init_state_of(self, attempt: int) -> int:
        """Index of the initial state of an attempt."""
        return self.settings.first_init + attempt % self.settings.init_states

    def seed_of(self, attempt: int) -> tuple[int, ...]:
        """Of everything random in an attempt."""
        return (
            self.settings.seed, self.task.index, self.init_state_of(attempt), attempt // self.settings.init_states
        )  # fmt: skip

    def scatter_of(self, attempt: int) -> tuple[int, ...] | None:
        """Seed of an attempt's places; None where the things stand as the initial state has them."""
        return seed_of_places(self.seed_of(attempt), self.settings.scatter)

    def requests(self) -> tuple[Reset, Demonstrate]:
        """Start and course of the present attempt."""
        seed = self.seed_of(self.attempt)
        state = suites.init_states(self.task)[self.init_state_of(self.attempt)]
        reset = Reset(state, suites.SETTLE_STEPS, expert_seed=seed, scatter=self.scatter_of(self.attempt))
        noise = self.settings.noise_of(self.attempt)
        limit = suites.max_steps(self.task.suite)
        taken = (*seed, 3) if self.settings.from_policy else None
        return reset, Demonstrate(limit, HOLD, noise, (*seed, 1), take_over=taken)

    def drive(self, policy: ChunkPolicy) -> Drive:
        """What the policy does of the present attempt."""
        steps = steps_of(self.seed_of(self.attempt), self.task.suite)
        execution = Execution(**dict(self.settings.execution)).resolve(policy.chunk)
        (told,) = in_trained_words(policy, [self.task])
        return Drive(policy, told.instruction, steps, self.task.index * DRIVES + self.attempt, execution)

    def pass_over(self) -> None:
        """The policy was through before its steps were: nothing to learn from the present attempt.

        Raises:
            UsageError: that goes on and on.
        """
        text = f"initial state {self.init_state_of(self.attempt)}: the policy succeeded before the expert's turn\n"
        durable.write_text(self.parts / f"{self.attempt:05d}.failed", text)
        self.failures += 1
        self.passed_in_a_row += 1
        self.attempt += 1
        if self.passed_in_a_row >= MAX_PASSED:
            raise UsageError(
                f"task {self.task.name!r}: the policy succeeded {MAX_PASSED} times in a row before the expert's turn; "
                "it needs no demonstrations of this task"
            )

    def keep(self, model: str, track: Track) -> None:
        """Records the present attempt's outcome.

        Raises:
            UsageError: too many attempts in a row failed.
        """
        name = f"{self.attempt:05d}"
        if holds(track):
            arrays = {f.name: getattr(track, f.name) for f in fields(Track) if f.name not in ("seen", "stages")}
            durable.write_bytes(
                self.parts / f"{name}.npz", _pack(arrays | track.seen | {"model": _bytes(paths.portable(model))})
            )
            self.recorded.append(self.attempt)
            self.failed_in_a_row = self.passed_in_a_row = 0
        else:
            stage = track.stages[-1] if track.stages else "start"
            text = f"initial state {self.init_state_of(self.attempt)}, in {stage!r} after {len(track.stages)} steps\n"
            durable.write_text(self.parts / f"{name}.failed", text)
            self.failures += 1
            self.failed_in_a_row += 1
        if self.failed_in_a_row >= MAX_FAILURES:
            raise UsageError(f"task {self.task.name!r}: the expert failed {MAX_FAILURES} times in a row")
        self.attempt += 1

    def drawing(self, attempt: int) -> Draw:
        """What to draw of a recorded attempt."""
        part = self._read(attempt, "")
        return Draw(part["drawn"], part["glow"])

    def keep_pictures(self, attempt: int, reply: Reply) -> None:
        """Keeps what was drawn of an attempt."""
        arrays = {key: np.stack([seen[key] for seen in reply.film]) for key in IMAGE_KEYS}
        durable.write_bytes(self.parts / f"{attempt:05d}{PICTURES}", _pack(arrays))
        self.drawn.add(attempt)

    def write(self, scenery: Scenery) -> None:
        """Turns the parts into the file."""
        used = [self.init_state_of(attempt) for attempt in [*self.kept, *self.recorded]]
        bddl = paths.portable(str(self.task.bddl))
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
                (SETTINGS, self.settings.text()),
            ),
        )
        write_demos(self.file, header, self._demos(), self.settings.align, append=bool(self.kept))
        self.done = True
        durable.remove(self.parts)

    def _demos(self) -> Iterator[Demo]:
        for attempt in self.recorded:
            noise = self.settings.noise_of(attempt)
            made_by = EXPERT + (f", noise {noise:g} on its actions" if noise else "")
            if self.scatter_of(attempt) is not None:
                made_by += ", things scattered"
            driven: tuple[tuple[str, int], ...] = ()
            if policy := self.settings.from_policy:
                driven = ((DRIVEN_STEPS, steps_of(self.seed_of(attempt), self.task.suite)),)
                made_by += f", taking over from policy {policy[:12]}{self._executed()}"
            attrs: tuple[tuple[str, Attribute], ...]
            attrs = ((INIT_STATE, self.init_state_of(attempt)), (ATTEMPT, attempt), (MADE_BY, made_by), *driven)
            yield demo_of(self._read(attempt, ""), self._read(attempt, ".pictures"), attrs, noisy=noise > 0)

    def _executed(self) -> str:
        said = [f"{name} {value:g}" for name, value in self.settings.execution if value]
        return f" ({', '.join(said)})" if said else ""

    def _read(self, attempt: int, kind: str) -> dict[str, NDArray[Any]]:
        file = self.parts / f"{attempt:05d}{kind}.npz"
        try:
            return read_npz(file)
        except (FileNotFoundError, ValueError) as error:
            raise StateVLAError(
                f"{file}: part of an interrupted collection cannot be read ({error}); remove it"
            ) from error


def with_expert(suite: str, tasks: list[suites.Task], choose: bool) -> list[suites.Task]:
    """The ``tasks`` that have an expert, of a suite that has one; all must, unless it is to ``choose``.

    Raises:
        UsageError: the suite or one of the tasks has none.
    """
    check_expert(suite, [] if choose else [task.index for task in tasks])
    return [task for task in tasks if program_of(suite, task.index) is not None]


def holds(track: Track, hold: int = HOLD) -> bool:
    """Whether the task is achieved in the end, and was for the last ``hold`` steps."""
    return len(track.succeeded) >= hold and bool(track.succeeded[-hold:].all())


def demo_of(
    part: dict[str, NDArray[Any]],
    pictures: dict[str, NDArray[Any]],
    attrs: tuple[tuple[str, Attribute], ...],
    noisy: bool,
) -> Demo:
    """A demonstration of what was recorded and drawn. Its actions are the expert's; what was executed stands beside
    them where noise made a difference."""
    return Demo(
        actions=part["labels"],
        executed=part["executed"] if noisy else None,
        states=part["states"][:-1],
        agentview=pictures["agentview_image"],
        eye_in_hand=pictures["robot0_eye_in_hand_image"],
        joints=part["robot0_joint_pos"],
        fingers=part["robot0_gripper_qpos"],
        ee_pos=part["robot0_eef_pos"],
        ee_axis_angle=axis_angle_of_quaternion(part["robot0_eef_quat"]),
        ee_quaternion=part["robot0_eef_quat"],
        model_file=part["model"].tobytes().decode(),
        attrs=attrs,
    )


def _number(name: str) -> int:
    return int(name.split(".")[0]) if name[0].isdigit() else -1


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def _pack(arrays: dict[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes the first name for an option
    return buffer.getvalue()
