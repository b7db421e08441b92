"""Tasks, instructions and initial states are read from files, and nothing in the files is executed."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statevla.sims.libero import paths, suites
from statevla.sims.libero.errors import SimulatorMissing, SimulatorVersion, UnknownTask


def save(file: Path, value: object) -> Path:
    """As torch.save stores an array: protocol-2 pickle in a zip."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, 2))
    return file


@given(st.integers(1, 70), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_an_array_is_read_without_unpickling(rows: int, columns: int, seed: int) -> None:
    array = np.random.default_rng(seed).normal(size=(rows, columns))
    # Old NumPy wrote its module as numpy.core, which is what LIBERO's files say.
    content = pickle.dumps(array, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    np.testing.assert_array_equal(suites._array_of_pickle(content), array)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("code from a file was executed",))


@pytest.mark.parametrize(
    "value", [Evil(), {"a": 1}, np.zeros(3), np.zeros((2, 2), np.float32), [np.zeros((2, 2)), Evil()]]
)
def test_anything_else_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(SimulatorMissing, match="no LIBERO initial states"):
        suites.read_init_states(save(tmp_path / "x.pruned_init", value))


@pytest.mark.parametrize("content", [b"", b"PK not a zip"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.pruned_init"
    file.write_bytes(content)
    with pytest.raises(SimulatorMissing, match=r"x\.pruned_init"):
        suites.read_init_states(file)
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    file.write_bytes(buffer.getvalue())
    with pytest.raises(SimulatorMissing):
        suites.read_init_states(file)


def test_the_instruction_is_read_as_the_simulator_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "t.bddl"
    file.write_text("(define (problem P)\n  (:domain robosuite)\n  (:language  Pick the\n   Milk )\n (:regions))")
    assert suites.read_instruction(file) == "pick the milk"


def test_the_ground_is_no_fixture(tmp_path: Path) -> None:
    def fixtures(said: str) -> tuple[str, ...]:
        file = tmp_path / "t.bddl"
        file.write_text(f"(define (problem P)\n {said}\n (:objects milk_1 - milk)\n)")
        return suites.fixtures(suites.Task("s", 0, "t", "do", file, tmp_path))

    assert fixtures("(:fixtures\n    floor - floor\n  )") == ()
    assert fixtures("(:fixtures\n    kitchen_table - kitchen_table\n  )") == ()
    mixed = "(:fixtures\n main_table - table\n a_1 a_2 - stove\n flat_stove_1 - flat_stove\n)"
    assert fixtures(mixed) == ("a_1", "a_2", "flat_stove_1")
    assert fixtures("") == ()
    with pytest.raises(SimulatorMissing, match=r"u\.bddl"):
        suites.fixtures(suites.Task("s", 0, "u", "do", tmp_path / "u.bddl", tmp_path))


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(UnknownTask, match="Did you mean 'libero_object'"):
        suites.check_suite("libero_objects")


def test_task_numbers_are_ranges() -> None:
    assert suites.parse_indices("0-2, 5") == [0, 1, 2, 5]
    for text in ("a", "3-1", "0,3-1"):  # one that counts down would be no task, or fewer than were named
        with pytest.raises(UnknownTask, match="0-2,5"):
            suites.parse_indices(text)


def test_no_task_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "tasks", lambda _: ("first", "second"))
    with pytest.raises(UnknownTask, match=r"tasks 0-1, each to be named once; got \[\]"):
        suites.select("libero_object", [])


@pytest.mark.parametrize(("version", "ok"), [("2.3.7", True), ("3.3.2", True), ("3.3.3", False), ("3.10.0", False)])
def test_mujoco_is_guarded(monkeypatch: pytest.MonkeyPatch, version: str, ok: bool) -> None:
    monkeypatch.delenv(paths.FORCE_MUJOCO, raising=False)
    if ok:
        assert paths.check_mujoco(version) == version
        return
    with pytest.raises(SimulatorVersion, match=r"darker.*pip install mujoco==3\.3\.2"):
        paths.check_mujoco(version)
    monkeypatch.setenv(paths.FORCE_MUJOCO, "1")
    assert paths.check_mujoco(version) == version
