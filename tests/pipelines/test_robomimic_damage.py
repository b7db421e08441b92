"""Damage in robomimic's files, read in the child: what is there and cannot be read is no absence, addresses are
checked, and a demonstration's fault costs no other.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import IngestSummary, ingest
from stores.errors import SourceError
from stores.reader import Store
from tests.pipelines.make_hdf5 import make_world
from tests.pipelines.test_robomimic import ENV, gripped, write_robomimic


def run(path: Path, **options: Any) -> IngestSummary:
    store = path.parent.parent / "store"
    summary = ingest(IngestConfig("robomimic", path.parent, store, codec="png", language="hashed", **options))
    assert isinstance(summary, IngestSummary)
    return summary


def make_after(data: h5py.Group) -> None:
    """Observations as they were after their actions."""
    for name in list(data):
        number = int(name.split("_")[1])
        world = gripped(make_world(number, steps=20 + number))
        values = {
            "agentview_image": world.agentview[1:, ::-1],
            "robot0_eye_in_hand_image": world.eye_in_hand[1:, ::-1],
            "robot0_joint_pos": world.joints[1:] + 1e-4,
            "robot0_gripper_qpos": world.fingers[1:],
            "robot0_eef_pos": world.joints[1:, :3],
        }
        for key, value in values.items():
            data[name]["obs"][key][...] = value


def with_nan(states: np.ndarray, demo: h5py.Group) -> None:
    states[3, 5] = np.nan
    demo["states"][...] = states


def a_row_short(states: np.ndarray, demo: h5py.Group) -> None:
    del demo["states"]
    demo["states"] = states[:-1]


def unwritten(states: np.ndarray, demo: h5py.Group) -> None:
    del demo["states"]
    demo.create_dataset("states", shape=states.shape, chunks=(5, states.shape[1]), dtype="f8")[:5] = states[:5]


def missing(_: np.ndarray, demo: h5py.Group) -> None:
    demo.move("states", "statez")


def no_model(_: np.ndarray, demo: h5py.Group) -> None:
    demo.attrs["model_file"] = "<mujoco"


STATES_FAULTS: dict[str, tuple[Callable[[np.ndarray, h5py.Group], None], str]] = {
    "NaN": (with_nan, "key 'states': expected finite numbers, got NaN or infinity in row 3"),
    "a row short": (a_row_short, "key 'states': expected float [21, *], got float64 [20, 39]"),
    "unwritten": (unwritten, "key 'states': 5 chunks declared, 1 written"),
    "of another name": (missing, "key 'states' is missing"),
    "a damaged model": (no_model, "model_file: expected MuJoCo XML"),
}


@pytest.mark.parametrize("fault", STATES_FAULTS)
def test_states_that_cannot_be_read_are_not_absent(tmp_path: Path, fault: str) -> None:
    spoil, reason = STATES_FAULTS[fault]

    def change(data: h5py.Group) -> None:
        make_after(data)
        spoil(data["demo_1/states"][()], data["demo_1"])

    summary = run(write_robomimic(tmp_path / "raw/can.hdf5", change=change))
    assert [row["demo"] for row in summary.quarantine] == ["demo_1"]
    assert summary.quarantine[0]["reason"].startswith(f"can.hdf5/demo_1: {reason}"), summary.quarantine
    assert set(Store.open(tmp_path / "store").episode_columns["alignment"]) == {"after"}


def test_damaged_states_in_all_demonstrations_are_not_taken_as_before(tmp_path: Path) -> None:
    def change(data: h5py.Group) -> None:
        make_after(data)
        for demo in data.values():
            with_nan(demo["states"][()], demo)

    with pytest.raises(SourceError, match=r"no usable demonstration: can.hdf5/demo_0: key 'states': expected finite"):
        run(write_robomimic(tmp_path / "raw/can.hdf5", change=change))


def overwrite(path: Path, at: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(content)] = content
    path.write_bytes(data)


def header_of(path: Path, key: str) -> int:
    with h5py.File(path) as file:
        return int(h5py.h5o.get_info(file[key].id).addr)


@pytest.mark.parametrize("key", ["states", "obs/robot0_eef_pos", "obs/agentview_image", "actions", "obs"])
def test_a_damaged_header_of_the_first_demonstration_costs_that_only(tmp_path: Path, key: str) -> None:
    path = write_robomimic(tmp_path / "raw/can.hdf5")
    overwrite(path, header_of(path, f"data/demo_0/{key}"), b"\xff")
    summary = run(path)
    assert [row["demo"] for row in summary.quarantine] == ["demo_0"]
    assert "can.hdf5/demo_0: HDF5 cannot read this" in summary.quarantine[0]["reason"]


def test_the_first_demonstration_does_not_say_alone_what_a_file_has(tmp_path: Path) -> None:
    def rename(data: h5py.Group) -> None:
        data["demo_0/obs"].move("robot0_eye_in_hand_image", "robot0_eye_in_hanD_image")

    summary = run(write_robomimic(tmp_path / "raw/can.hdf5", change=rename))
    assert [row["demo"] for row in summary.quarantine] == ["demo_0"]
    assert Store.open(tmp_path / "store").spec.camera_names == ("agentview", "eye_in_hand")


def move(path: Path, key: str, target: Callable[[h5py.File, int], int]) -> None:
    """Let the data of `key` be said to lie at `target`(file, where they are)."""
    with h5py.File(path) as file:
        place, size = file[key].id.get_offset(), file[key].id.get_storage_size()
        there = target(file, place)
    field = place.to_bytes(8, "little") + size.to_bytes(8, "little")
    content = path.read_bytes()
    assert content.count(field) == 1
    overwrite(path, content.index(field), there.to_bytes(8, "little"))


def test_an_address_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "raw/can.hdf5")
    move(path, "data/demo_0/actions", lambda _, place: place + 8)
    summary = run(path)
    assert [row["demo"] for row in summary.quarantine] == ["demo_0"]
    assert "lies where other data of the file do" in summary.quarantine[0]["reason"]
    write_robomimic(path)
    move(path, "data/demo_0/actions", lambda file, _: int(file["data/demo_1/actions"].id.get_offset()))
    summary = run(path)
    assert [row["demo"] for row in summary.quarantine] == ["demo_0", "demo_1"]


@pytest.mark.parametrize("key", ["", "/obs", "/actions", "/obs/robot0_joint_pos"])
def test_two_names_of_one_thing_are_refused(tmp_path: Path, key: str) -> None:
    def name_twice(data: h5py.Group) -> None:
        del data[f"demo_2{key}"]
        data[f"demo_2{key}"] = data[f"demo_0{key}"]

    path = write_robomimic(tmp_path / "raw/can.hdf5", change=name_twice)
    summary = run(path)
    assert [row["demo"] for row in summary.quarantine] == ["demo_0", "demo_2"]


ENVIRONMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "kwargs that are a list": ({"env_name": "Lift", "env_kwargs": [1]}, "b.hdf5: env_args, env_kwargs: expected"),
    "a rate that is none": ({**ENV, "env_kwargs": {"control_freq": -20}}, "control_freq: expected a number above 0"),
    "a name that is none": ({"env_name": {"a": 1}}, "env_args, env_name: expected text"),
    "a name that steers a terminal": ({"env_name": "Li\x1b[2Jft"}, "env_args, env_name: expected printable text"),
    "half a character": ({**ENV, "env_lang": "move \ud800"}, "env_args, env_lang: expected UTF-8 text"),
    "text that steers a terminal": ({**ENV, "env_lang": "\x1b[2Jmove"}, "env_args, env_lang: expected printable text"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ENVIRONMENTS)
def test_an_environment_that_makes_no_sense_costs_its_file_only(tmp_path: Path, fault: str) -> None:
    env, reason = ENVIRONMENTS[fault]
    write_robomimic(tmp_path / "raw/a.hdf5", 2)
    summary = run(write_robomimic(tmp_path / "raw/b.hdf5", 2, env=env))
    assert summary.episodes == 2
    assert {row["file"] for row in summary.quarantine} == {"b.hdf5"}
    assert all(reason in row["reason"] and row["reason"].isprintable() for row in summary.quarantine)


def test_an_environment_without_arguments_has_no_rate(tmp_path: Path) -> None:
    summary = run(write_robomimic(tmp_path / "raw/a.hdf5", 2, env={"env_name": "Lift", "env_kwargs": None}))
    assert summary.episodes == 2
    assert any("no control_freq; 20 Hz taken" in note for note in summary.notes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [('{"lang": "x \\ud800"}', "ep_meta, lang: expected UTF-8 text"), ("{", "ep_meta: expected JSON"),
     ('{"lang": "\\u001b[2J"}', "ep_meta, lang: expected printable text"), ("[1]", "ep_meta: expected an object")],
)  # fmt: skip
def test_a_text_of_a_demonstration_that_is_none_costs_that_only(tmp_path: Path, text: str, reason: str) -> None:
    path = write_robomimic(
        tmp_path / "raw/can.hdf5", change=lambda data: data["demo_1"].attrs.__setitem__("ep_meta", text)
    )
    summary = run(path)
    assert [row["demo"] for row in summary.quarantine] == ["demo_1"]
    assert reason in summary.quarantine[0]["reason"]


def test_a_demonstration_whose_name_is_not_utf8_is_named(tmp_path: Path) -> None:
    def rename(data: h5py.Group) -> None:
        data.id.links.move(b"demo_1", data.id, b"demo_\xff")

    summary = run(write_robomimic(tmp_path / "raw/can.hdf5", change=rename))
    assert summary.episodes == 2
    assert summary.quarantine[0]["reason"] == "can.hdf5/demo_\\xff: expected a name in UTF-8"


def test_a_camera_gets_a_name_that_a_store_can_have(tmp_path: Path) -> None:
    def name(data: h5py.Group) -> None:
        for demo in data.values():
            demo["obs"].move("agentview_image", "front-view_image")

    assert run(write_robomimic(tmp_path / "raw/can.hdf5", change=name)).episodes == 3
    assert Store.open(tmp_path / "store").spec.camera_names == ("front_view", "eye_in_hand")


def test_two_cameras_of_one_name_are_not_one(tmp_path: Path) -> None:
    def name(data: h5py.Group) -> None:
        for demo in data.values():
            demo["obs"].move("agentview_image", "eye_in_hand_image")

    with pytest.raises(SourceError, match=re.escape("eye_in_hand_image and robot0_eye_in_hand_image would both be")):
        run(write_robomimic(tmp_path / "raw/can.hdf5", change=name))


def test_a_count_of_no_rows_is_no_absent_one(tmp_path: Path) -> None:
    path = write_robomimic(
        tmp_path / "raw/can.hdf5", change=lambda data: data["demo_1"].attrs.__setitem__("num_samples", 0)
    )
    assert "demo_1: num_samples 0, pictures of [21] rows" in run(path).quarantine[0]["reason"]


def test_instructions_still_come_from_ep_meta(tmp_path: Path) -> None:
    def tell(data: h5py.Group) -> None:
        for demo in data.values():
            demo.attrs["ep_meta"] = json.dumps({"lang": "pour the milk", "layout": 3})

    run(write_robomimic(tmp_path / "raw/can.hdf5", change=tell))
    assert set(Store.open(tmp_path / "store").episode_columns["instruction"]) == {"pour the milk"}
