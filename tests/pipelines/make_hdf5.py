"""Small demonstration files in LIBERO's layout, made from numbers that a test knows.

Legend: T actions of a demonstration; the simulated world passes through T + 1 moments.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

# An object with 7 numbers and a lid with 4 come before the arm, so its joints start at qpos 11.
MODEL_XML = """<mujoco model="test"><worldbody>
  <body name="mug"><freejoint name="mug_joint"/><body name="lid"><joint name="lid_joint" type="ball"/></body></body>
  <body name="robot0_link1"><joint name="robot0_joint1"/>
    <body name="robot0_link2"><joint name="robot0_joint2"/><body name="link3"><joint name="robot0_joint3"/>
      <body name="link4"><joint name="robot0_joint4"/><body name="link5"><joint name="robot0_joint5"/>
        <body name="link6"><joint name="robot0_joint6"/><body name="link7"><joint name="robot0_joint7"/>
          <body name="finger1"><joint name="gripper0_finger_joint1" type="slide"/></body>
          <body name="finger2"><joint name="gripper0_finger_joint2" type="slide"/></body>
        </body></body></body></body></body></body></body>
</worldbody></mujoco>"""
ARM_AT, NQ, NV = 11, 20, 18


@dataclass(frozen=True)
class World:
    """What happened: actions [T, 7]; joints [T + 1, 7], fingers [T + 1, 2], images [T + 1, H, W, 3] as rendered."""

    actions: NDArray[np.float64]
    joints: NDArray[np.float64]
    fingers: NDArray[np.float64]
    agentview: NDArray[np.uint8]
    eye_in_hand: NDArray[np.uint8]

    def states(self) -> NDArray[np.float64]:
        """Simulator states before each action: time, qpos, qvel."""
        steps = len(self.actions)
        rows = np.random.default_rng(1).normal(size=(steps, 1 + NQ + NV))
        rows[:, 0] = np.arange(steps) / 20
        rows[:, 1 + ARM_AT : 1 + ARM_AT + 7] = self.joints[:steps]
        return rows


def make_world(seed: int = 0, steps: int = 40, side: int = 16) -> World:
    """A random walk of the arm; every image is a smooth gradient that names its moment and is dark at the bottom."""
    rng = np.random.default_rng(seed)
    joints = np.cumsum(rng.normal(0, 0.02, (steps + 1, 7)), axis=0)
    fingers = 0.04 * rng.random((steps + 1, 2))
    # OpenGL: row 0 is the bottom of the scene.
    rows = np.linspace(20, 200, side)[:, None, None].repeat(side, 1)
    moment = np.arange(steps + 1) % 50
    first = np.concatenate([rows, rows[::-1] * 0.5, np.full_like(rows, 90.0)], -1)[None] + moment[:, None, None, None]
    second = np.concatenate([rows * 0.3, rows, rows], -1)[None] + moment[:, None, None, None]
    actions = rng.uniform(-1, 1, (steps, 7))
    actions[:, 6] = np.sign(actions[:, 6])
    return World(actions, joints, fingers, first.astype(np.uint8), second.astype(np.uint8))


def demo_arrays(world: World, alignment: str = "after") -> dict[str, NDArray[Any]]:
    """Datasets of one demonstration, by path below its group."""
    steps = len(world.actions)
    seen = slice(1, steps + 1) if alignment == "after" else slice(0, steps)
    return {
        "actions": world.actions,
        "states": world.states(),
        "obs/agentview_rgb": world.agentview[seen],
        "obs/eye_in_hand_rgb": world.eye_in_hand[seen],
        "obs/joint_states": world.joints[seen] + 1e-4,  # sensors sample a little early
        "obs/gripper_states": world.fingers[seen],
    }


def write_file(
    path: Path,
    demos: dict[str, dict[str, NDArray[Any]]],
    instruction: str | None = "pick the mug",
    convention: str | None = "opengl",
    model: str | None = MODEL_XML,
    counted: bool = True,
    declared: int | None = None,
) -> Path:
    """One file; `counted` writes num_samples, `declared` overrides num_demos; None leaves an attribute out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if instruction is not None:
            data.attrs["problem_info"] = json.dumps({"language_instruction": instruction})
        if convention is not None:
            data.attrs["macros_image_convention"] = convention
        data.attrs["num_demos"] = len(demos) if declared is None else declared
        for name, arrays in demos.items():
            group = data.create_group(name)
            if model is not None:
                group.attrs["model_file"] = model
            if counted:
                group.attrs["num_samples"] = len(arrays["actions"]) if "actions" in arrays else 0
            for key, array in arrays.items():
                group.create_dataset(key, data=array, track_times=False)
    return path


def write_suite(folder: Path, tasks: int = 2, demos: int = 2, alignment: str = "after") -> Path:
    """`tasks` files of `demos` demonstrations of different lengths."""
    for task in range(tasks):
        worlds = {f"demo_{n}": make_world(10 * task + n, steps=20 + 7 * n + task) for n in range(demos)}
        arrays = {name: demo_arrays(world, alignment) for name, world in worlds.items()}
        write_file(folder / f"put_the_cup_{task}_away_demo.hdf5", arrays, f"put the cup {task} away")
    return folder
