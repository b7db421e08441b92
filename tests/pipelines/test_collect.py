"""Collected demonstration files: layout, alignment, determinism."""

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest

from pipelines.collect.tabletop import collect_tabletop, model_xml
from pipelines.collect.writer import Align, Demo, FileHeader, quaternions, write_demos
from statevla.sims.tabletop.environment import STATE_SIZE, TASKS, TabletopEnv, task_name
from stores.errors import UsageError

FIELDS = {
    "actions": (np.float64, (7,)),
    "dones": (np.uint8, ()),
    "rewards": (np.uint8, ()),
    "robot_states": (np.float64, (9,)),
    "states": (np.float64, (STATE_SIZE,)),
    "obs/agentview_rgb": (np.uint8, (32, 32, 3)),
    "obs/eye_in_hand_rgb": (np.uint8, (32, 32, 3)),
    "obs/joint_states": (np.float64, (7,)),
    "obs/gripper_states": (np.float64, (2,)),
    "obs/ee_pos": (np.float64, (3,)),
    "obs/ee_ori": (np.float64, (3,)),
    "obs/ee_states": (np.float64, (6,)),
}


def datasets(group: h5py.Group) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    group.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def test_layout_is_liberos(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    summary = collect_tabletop(tmp_path, 7, image_size=32, progress=lambda e: calls.append((e.done, e.total)))
    assert calls == [(i, 7) for i in range(1, 8)]
    assert [p.name for p in summary.files] == [f"{task_name(t)}_demo.hdf5" for t in range(len(TASKS))]
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in summary.files}
    demos = steps = 0
    for task, path in enumerate(summary.files):
        with h5py.File(path) as file:
            data = file["data"]
            assert json.loads(data.attrs["problem_info"])["language_instruction"] == TASKS[task]
            assert json.loads(data.attrs["env_args"])["env_name"] == data.attrs["env_name"] == "Tabletop"
            assert data.attrs["macros_image_convention"] == "opengl"
            assert sorted(data) == [f"demo_{i}" for i in range(data.attrs["num_demos"])]
            assert data.attrs["total"] == sum(int(d.attrs["num_samples"]) for d in data.values())
            demos += len(data)
            steps += int(data.attrs["total"])
            for demo in data.values():
                count = int(demo.attrs["num_samples"])
                found = datasets(demo)
                assert {n: (d.dtype, d.shape) for n, d in found.items()} == {
                    n: (np.dtype(dtype), (count, *shape)) for n, (dtype, shape) in FIELDS.items()
                }
                assert all(d.compression is None and d.chunks is None for d in found.values())
                np.testing.assert_array_equal(demo.attrs["init_state"], demo["states"][0])
                np.testing.assert_array_equal(np.flatnonzero(demo["dones"][:]), [count - 1])
                assert demo["obs/gripper_states"][-1, 0] > demo["obs/gripper_states"][:, 0].min()
    assert (demos, steps) == (summary.episodes, summary.steps)


def test_model_names_joints_in_the_order_of_the_state() -> None:
    joints = list(ElementTree.fromstring(model_xml()).iter("joint"))
    names = [joint.attrib["name"] for joint in joints]
    assert names[:9] == [f"robot0_joint{i}" for i in range(1, 8)] + [f"gripper0_finger_joint{i}" for i in (1, 2)]
    positions = sum(7 if joint.attrib["type"] == "free" else 1 for joint in joints)
    velocities = sum(6 if joint.attrib["type"] == "free" else 1 for joint in joints)
    assert 1 + positions + velocities == STATE_SIZE


@pytest.mark.parametrize("align", ["after", "before"])
def test_observations_lie_where_the_alignment_says(tmp_path: Path, align: Align) -> None:
    path = collect_tabletop(tmp_path, 1, seed=3, image_size=32, align=align).files[0]
    env = TabletopEnv(image_size=32)
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        joints, states = demo["obs/joint_states"][:], demo["states"][:]
        if align == "after":
            np.testing.assert_array_equal(joints[:-1], states[1:, 1:8])
        else:
            np.testing.assert_array_equal(joints, states[:, 1:8])
        env.reset(0, 0)
        obs = env.set_state(states[0])
        for step, action in enumerate(demo["actions"][:]):
            after = env.step(action)[0]
            expected = after if align == "after" else obs
            obs = after
            np.testing.assert_allclose(joints[step], expected["robot0_joint_pos"], atol=1e-9)
            np.testing.assert_allclose(demo["obs/gripper_states"][step], expected["robot0_gripper_qpos"], atol=1e-9)
            # Restoring joints costs the last bits of the pose: one grey level at most.
            for key, name in (("agentview_image", "agentview_rgb"), ("robot0_eye_in_hand_image", "eye_in_hand_rgb")):
                difference = expected[key].astype(int) - demo["obs"][name][step].astype(int)
                assert np.abs(difference).max() <= 1
        assert env.check_success()


def test_same_call_gives_the_same_bytes_and_more_episodes_only_add(tmp_path: Path) -> None:
    first = collect_tabletop(tmp_path / "a", 2, seed=1, image_size=16).files[0]
    again = collect_tabletop(tmp_path / "b", 2, seed=1, image_size=16).files[0]
    other = collect_tabletop(tmp_path / "c", 2, seed=2, image_size=16).files[0]
    longer = collect_tabletop(tmp_path / "d", 7, seed=1, image_size=16).files[0]
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    with h5py.File(first) as short, h5py.File(longer) as long:
        assert (len(short["data"]), len(long["data"])) == (1, 2)
        np.testing.assert_array_equal(short["data/demo_0/actions"][:], long["data/demo_0/actions"][:])


def test_a_collection_that_dies_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "task_demo.hdf5"
    path.write_bytes(b"previous")

    def dies() -> Iterator[Demo]:
        yield _demo(3)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_demos(path, FileHeader("text", "env", {}, "tag", "problem"), dies())
    assert path.read_bytes() == b"previous"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def _demo(steps: int) -> Demo:
    rows = steps + 1
    image = np.zeros((rows, 4, 4, 3), np.uint8)
    pose = np.zeros((rows, 3))
    joints, fingers = np.zeros((rows, 7)), np.zeros((rows, 2))
    return Demo(np.zeros((steps, 7)), np.zeros((steps, 12)), image, image, joints, fingers, pose, pose, "<mujoco/>")


def test_quaternions_of_known_turns() -> None:
    half = np.sqrt(0.5)
    turns = np.array([[0.0, 0, 0], [0, 0, np.pi / 2], [np.pi, 0, 0]])
    np.testing.assert_allclose(quaternions(turns), [[0, 0, 0, 1], [0, 0, half, half], [1, 0, 0, 0]], atol=1e-12)


@pytest.mark.parametrize(("episodes", "align"), [(0, "after"), (1, "sideways")])
def test_bad_requests_are_refused(tmp_path: Path, episodes: int, align: Align) -> None:
    with pytest.raises(UsageError, match=r"episodes|align"):
        collect_tabletop(tmp_path, episodes, align=align)
    assert not list(tmp_path.iterdir())


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    alone = collect_tabletop(tmp_path / "one", 5, image_size=16)
    shared = collect_tabletop(tmp_path / "two", 5, image_size=16, workers=2)
    assert (alone.episodes, alone.steps, alone.failures) == (shared.episodes, shared.steps, shared.failures)
    for mine, theirs in zip(alone.files, shared.files, strict=True):
        assert mine.read_bytes() == theirs.read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_recordings_of_another_collection_are_not_touched_unless_told(tmp_path: Path) -> None:
    collect_tabletop(tmp_path, 9, seed=1, image_size=16)
    before = contents(tmp_path)
    others: list[tuple[int, int, Align]] = [(2, 1, "after"), (9, 2, "after"), (9, 1, "before")]
    for episodes, seed, align in others:
        with pytest.raises(UsageError, match=r"demonstrations of another collection.*--append.*--replace"):
            collect_tabletop(tmp_path, episodes, seed=seed, image_size=16, align=align)
        assert contents(tmp_path) == before
    again = collect_tabletop(tmp_path, 9, seed=1, image_size=16)  # the very same is complete
    assert contents(tmp_path) == before
    assert again.episodes == 9


def test_append_keeps_every_recording_and_adds_what_a_longer_collection_would_have(tmp_path: Path) -> None:
    collect_tabletop(tmp_path / "a", 4, seed=1, image_size=16)
    added = collect_tabletop(tmp_path / "a", 8, seed=1, image_size=16, existing="append")
    collect_tabletop(tmp_path / "b", 12, seed=1, image_size=16)
    assert added.episodes == 8
    steps = 0
    for path in sorted((tmp_path / "b").iterdir()):
        with h5py.File(path) as whole, h5py.File(tmp_path / "a" / path.name) as grown:
            assert list(grown["data"]) == list(whole["data"]) == ["demo_0", "demo_1", "demo_2"]
            assert grown["data"].attrs["num_demos"] == 3
            assert grown["data"].attrs["total"] == whole["data"].attrs["total"]
            for name in whole["data"]:
                np.testing.assert_array_equal(grown[f"data/{name}/actions"][:], whole[f"data/{name}/actions"][:])
                assert grown[f"data/{name}"].attrs["model_file"] == whole[f"data/{name}"].attrs["model_file"]
            steps += sum(len(whole[f"data/demo_{n}/actions"]) for n in (1, 2))
    assert added.steps == steps


def test_replace_leaves_nothing_of_before(tmp_path: Path) -> None:
    collect_tabletop(tmp_path / "a", 4, seed=1, image_size=16)
    (tmp_path / "a" / "mine.txt").write_text("stays")
    collect_tabletop(tmp_path / "a", 2, seed=3, image_size=16, existing="replace")
    collect_tabletop(tmp_path / "b", 2, seed=3, image_size=16)
    assert {k: v for k, v in contents(tmp_path / "a").items() if k != "mine.txt"} == contents(tmp_path / "b")
    assert (tmp_path / "a" / "mine.txt").exists()


def test_what_is_no_recording_is_not_overwritten(tmp_path: Path) -> None:
    name = collect_tabletop(tmp_path / "a", 1, image_size=16).files[0].name
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / name).write_text("a page")
    for existing in ("refuse", "append"):
        with pytest.raises(UsageError, match="expected recorded demonstrations"):
            collect_tabletop(tmp_path / "b", 1, image_size=16, existing=existing)  # type: ignore[arg-type]
    assert (tmp_path / "b" / name).read_text() == "a page"
