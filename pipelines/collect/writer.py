"""Writes one demonstration file in LIBERO's HDF5 layout; every collector shares it.

Legend: T steps of a demonstration, S length of the simulator's flat state, H/W image rows and columns.

``states[t]`` is always before ``actions[t]``. The observations may lie after it, as in LIBERO's official files, or
before it, as in regenerated ones: ``align`` says which, and nothing in the file does, as in the originals.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from stores.disk import durable
from stores.errors import UsageError

Align = Literal["after", "before"]
EXECUTED: Final = "executed_actions"
ALIGNMENTS: Final[tuple[Align, ...]] = ("after", "before")
Existing = Literal["refuse", "append", "replace"]
"""What to do with recordings that are there already."""
EXISTING: Final[tuple[Existing, ...]] = ("refuse", "append", "replace")
SETTINGS: Final = "collected_with"
"""Attribute of ``/data`` that says how a file was collected, so that the same collection is recognized."""

EXPERT: Final = "scripted expert"
"""`stores.made_by.MADE_BY` of what the experts demonstrate."""

Floats = NDArray[np.float64]
Attribute = int | float | str


@dataclass(frozen=True, eq=False)
class Demo:
    """One demonstration as recorded: T actions and the T + 1 observations around them."""

    actions: Floats
    """[T, 7]"""
    states: Floats
    """[T, S], before each action: time, qpos, qvel"""
    agentview: NDArray[np.uint8]
    """[T + 1, H, W, 3], as the simulator gives it (upside-down)"""
    eye_in_hand: NDArray[np.uint8]
    """[T + 1, H, W, 3]"""
    joints: Floats
    """[T + 1, 7], rad"""
    fingers: Floats
    """[T + 1, 2], m"""
    ee_pos: Floats
    """[T + 1, 3], m"""
    ee_axis_angle: Floats
    """[T + 1, 3], rad"""
    model_file: str
    """The simulator's model XML, which gives the addresses of joints in ``states``"""
    ee_quaternion: Floats | None = None
    """[T + 1, 4], (x, y, z, w), where the simulator gives it: LIBERO's ``robot_states`` hold it; None: computed"""
    executed: Floats | None = None
    """[T, 7], what was executed where ``actions`` are what should have been; None: the same"""
    attrs: tuple[tuple[str, Attribute], ...] = ()
    """What else to keep with the demonstration, such as the initial state it starts from"""


@dataclass(frozen=True)
class FileHeader:
    """What the attributes of group ``data`` say."""

    instruction: str
    env_name: str
    env_args: dict[str, Any]
    tag: str
    problem_name: str
    extra: tuple[tuple[str, str], ...] = ()
    """Further text attributes, such as LIBERO's ``bddl_file_name``"""


def write_demos(
    path: Path, header: FileHeader, demos: Iterable[Demo], align: Align = "after", append: bool = False
) -> tuple[int, int]:
    """Write ``demos``, one by one as they come, to ``path``; the file appears complete or not at all.

    append: what ``path`` holds already comes first, as it is.

    Returns:
        Number of demonstrations and of steps.
    """
    count = total = 0
    # HDF5 insists on writing its file itself, so that only the commit is ours.
    with durable.staging_file(path) as part, _writing(path), h5py.File(part, "w", track_order=False) as file:
        data = file.create_group("data")
        number = 0
        if append:
            with h5py.File(path, "r") as before:
                for name, group in before["data"].items():
                    before.copy(group, data, name=name)
                    total += len(group["actions"])
                    count += 1
                    number = max(number, demo_number(name) + 1)
        for demo in demos:
            total += _write_demo(data.create_group(f"demo_{number}"), demo, align)
            count, number = count + 1, number + 1
        _write_header(data, header, count, total)
    return count, total


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the system refuses HDF5 is an OSError that names `path`. HDF5 has errors of many types for it, the number
    only in their text, and none at all when closing fails after an earlier error: the first one counts.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if getattr(error, "filename", None) is not None:  # of another file, not of HDF5's
            raise
        told: BaseException | None = error
        while told is not None:
            if said := re.search(r"errno = (\d+)", str(told)):
                number = int(said[1])
                raise OSError(number, os.strerror(number), str(path)) from error
            told = told.__context__
        raise


def demo_number(name: str) -> int:
    """7 of ``demo_7``; -1 of another name."""
    tail = name.removeprefix("demo_")
    return int(tail) if tail.isdecimal() else -1


def collected_with(path: Path) -> tuple[str | None, int, int]:
    """(how the file was collected, demonstrations, steps). Raises UsageError on what is no file of demonstrations."""
    try:
        with h5py.File(path, "r") as file:
            data = file["data"]
            steps = sum(len(group["actions"]) for group in data.values())
            return data.attrs.get(SETTINGS), len(data), steps
    except (OSError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: expected recorded demonstrations, got something else ({error}); move it") from error


def _write_header(data: h5py.Group, header: FileHeader, count: int, total: int) -> None:
    problem = {
        "problem_name": header.problem_name,
        "domain_name": "robosuite",
        "language_instruction": header.instruction,
    }
    data.attrs["env_args"] = json.dumps(header.env_args, sort_keys=True)
    data.attrs["env_name"] = header.env_name
    data.attrs["macros_image_convention"] = "opengl"
    data.attrs["num_demos"] = count
    data.attrs["problem_info"] = json.dumps(problem)
    data.attrs["tag"] = header.tag
    data.attrs["total"] = total
    for name, text in header.extra:
        data.attrs[name] = text


def _write_demo(group: h5py.Group, demo: Demo, align: Align) -> int:
    steps = len(demo.actions)
    seen = slice(1, steps + 1) if align == "after" else slice(0, steps)
    fingers, position, turn = demo.fingers[seen], demo.ee_pos[seen], demo.ee_axis_angle[seen]
    end = np.zeros(steps, np.uint8)
    end[-1:] = 1
    group.attrs["init_state"] = demo.states[0]
    group.attrs["model_file"] = demo.model_file
    group.attrs["num_samples"] = steps
    for name, value in demo.attrs:
        group.attrs[name] = value
    orientation = quaternions(turn) if demo.ee_quaternion is None else demo.ee_quaternion[seen]
    datasets = {
        "actions": demo.actions,
        "dones": end,
        "obs/agentview_rgb": demo.agentview[seen],
        "obs/ee_ori": turn,
        "obs/ee_pos": position,
        "obs/ee_states": np.concatenate([position, turn], 1),
        "obs/eye_in_hand_rgb": demo.eye_in_hand[seen],
        "obs/gripper_states": fingers,
        "obs/joint_states": demo.joints[seen],
        "rewards": end,
        "robot_states": np.concatenate([fingers, position, orientation], 1),
        "states": demo.states,
    }
    if demo.executed is not None:
        datasets[EXECUTED] = demo.executed
    for name, array in datasets.items():
        # track_times: the date of writing would make equal files differ.
        group.create_dataset(name, data=array, track_times=False)
    return steps


def quaternions(axis_angle: Floats) -> Floats:
    """Unit quaternions ``[T, 4]`` (x, y, z, w), as robosuite orders them, of axis-angle vectors ``[T, 3]`` [rad]."""
    angle = np.linalg.norm(axis_angle, axis=1, keepdims=True)
    # sin(a/2)/a, written with sinc so that it holds at a = 0.
    return np.concatenate([axis_angle * (0.5 * np.sinc(angle / (2 * np.pi))), np.cos(angle / 2)], 1)
