"""ObsSpec: JSON and YAML round trips, what makes no sense, and what two that differ say."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from statevla.observation import read_spec
from stores.errors import ObsSpecMismatch, UsageError
from stores.spec import BINARY, CONTINUOUS, LIBERO, ActionField, Camera, ObsSpec, StateField, libero_spec


def test_libero_is_as_documented() -> None:
    assert LIBERO.camera_names == ("agentview", "eye_in_hand")
    assert (LIBERO.robot_state_dim, LIBERO.action_dim, LIBERO.language_width, LIBERO.control_hz) == (9, 7, 512, 20)
    assert LIBERO.action_names == ("x", "y", "z", "rx", "ry", "rz", "gripper")
    assert (LIBERO.continuous, LIBERO.binary) == ((0, 1, 2, 3, 4, 5), (6,))
    assert LIBERO.slice_of("rotation") == slice(3, 6)
    assert LIBERO.slice_of("gripper_qpos") == slice(7, 9)
    assert LIBERO.state_names[6:] == ("joint_pos_6", "gripper_qpos_0", "gripper_qpos_1")
    assert libero_spec(64).image_sizes == ((64, 64), (64, 64))
    with pytest.raises(UsageError, match="no field 'lift'"):
        LIBERO.slice_of("lift")


def test_a_name_that_action_and_robot_state_share_is_found_in_either() -> None:
    grippers = (StateField("joints", 7, "rad"), StateField("gripper", 2, "m"))
    spec = dataclasses.replace(LIBERO, robot_state=grippers)
    assert (spec.slice_of("gripper"), spec.state_slice_of("gripper")) == (slice(6, 7), slice(7, 9))
    assert spec.slice_of("joints") == spec.state_slice_of("joints") == slice(0, 7)
    with pytest.raises(UsageError, match="no field 'rotation'"):
        spec.state_slice_of("rotation")


def test_it_comes_back_from_json_and_yaml(tmp_path: Path) -> None:
    assert ObsSpec.from_dict(LIBERO.to_dict()) == LIBERO
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**LIBERO.to_dict(), "control_hz": 20.0}))
    assert read_spec(path) == LIBERO
    assert read_spec(path).to_dict() == LIBERO.to_dict()  # 20 and 20.0 are one identity


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cameras": ()}, "cameras: expected one or more"),
        ({"cameras": (Camera("a", 8, 8), Camera("a", 8, 8))}, "cameras: expected one or more distinct"),
        ({"cameras": (Camera("a b", 8, 8),)}, "letters, digits"),
        ({"cameras": (Camera("a", 0, 8),)}, "camera a: expected sides"),
        ({"robot_state": (StateField("q", 0, "rad"),)}, "q: expected a width"),
        ({"action": (ActionField("a", 1, "ternary", ""),)}, "kind 'ternary'"),
        ({"action": (ActionField("a", 2, CONTINUOUS, "", ("x",)),)}, "2 wide, but 1 dims"),
        ({"action": (ActionField("a", 1, BINARY, "", ("x",)), ActionField("x", 1, BINARY, ""))}, "distinct names of"),
        ({"control_hz": 0}, "control_hz"),
        ({"language_width": 0}, "language_width"),
        ({"orientation": "sideways"}, "orientation"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        dataclasses.replace(LIBERO, **change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fps": 20}, "expected fields .*control_hz"),
        ({"cameras": 3}, "cameras: expected list"),
        ({"cameras": [{"name": "a", "height": 8}]}, r"cameras\[0\]: expected fields"),
        ({"cameras": [{"name": "a", "height": "8", "width": 8}]}, r"cameras\[0\], height: expected int, got '8'"),
        ({"control_hz": True}, "control_hz: expected number"),
    ],
)
def test_a_file_that_is_none_names_file_and_field(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**LIBERO.to_dict(), **change}))
    with pytest.raises(UsageError, match=rf"spec\.yaml.*{said}"):
        read_spec(path)
    with pytest.raises(UsageError, match="no such obs spec"):
        read_spec(tmp_path / "absent.yaml")
    path.write_text("{unclosed")
    with pytest.raises(UsageError, match="not plain YAML"):
        read_spec(path)


def test_two_that_differ_refuse_each_other_by_field() -> None:
    LIBERO.require_same(libero_spec(128), "policy", "simulator")
    with pytest.raises(ObsSpecMismatch, match=r"'orientation': policy has 'upright', simulator has 'opengl'"):
        LIBERO.require_same(dataclasses.replace(LIBERO, orientation="opengl"), "policy", "simulator")
    with pytest.raises(ObsSpecMismatch, match=r"'cameras\[0\].height': policy has 128, store has 64"):
        LIBERO.require_same(libero_spec(64), "policy", "store")
    fewer = dataclasses.replace(LIBERO, cameras=LIBERO.cameras[:1])
    with pytest.raises(ObsSpecMismatch, match="'cameras'"):
        LIBERO.require_same(fewer, "policy", "store")
