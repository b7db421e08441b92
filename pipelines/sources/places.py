"""Where the things are that an instruction names, from the simulator's states in the recordings behind a store.

A store does not hold them, so that no policy can see them; probes may ask how much of them a state tells.

Legend: T frames of an episode, S numbers of a simulator state.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.sources import hdf5
from pipelines.sources.alignment import AFTER, arm_positions, joint_layout
from pipelines.sources.libero_demo import number_dataset
from stores.errors import UsageError
from stores.reader import Store

Coordinates = Mapping[str, NDArray[np.float64]]
"""``object``: the first thing that the instruction names, ``goal``: the last, if it is another; each [T, 3] in metres
of the simulator's world. A frame without a recorded state is NaN.
"""
OBJECT, GOAL = "object", "goal"
FAR: Final = 0.05
"""Radians by which the arm in a recorded state may differ from the arm in the store: a step's motion and more."""


def named_things(instruction: str, free: tuple[str, ...]) -> list[str]:
    """Joints of the free bodies that `instruction` names in full, in its order; a name that two bodies have names none.

    ``alphabet_soup_1_joint0`` is named by "alphabet soup".
    """
    text = f" {' '.join(re.findall(r'[a-z0-9]+', instruction.lower()))} "
    names = {joint: re.sub(r"(_\d+)?_joint\d*$", "", joint).replace("_", " ").lower() for joint in free}
    at = {joint: text.find(f" {name} ") for joint, name in names.items() if list(names.values()).count(name) == 1}
    return sorted((joint for joint, place in at.items() if place >= 0), key=at.__getitem__)


def places_of(store: Store, source: Path) -> Callable[[int], Coordinates]:
    """Episode number -> where its things are, read from the recordings in folder `source` that the store was made of.

    Raises UsageError where a recording is not there, names nothing that moves freely, or is not what the store has.
    """
    columns = store.episode_columns

    def read(episode: int) -> Coordinates:
        file, demo = source / str(columns["source"][episode]), str(columns["demo"][episode])
        if not file.is_file():
            raise UsageError(f"{file}: expected the recording of episode {columns['id'][episode]}; name its folder")
        first, frames = int(columns["first_frame"][episode]), int(columns["frames"][episode])
        with hdf5.open_hdf5(file) as opened, hdf5.reporting(f"{file.name}/{demo}"):
            group = hdf5.group(hdf5.group(opened, "data"), demo)
            states = np.asarray(hdf5.read_rows(number_dataset(group, "states", (frames, None)), 0, None), np.float64)
            model = hdf5.text(group, "model_file")
            if model is None:
                raise UsageError(f"{file}, {demo}: no model_file, so that nothing says where things are in its states")
            layout = joint_layout(model)
            if str(columns["alignment"][episode]) == AFTER:  # states[t] is before the action, the observation after it
                states = np.concatenate([states[1:], np.full((1, states.shape[1]), np.nan)])
            arm = arm_positions(states, layout)
        _require_same(arm, store.numbers["robot_state"].read(first, first + frames), f"{file}, {demo}")
        things = named_things(str(columns["instruction"][episode]), layout.free)
        if not things:
            raise UsageError(
                f"{file}, {demo}: the instruction {str(columns['instruction'][episode])!r} names none of "
                f"{sorted(layout.free)}"
            )
        named = {OBJECT: things[0]} | ({GOAL: things[-1]} if len(things) > 1 else {})
        return {name: states[:, 1 + layout.address[joint] :][:, :3] for name, joint in named.items()}

    return read


def _require_same(arm: NDArray[np.float64], robot: NDArray[Any], where: str) -> None:
    off = float(np.nanmax(np.abs(arm - robot[:, : arm.shape[1]])))
    if off > FAR:
        raise UsageError(
            f"{where}: another recording than the store was made of: expected the arm within {FAR} rad of the store's, "
            f"got {off:.2f}"
        )
