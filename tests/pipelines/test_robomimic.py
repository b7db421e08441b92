"""robomimic's HDF5 as a source: robosuite's usual keys, others by --spec, masks, conventions, and faults by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cli import main
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from pipelines.sources.fields import Fields, read_fields
from pipelines.sources.table import recognize
from stores.errors import SourceError, UsageError
from stores.reader import Store
from stores.spec import ObsSpec
from stores.verify import verify_store
from tests.pipelines.make_hdf5 import MODEL_XML, World, make_world, write_suite

ENV: dict[str, Any] = {"env_name": "PickPlaceCan", "type": 1, "env_kwargs": {"control_freq": 25}}


def gripped(world: World) -> World:
    """The fingers close where the command is +1."""
    width = np.clip(np.cumsum(np.concatenate([[0.0], -world.actions[:, 6]])) * 0.002, -0.03, 0.03)
    world.fingers[:, 0], world.fingers[:, 1] = 0.04 + width, -0.04 - width
    return world


def write_robomimic(
    path: Path,
    demos: int = 3,
    masks: dict[str, list[str]] | None = None,
    env: dict[str, Any] | None = None,
    change: Callable[[h5py.Group], object] | None = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(ENV if env is None else env)
        for number in range(demos):
            world = gripped(make_world(number, steps=20 + number))
            rows = len(world.actions)
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"], group.attrs["model_file"] = rows, MODEL_XML
            values = {
                "actions": world.actions,
                "states": world.states(),
                "rewards": np.zeros(rows),
                "dones": np.zeros(rows),
                "obs/agentview_image": world.agentview[:rows, ::-1],
                "obs/robot0_eye_in_hand_image": world.eye_in_hand[:rows, ::-1],
                "obs/robot0_joint_pos": world.joints[:rows] + 1e-4,
                "obs/robot0_gripper_qpos": world.fingers[:rows],
                "obs/robot0_eef_pos": world.joints[:rows, :3],
            }
            for key, value in values.items():
                group.create_dataset(key, data=value)
        for name, listed in (masks or {}).items():
            file.create_dataset(f"mask/{name}", data=np.array(listed, "S8"))
        if change is not None:
            change(data)
    return path


def run(source: Path, **options: Any):  # type: ignore[no-untyped-def]
    return ingest(IngestConfig("robomimic", source, source.parent / "store", codec="png", language="hashed", **options),
                  isolated=False)  # fmt: skip


def test_robosuites_usual_keys_are_recognized(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "raw/can.hdf5")
    summary = ingest(IngestConfig("cans", path, tmp_path / "store", codec="png", language="hashed"))  # in the child
    store = Store.open(tmp_path / "store")
    assert (summary.episodes, summary.quarantined, verify_store(tmp_path / "store")) == (3, 0, [])
    spec = store.spec
    assert (spec.camera_names, spec.control_hz) == (("agentview", "eye_in_hand"), 25)
    assert [(item.name, item.width, item.unit) for item in spec.robot_state] == [
        ("joint_pos", 7, "rad"), ("gripper_qpos", 2, "m"),
    ]  # fmt: skip
    assert spec.binary == (6,)
    world = gripped(make_world(0, steps=20))
    np.testing.assert_array_equal(store.frames["action"][:20], world.actions.astype(np.float32))
    np.testing.assert_array_equal(store.frames["robot_state"][:20, 7:], world.fingers[:20].astype(np.float32))
    np.testing.assert_array_equal(store.decode_segment(0)[0][:16], world.agentview[:16, ::-1])
    assert set(store.episode_columns["alignment"]) == {"before"}
    assert set(store.episode_columns["task"]) == {"PickPlaceCan"}
    assert set(store.episode_columns["instruction"]) == {"pick place can"}
    said = " ".join(summary.notes)
    for text in ("instruction taken from env_name: 'pick place can'", "robot0_eef_pos are not used", "OSC_POSE"):
        assert text in said
    assert "--alignment" not in said  # the joints in states show it


def test_an_instruction_of_the_file_is_taken_and_may_differ_by_demonstration(tmp_path: Path) -> None:
    def tell(data: h5py.Group) -> None:
        data["demo_1"].attrs["ep_meta"] = json.dumps({"lang": "pour the milk"})

    path = write_robomimic(tmp_path / "raw/can.hdf5", env={**ENV, "env_lang": "move the can"}, change=tell)
    summary = run(path)
    texts = Store.open(tmp_path / "raw/store").episode_columns["instruction"].tolist()
    assert texts == ["move the can", "pour the milk", "move the can"]
    assert "env_name" not in " ".join(summary.notes)


def test_masks_are_the_split_or_not(tmp_path: Path) -> None:
    masks = {"train": ["demo_0", "demo_2"], "valid": ["demo_1"], "20_percent": ["demo_0"]}
    path = write_robomimic(tmp_path / "raw/can.hdf5", masks=masks)
    run(path)
    columns = Store.open(tmp_path / "raw/store").episode_columns
    assert columns["split"].tolist() == ["train", "val", "train"]
    assert any("are not used (--masks ignore)" in note for note in run(path, masks="ignore").notes)
    write_robomimic(path, masks={"good": ["demo_0"]})
    with pytest.raises(UsageError, match=r"its masks are good \(1\); expected train and valid"):
        run(path)


SPEC = """
cameras: {front: agentview_image}
robot_state: {hand: {key: robot0_eef_pos, unit: m}}
action: [{name: arm, width: 6, kind: continuous}, {name: gripper, width: 1, kind: binary}]
control_hz: 10
instruction: can to the bin
"""


def test_a_spec_file_names_entries(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "raw/can.hdf5")
    (tmp_path / "spec.yaml").write_text(SPEC)
    fields = read_fields(tmp_path / "spec.yaml")
    assert isinstance(fields, Fields)
    assert Fields.from_dict(fields.to_dict()) == fields
    run(path, fields=fields)
    store = Store.open(tmp_path / "raw/store")
    assert (store.spec.camera_names, store.spec.state_names, store.spec.control_hz) == (
        ("front",), ("hand_0", "hand_1", "hand_2"), 10,
    )  # fmt: skip
    assert set(store.episode_columns["instruction"]) == {"can to the bin"}


def test_a_gripper_that_is_called_as_its_command_shows_which_command_closes(tmp_path: Path) -> None:
    def turn(data: h5py.Group) -> None:
        for demo in data.values():
            demo["actions"][:, 6] = -demo["actions"][:, 6]

    path = write_robomimic(tmp_path / "raw/can.hdf5", change=turn)
    state = "{joints: {key: robot0_joint_pos, unit: rad}, gripper: robot0_gripper_qpos}"
    (tmp_path / "spec.yaml").write_text(SPEC.replace("{hand: {key: robot0_eef_pos, unit: m}}", state))
    notes = " ".join(run(path, fields=read_fields(tmp_path / "spec.yaml")).notes)
    assert "gripper: -1 closes, +1 opens, as its fingers say; converted" in notes
    world = gripped(make_world(0, steps=20))
    np.testing.assert_array_equal(Store.open(tmp_path / "raw/store").frames["action"][:20, 6], world.actions[:, 6])


def without_fingers(data: h5py.Group) -> None:
    for demo in data.values():
        del demo["obs/robot0_gripper_qpos"]


def from_zero(data: h5py.Group) -> None:
    """As RLDS has it: 1 opens, 0 closes."""
    without_fingers(data)
    for demo in data.values():
        demo["actions"][:, 6] = (1 - demo["actions"][:, 6]) / 2


def test_a_gripper_that_no_fingers_show_is_told_or_assumed_and_said(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "raw/can.hdf5", change=without_fingers)
    world = gripped(make_world(0, steps=20))
    for told, sign, said in (
        ("detect", 1, "taken as -1 opens, +1 closes (--gripper high-opens says otherwise)"),
        ("high-opens", -1, "-1 closes, +1 opens, as --gripper high-opens say; converted"),
    ):
        notes = " ".join(run(path, gripper=told).notes)
        assert said in notes
        action = Store.open(tmp_path / "raw/store").frames["action"][:20, 6]
        np.testing.assert_array_equal(action, sign * world.actions[:, 6])
    write_robomimic(path, change=from_zero)
    with pytest.raises(SourceError, match=r"commands are 0 to 1, and the fingers do not show .* --gripper high-closes"):
        run(path)
    run(path, gripper="high-opens")
    action = Store.open(tmp_path / "raw/store").frames["action"][:20, 6]
    np.testing.assert_array_equal(action, world.actions[:, 6])


def second_arm(data: h5py.Group) -> None:
    for demo in data.values():
        both = np.concatenate([demo["actions"][:], demo["actions"][:]], axis=1)
        del demo["actions"]
        demo["actions"] = both


def test_several_grippers_stay_as_they_are_and_it_is_said(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "raw/two.hdf5", change=second_arm)
    assert "two.hdf5: gripper_0, gripper_1 taken as -1 opens, +1 closes" in " ".join(run(path).notes)
    with pytest.raises(SourceError, match=r"--gripper high-opens is of one gripper .* got the binary numbers gri"):
        run(path, gripper="high-opens")


def test_a_whole_obs_spec_is_a_spec_file_too(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "raw/can.hdf5")
    run(path)
    spec = Store.open(tmp_path / "raw/store").manifest.obs_spec
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    told = read_fields(tmp_path / "spec.yaml")
    assert isinstance(told, ObsSpec)
    run(path, spec=told)
    assert Store.open(tmp_path / "raw/store").manifest.obs_spec == spec


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cameras: {front: [1]}", r"cameras, front: expected a key of the file"),
        ("cameras: agentview", r"cameras: expected names in the store with their keys"),
        ("action: [{name: a, width: 1, kind: odd}]", r"action, a: expected kind continuous or binary, got 'odd'"),
        ("action: [{name: a, kind: binary}]", r"action: expected name, width, kind"),
        ("control_hz: -1", r"control_hz: expected a number above 0, got -1"),
        ("pictures: {}", r"expected some of cameras, robot_state, action, control_hz, instruction, got \['pictures'\]"),
        ("instruction: 3", r"instruction: expected text, got 3"),
        ("a: [", "not plain YAML"),
    ],
)
def test_a_spec_file_that_makes_no_sense_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(UsageError, match=reason) as error:
        read_fields(tmp_path / "spec.yaml")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "spec.yaml"))


def test_entries_named_for_libero_files_are_refused(tmp_path: Path) -> None:
    write_suite(tmp_path / "raw", 1, 1)
    config = IngestConfig("s", tmp_path / "raw", tmp_path / "store", language="hashed", fields=Fields(control_hz=10.0))
    with pytest.raises(UsageError, match="--spec: files of format libero say which entries are which"):
        ingest(config, isolated=False)


def delete(key: str) -> Callable[[h5py.Group], None]:
    return lambda data: data["demo_1"].__delitem__(key)


def put(key: str, value: Any) -> Callable[[h5py.Group], None]:
    def change(data: h5py.Group) -> None:
        del data[f"demo_1/{key}"]
        data[f"demo_1/{key}"] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (delete("actions"), r"can.hdf5/demo_1: key 'actions' is missing"),
        (delete("obs/agentview_image"), r"can.hdf5/demo_1: key 'obs/agentview_image' is missing"),
        (put("actions", np.full((21, 7), np.nan)), r"demo_1: key 'actions': expected finite numbers"),
        (put("actions", np.zeros((21, 8))), r"demo_1: key 'actions': expected float \[21, 7\], got float64 \[21, 8\]"),
        (put("obs/robot0_joint_pos", np.zeros((9, 7))), r"demo_1: key 'obs/robot0_joint_pos': expected float"),
        (lambda data: data["demo_1"].attrs.__setitem__("num_samples", 9), r"demo_1: num_samples 9, pictures of \[21\]"),
        (put("obs/agentview_image", np.zeros((21, 12, 12, 3), np.uint8)), r"demo_1.*images of .*the store has"),
    ],
)  # fmt: skip
def test_a_bad_demonstration_is_quarantined_by_name(
    tmp_path: Path, change: Callable[[h5py.Group], object], reason: str
) -> None:
    summary = run(write_robomimic(tmp_path / "raw/can.hdf5", change=change))
    assert (summary.episodes, summary.quarantined) == (2, 1)
    assert pytest.raises(AssertionError, match=reason).matches(AssertionError(summary.quarantine[0]["reason"]))


def test_a_file_without_pictures_says_what_renders_them(tmp_path: Path) -> None:
    def low(data: h5py.Group) -> None:
        for demo in data.values():
            del demo["obs/agentview_image"], demo["obs/robot0_eye_in_hand_image"]

    with pytest.raises(SourceError, match=r"expected pictures .* robomimic's dataset_states_to_obs.py"):
        run(write_robomimic(tmp_path / "raw/low_dim.hdf5", change=low))


def test_a_wrong_flag_is_refused_where_the_file_shows_otherwise(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "raw/can.hdf5")
    with pytest.raises(SourceError, match=r"alignment told 'after', but the joints in states show 'before'"):
        run(path, alignment="after")
    with pytest.raises(SourceError, match="gripper"):
        run(path, gripper="high-opens")


def of_the_hand(data: h5py.Group) -> None:
    """As many numbers, of another meaning: position and quaternion in place of seven joints."""
    for demo in data.values():
        del demo["obs/robot0_joint_pos"]
        demo["obs/robot0_eef_quat"] = np.tile([0.0, 0.0, 0.0, 1.0], (len(demo["actions"]), 1))


@pytest.mark.parametrize(
    ("change", "env", "field"),
    [(of_the_hand, ENV, "robot_state"), (None, {**ENV, "env_kwargs": {"control_freq": 50}}, "control_hz: 50")],
    ids=["state", "rate"],
)
def test_a_file_of_other_frames_is_not_mixed_in(tmp_path: Path, change: Any, env: dict[str, Any], field: str) -> None:
    write_robomimic(tmp_path / "raw/can.hdf5", demos=3)
    write_robomimic(tmp_path / "raw/other.hdf5", demos=2, change=change, env=env)
    summary = run(tmp_path / "raw")
    assert (summary.episodes, [row["file"] for row in summary.quarantine]) == (3, ["other.hdf5"])
    assert summary.quarantine[0]["reason"].startswith(f"other.hdf5: {field}")
    assert Store.open(tmp_path / "store").spec.state_names[0] == "joint_pos_0"


def test_env_args_that_are_no_json_are_one_line(tmp_path: Path) -> None:
    def spoil(data: h5py.Group) -> None:
        data.attrs["env_args"] = "{"

    with pytest.raises(SourceError, match=r"env_args: expected JSON"):
        run(write_robomimic(tmp_path / "raw/can.hdf5", change=spoil))


def test_files_are_told_from_liberos_by_what_is_in_them(tmp_path: Path) -> None:
    write_suite(tmp_path / "libero", 1, 1)
    mine = write_robomimic(tmp_path / "raw/can.hdf5", 1)
    names = ("libero", "robomimic")
    assert recognize([mine], names) == "robomimic"
    (libero,) = (tmp_path / "libero").iterdir()
    assert recognize([libero], names) == "libero"
    with h5py.File(libero, "r+") as file:  # as LIBERO's own files have it; and damaged
        file["data"].attrs["env_args"] = json.dumps(ENV)
        del file["data/demo_0/obs/agentview_rgb"]
    assert recognize([libero], names) == "libero"


def test_files_of_other_names_are_not_taken_for_liberos(tmp_path: Path) -> None:
    """A dataset of an own robot: no name is robosuite's, and nothing is LIBERO's."""

    def rename(data: h5py.Group) -> None:
        for demo in data.values():
            obs = demo["obs"]
            obs.move("agentview_image", "front_rgb")
            obs.move("robot0_eef_pos", "ee_pos")
            for key in ("robot0_eye_in_hand_image", "robot0_joint_pos", "robot0_gripper_qpos"):
                del obs[key]

    path = write_robomimic(tmp_path / "raw/own.hdf5", 2, change=rename)
    config = IngestConfig("mine", path, tmp_path / "store", codec="png", language="hashed")
    with pytest.raises(SourceError, match=r"expected robot0_joint_pos or robot0_eef_pos, got .*; say it by --spec"):
        ingest(config, isolated=False)
    fields = Fields.from_dict({"cameras": {"front": "front_rgb"}, "robot_state": {"hand": "ee_pos"}})
    assert ingest(replace(config, fields=fields), isolated=False).episodes == 2
    with h5py.File(path, "r+") as file:  # nor where the file does not say of which environment it is
        del file["data"].attrs["env_args"]
    told = replace(fields, control_hz=20.0, instruction="lift the cube")
    assert ingest(replace(config, fields=told, out=tmp_path / "other"), isolated=False).episodes == 2


def test_a_file_without_observations_is_told_how_to_render_them(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "raw/demo.hdf5", 2, change=lambda data: [data[name].pop("obs") for name in data])
    config = IngestConfig("mine", path, tmp_path / "store", language="hashed")
    with pytest.raises(SourceError, match=r"dataset_states_to_obs\.py"):
        ingest(config, isolated=False)


def test_the_command_ends_with_the_right_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_robomimic(tmp_path / "raw/can.hdf5", change=delete("actions"))
    (tmp_path / "spec.yaml").write_text("cameras: 3")
    for more, status in (([], 3), (["--spec", str(tmp_path / "spec.yaml")], 2)):
        command = ["statevla", "ingest", "robomimic", "--source", str(path), "--out", str(tmp_path / "s"), *more]
        monkeypatch.setattr("sys.argv", [*command, "--language", "hashed"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == status
    assert "Traceback" not in capsys.readouterr().err
