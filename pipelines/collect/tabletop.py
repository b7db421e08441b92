"""Collects demonstrations of the tabletop suite: its expert's episodes, one HDF5 file a task in LIBERO's layout."""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines.collect.writer import (
    ALIGNMENTS,
    EXISTING,
    EXPERT,
    SETTINGS,
    Align,
    Demo,
    Existing,
    FileHeader,
    Floats,
    collected_with,
    write_demos,
)
from statevla.sims.tabletop.environment import BLOCKS, BOWLS, CONTROL_HZ, TASKS, Obs, TabletopEnv, task_name
from statevla.sims.tabletop.expert import TabletopExpert
from stores.disk import durable
from stores.disk.lock import clean, lock
from stores.errors import UsageError
from stores.made_by import MADE_BY
from stores.progress import Progress, ProgressEvent

AFTER_SUCCESS: Final = 3
"""Steps kept after success, so that the released gripper is seen to leave."""
ATTEMPTS: Final = 20
"""Failures of the expert in a row, on one demonstration, that end a collection."""


@dataclass(frozen=True)
class CollectSummary:
    """What a collection wrote."""

    files: tuple[Path, ...]
    episodes: int
    steps: int
    failures: int
    """Episodes in which the expert failed; none of them is written."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``statevla collect --json`` prints."""
        return {
            "episodes": self.episodes,
            "steps": self.steps,
            "failures": self.failures,
            "files": [str(path) for path in self.files],
        }


def collect_tabletop(
    out: Path,
    episodes: int,
    seed: int = 0,
    image_size: int = 64,
    align: Align = "after",
    workers: int = 1,
    progress: Progress | None = None,
    existing: Existing = "refuse",
) -> CollectSummary:
    """Write ``episodes`` successful demonstrations below ``out``, spread evenly over the tasks.

    The same arguments give the same bytes, whatever `workers`, the number of processes that share the tasks.
    Demonstration ``i`` of a task is the same however many follow it.

    existing: recordings of another collection in ``out`` are an error, stay and are added to, or are replaced, those
    of tasks that get no new ones too. Files of this very collection are complete and stay as they are.

    Raises:
        StoreLocked: another collection is writing to ``out``.
        UsageError: ``episodes`` is not positive, ``align`` is unknown, or the expert keeps failing.
    """
    if episodes < 1:
        raise UsageError(f"episodes: expected at least 1, got {episodes}")
    if workers < 1:
        raise UsageError(f"workers: expected at least 1, got {workers}")
    if align not in ALIGNMENTS:
        raise UsageError(f"align: expected one of {', '.join(ALIGNMENTS)}, got {align!r}")
    if existing not in EXISTING:
        raise UsageError(f"existing: expected one of {', '.join(EXISTING)}, got {existing!r}")
    counts = [episodes // len(TASKS) + (task < episodes % len(TASKS)) for task in range(len(TASKS))]
    jobs = [TaskJob(out, task, count, seed, image_size, align, existing) for task, count in enumerate(counts) if count]
    with lock(out, "collection of tabletop"):  # and what a killed collection left is removed
        if existing == "refuse":
            _refuse_others(out, jobs)
        done = _collect(out, jobs, workers, episodes, progress)
        if existing == "replace":
            for path in _recordings(out):
                if path not in [job.path for job in jobs]:
                    durable.remove(path)
    paths, steps, failures = zip(*done, strict=True)
    return CollectSummary(tuple(paths), episodes, sum(steps), sum(failures))


@dataclass(frozen=True)
class TaskJob:
    """All demonstrations of one task: one file, made by one process."""

    out: Path
    task: int
    count: int
    seed: int
    image_size: int
    align: Align
    existing: Existing = "refuse"

    @property
    def path(self) -> Path:
        """The file."""
        return self.out / f"{task_name(self.task)}_demo.hdf5"

    @property
    def settings(self) -> str:
        """What makes it another collection."""
        names = ("count", "seed", "image_size", "align")
        return json.dumps({name: getattr(self, name) for name in names}, sort_keys=True)


def _collect(
    out: Path, jobs: list[TaskJob], workers: int, episodes: int, progress: Progress | None
) -> list[tuple[Path, int, int]]:
    """`collect_task` of all jobs, in their order. Call it under the lock of `out`."""
    written = 0

    def advance() -> None:
        nonlocal written
        written += 1
        if progress is not None:
            progress(ProgressEvent("collect", written, episodes, "episodes"))

    if workers == 1:
        return [collect_task(job, advance) for job in jobs]
    done = []
    others = set(multiprocessing.active_children())
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            try:
                for job, result in zip(jobs, pool.map(collect_task, jobs), strict=True):
                    done.append(result)
                    for _ in range(job.count):
                        advance()
            except BaseException:
                # A file takes minutes: whoever ends the collection does not wait for those that are under way.
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()
                raise
    except BaseException:
        clean(out)  # what the workers had begun
        raise
    return done


def _recordings(out: Path) -> list[Path]:
    """Files of any task of the tabletop in `out`."""
    paths = [out / f"{task_name(task)}_demo.hdf5" for task in range(len(TASKS))]
    return [path for path in paths if path.exists()]


def _refuse_others(out: Path, jobs: list[TaskJob]) -> None:
    """Raise UsageError where `out` holds recordings that are not those of `jobs`."""
    mine = {job.path: job.settings for job in jobs}
    there = {path: collected_with(path) for path in _recordings(out)}
    others = [path for path, (settings, _, _) in there.items() if settings != mine.get(path)]
    if others:
        count = sum(there[path][1] for path in others)
        raise UsageError(
            f"{out}: holds {count} demonstrations of another collection ({others[0].name} and {len(others) - 1} other "
            "files). Pass --append to add to them, --replace to overwrite them, or another --out; nothing was changed"
        )


def collect_task(job: TaskJob, advance: Callable[[], None] | None = None) -> tuple[Path, int, int]:
    """Write one task's file. Returns its path, its steps and how often the expert failed; of a file that this very
    collection has made before, that is not known any more, and 0.
    """
    there = collected_with(job.path) if job.path.exists() and job.existing != "replace" else None
    if there is not None and job.existing == "refuse" and there[0] == job.settings:
        for _ in range(job.count):
            if advance is not None:
                advance()
        return job.path, there[2], 0
    first = 0 if there is None else there[1]
    env = TabletopEnv(job.image_size)
    failures = 0

    def demos() -> Iterator[Demo]:
        nonlocal failures
        for index in range(first, first + job.count):
            demo, failed = _successful_demo(env, job.task, job.seed, index)
            failures += failed
            yield demo
            if advance is not None:
                advance()

    arguments = {"image_size": job.image_size, "task": job.task}
    header = FileHeader(
        instruction=TASKS[job.task],
        env_name="Tabletop",
        env_args={"env_name": "Tabletop", "env_kwargs": arguments, "seed": job.seed},
        tag="tabletop-scripted-expert",
        problem_name="tabletop",
        extra=((SETTINGS, job.settings),),
    )
    if there is not None:
        header = replace(header, extra=((SETTINGS, f"{there[0]} then {job.settings}"),))
    steps = write_demos(job.path, header, demos(), job.align, append=there is not None)[1]
    return job.path, steps - (0 if there is None else there[2]), failures


def record(env: TabletopEnv, task: int, reset_seed: int, rng: np.random.Generator) -> Demo | None:
    """One episode of the expert, or None where it does not succeed in ``env.max_steps``."""
    obs = [env.reset(task, reset_seed)]
    poses, states, actions = [env.pose], [], []
    expert = TabletopExpert(env, rng)
    left = env.max_steps
    succeeded = False
    while left > 0:
        states.append(env.get_state())
        actions.append(expert.act(obs[-1]))
        after, _, success, _ = env.step(actions[-1])
        obs.append(after)
        poses.append(env.pose)
        left -= 1
        if success and not succeeded:
            succeeded, left = True, AFTER_SUCCESS
    return _to_demo(obs, np.array(poses), np.array(states), np.array(actions)) if env.check_success() else None


def model_xml() -> str:
    """A MuJoCo-style model that names the joints in the order of the flat state; for addresses, not for simulation."""
    arm = "".join(f'<joint name="robot0_joint{i}" type="hinge"/>' for i in range(1, 8))
    fingers = "".join(f'<joint name="gripper0_finger_joint{i}" type="slide"/>' for i in (1, 2))
    names = [f"{name}_block" for name in BLOCKS] + [f"{name}_bowl" for name in BOWLS]
    objects = "".join(f'<body name="{n}"><joint name="{n}_joint0" type="free"/></body>' for n in names)
    robot = f'<body name="robot0_link7">{arm}{fingers}</body>'
    return (
        f'<mujoco model="tabletop"><compiler angle="radian"/><option timestep="{1 / CONTROL_HZ}"/>'
        f"<worldbody>{robot}{objects}</worldbody></mujoco>"
    )


def _successful_demo(env: TabletopEnv, task: int, seed: int, index: int) -> tuple[Demo, int]:
    """Demonstration ``index`` of a task, and how many attempts at it failed before."""
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([seed, task, index, attempt])
        demo = record(env, task, int(rng.integers(2**63)), rng)
        if demo is not None:
            return demo, attempt
    raise UsageError(f"task {TASKS[task]!r}, seed {seed}: the expert failed {ATTEMPTS} times in a row")


def _to_demo(obs: list[Obs], poses: Floats, states: Floats, actions: Floats) -> Demo:
    turn = np.zeros((len(poses), 3))
    turn[:, 2] = poses[:, 3]
    return Demo(
        actions=actions,
        states=states,
        agentview=np.stack([o["agentview_image"] for o in obs]),
        eye_in_hand=np.stack([o["robot0_eye_in_hand_image"] for o in obs]),
        joints=np.stack([o["robot0_joint_pos"] for o in obs]),
        fingers=np.stack([o["robot0_gripper_qpos"] for o in obs]),
        ee_pos=poses[:, :3],
        ee_axis_angle=turn,
        model_file=model_xml(),
        attrs=((MADE_BY, EXPERT),),
    )
