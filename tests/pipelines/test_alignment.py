"""Joint addresses from the model, and telling 'after' from 'before' by them."""

from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sources.alignment import arm_positions, detect_alignment, fit_columns, fit_joints, joint_layout
from stores.errors import SourceError
from tests.pipelines.make_hdf5 import ARM_AT, MODEL_XML, NQ, NV, make_world


def test_addresses_follow_bodies_depth_first() -> None:
    layout = joint_layout(MODEL_XML)
    assert layout.address["mug_joint"] == 0
    assert layout.address["lid_joint"] == 7
    assert [layout.address[f"robot0_joint{n}"] for n in range(1, 8)] == list(range(ARM_AT, ARM_AT + 7))
    assert (layout.nq, layout.nv) == (NQ, NV)


JOINTS = st.lists(st.sampled_from(["free", "ball", "slide", "hinge"]), max_size=2)


@given(st.recursive(JOINTS, lambda inner: st.lists(inner, max_size=3), max_leaves=12))
def test_addresses_of_any_tree(tree: list[Any]) -> None:
    """Against a recursive walk: a body is a list of joints (text) and child bodies (lists)."""
    sizes = {"free": 7, "ball": 4, "slide": 1, "hinge": 1}
    expected: list[int] = []

    def build(body: list[Any], element: ElementTree.Element) -> None:
        for joint in (part for part in body if isinstance(part, str)):
            name = f"j{len(expected)}"
            expected.append(sum(sizes[kind] for kind in kinds))
            kinds.append(joint)
            ElementTree.SubElement(element, "joint", name=name, type=joint)
        for child in (part for part in body if isinstance(part, list)):
            build(child, ElementTree.SubElement(element, "body"))

    kinds: list[str] = []
    root = ElementTree.Element("mujoco")
    build([tree], ElementTree.SubElement(root, "worldbody"))
    layout = joint_layout(ElementTree.tostring(root, encoding="unicode"))
    assert [layout.address[f"j{n}"] for n in range(len(expected))] == expected
    assert layout.nq == sum(sizes[kind] for kind in kinds)


def test_both_alignments_are_told_apart() -> None:
    joints = make_world(3, steps=30).joints
    noise = np.random.default_rng(0).normal(0, 5e-4, (30, 7))
    assert detect_alignment(fit_joints(joints[:30], joints[:30] + noise)) == "before"
    assert detect_alignment(fit_joints(joints[:30], joints[1:31] + noise)) == "after"


@pytest.mark.parametrize("case", ["still", "unrelated", "halfway", "nan"])
def test_what_cannot_be_told_is_refused(case: str) -> None:
    joints = make_world(3, steps=30).joints
    simulated = joints[:30]
    observed = {
        "still": simulated,
        "unrelated": joints[:30][::-1] + 1,
        "halfway": (joints[:30] + joints[1:31]) / 2,
        "nan": np.full((30, 7), np.nan),
    }[case]
    if case == "still":
        simulated = observed = np.zeros((30, 7)) + 1e-6 * np.arange(30)[:, None]
    with pytest.raises(SourceError, match="alignment"):
        detect_alignment(fit_joints(simulated, observed))


def test_states_that_do_not_fit_the_model_are_refused() -> None:
    layout = joint_layout(MODEL_XML)
    with pytest.raises(SourceError, match=rf"\[T, {1 + NQ + NV}\]"):
        arm_positions(np.zeros((5, 40)), layout)
    with pytest.raises(SourceError, match="robot0_joint7"):
        arm_positions(np.zeros((5, 40)), joint_layout(MODEL_XML.replace("robot0_joint7", "elbow")))


@pytest.mark.parametrize("xml", ["", "<mujoco/>", "<a", '<!DOCTYPE x [<!ENTITY a "b">]><mujoco/>'])
def test_models_that_are_none_are_refused(xml: str) -> None:
    with pytest.raises(SourceError, match="model_file"):
        joint_layout(xml)


def states_around(joints: np.ndarray, at: int, width: int = 60) -> np.ndarray:
    """Simulator states with the joints at column `at` and other numbers around them."""
    rows = np.random.default_rng(2).normal(size=(len(joints), width))
    rows[:, at : at + 7] = joints
    return rows


@pytest.mark.parametrize("at", [0, 1, 23, 53])
def test_without_a_model_the_columns_that_follow_the_joints_tell(at: int) -> None:
    joints = make_world(4, steps=30).joints
    noise = np.random.default_rng(0).normal(0, 4e-4, (30, 7))
    states = states_around(joints[:30], at)
    assert detect_alignment(fit_columns(states, joints[:30] + noise)) == "before"
    assert detect_alignment(fit_columns(states, joints[1:31] + noise)) == "after"


def test_without_a_model_columns_that_fit_both_readings_or_none_do_not_tell() -> None:
    joints = make_world(4, steps=31).joints
    observed = joints[1:31]
    both = np.concatenate([states_around(joints[1:31], 3), states_around(joints[:30], 9)], axis=1)
    for states in (both, np.random.default_rng(3).normal(size=(30, 60)), np.zeros((30, 5))):
        with pytest.raises(SourceError, match="cannot tell"):
            detect_alignment(fit_columns(states, observed))
