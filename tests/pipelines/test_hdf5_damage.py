"""What HDF5 says of damage once, what lies behind a user block, and masks whose names cannot be trusted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.sources import hdf5
from pipelines.sources.libero_demo import read_demo
from pipelines.sources.libero_header import inspect_file
from stores.errors import SourceError
from tests.pipelines.make_hdf5 import demo_arrays, make_world, write_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_file(tmp_path / "t_demo.hdf5", {f"demo_{n}": demo_arrays(make_world(n)) for n in range(2)}, "do it")


@pytest.mark.parametrize("key", ["demo_1/obs/joint_states", "demo_1/obs/nothing"])
def test_damage_that_hdf5_tells_once_is_told(path: Path, key: str) -> None:
    """The free places among a group's names are checked when the names are first read, and not when asked again."""
    with h5py.File(path, "r+") as file:
        for name in ("ee_ori", "ee_pos", "ee_states"):  # so many that the names move away from their heap's header
            file[f"data/demo_1/obs/{name}"] = np.zeros(3)
    content = bytearray(path.read_bytes())
    names = content.rfind(b"agentview_rgb\0") - 8  # the first of them
    heap = content.find(names.to_bytes(8, "little")) - 24
    assert content[heap : heap + 4] == b"HEAP"
    free = names + int.from_bytes(content[heap + 16 : heap + 24], "little")
    content[free : free + 8] = (2**40).to_bytes(8, "little")
    path.write_bytes(content)
    with (
        hdf5.open_hdf5(path) as file,
        pytest.raises(SourceError, match=r"t_demo.hdf5: HDF5 cannot read this: .*bad heap free list"),
        hdf5.reporting("t_demo.hdf5"),
    ):
        hdf5.child(file, f"data/{key}")


@pytest.mark.parametrize("key", ["demo_0/actions/x", "demo_0/nothing/x", "demo_0/obs/x"])
def test_what_is_not_there_is_missing(path: Path, key: str) -> None:
    with hdf5.open_hdf5(path) as file, pytest.raises(hdf5.Missing, match=f"key 'data/{key}' is missing"):
        hdf5.child(file, f"data/{key}")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("before", [512, 4096])
def test_a_sound_file_behind_a_user_block_is_read(path: Path, tmp_path: Path, before: int, libver: str) -> None:
    """HDF5 counts addresses of objects from behind the block, and those of data from the file's beginning."""
    moved = tmp_path / "moved_demo.hdf5"
    with h5py.File(path) as old, h5py.File(moved, "w", userblock_size=before, libver=libver) as new:
        old.copy("data", new)
    header = inspect_file(moved)
    assert (tuple(header.episodes), header.refused) == (("demo_0", "demo_1"), ())
    with hdf5.open_hdf5(moved) as file:
        read_demo(file, "demo_0", "opengl")


def test_data_moved_onto_a_header_behind_a_user_block_is_found(path: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved_demo.hdf5"
    with h5py.File(path) as old, h5py.File(moved, "w", userblock_size=4096) as new:
        old.copy("data", new)
        data = new["data/demo_0/actions"].id.get_offset() - 4096  # as the file has it
        header = h5py.h5o.get_info(new["data/demo_1/states"].id).addr
    content = bytearray(moved.read_bytes())
    at = content.rfind(data.to_bytes(8, "little") + (40 * 7 * 8).to_bytes(8, "little"))
    content[at : at + 8] = header.to_bytes(8, "little")
    moved.write_bytes(content)
    with h5py.File(moved) as file:
        assert file["data/demo_0/actions"].id.get_offset() == header + 4096
    assert {demo for demo, _ in inspect_file(moved).refused} == {"demo_0", "demo_1"}


def elsewhere(file: h5py.File, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"demo_1\0\0")
    file.create_dataset("mask/valid", (1,), "S8", external=[(str(tmp_path / "secret"), 0, 8)])


def virtual(file: h5py.File, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["names"] = np.array(["demo_1"], "S8")
    layout = h5py.VirtualLayout((1,), "S8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "names", (1,))
    file.create_virtual_dataset("mask/valid", layout)


def unwritten(file: h5py.File, _: Path) -> None:
    file.create_dataset("mask/valid", (2,), "S8", chunks=(1,))[:1] = np.array(["demo_1"], "S8")


MASKS: dict[str, tuple[Callable[[h5py.File, Path], None], str]] = {
    "in another file": (elsewhere, "its data lies in other files"),
    "virtual": (virtual, "its data lies in other files"),
    "half written": (unwritten, "2 chunks declared, 1 written"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_read_from_the_file_and_whole_or_not_at_all(path: Path, tmp_path: Path, kind: str) -> None:
    make, reason = MASKS[kind]
    with h5py.File(path, "r+") as file:
        file["mask/train"] = np.array(["demo_0"], "S8")
        make(file, tmp_path)
    with pytest.raises(SourceError, match=f"t_demo.hdf5: key 'mask/valid': {reason}"):
        inspect_file(path)


@pytest.mark.parametrize("kind", ["S8", h5py.string_dtype()], ids=["fixed", "any-length"])
def test_sound_masks_are_the_split(path: Path, kind: Any) -> None:
    with h5py.File(path, "r+") as file:
        for name, demo in (("train", "demo_0"), ("valid", "demo_1")):
            file.create_dataset(f"mask/{name}", data=np.array([demo], dtype=kind))
    assert inspect_file(path).parts == {"demo_0": "train", "demo_1": "val"}


def test_a_mask_moved_onto_another_is_refused(path: Path) -> None:
    """Its names are those of another list: what was held out would be trained on."""
    with h5py.File(path, "r+") as file:
        for name, demos in (("train", ["demo_0"]), ("valid", ["demo_1"]), ("good", ["demo_0"])):
            file[f"mask/{name}"] = np.array(demos, "S8")
        there, other = (file[f"mask/{name}"].id.get_offset().to_bytes(8, "little") for name in ("valid", "good"))
    content = path.read_bytes()
    assert content.count(there) == 1
    path.write_bytes(content.replace(there, other))
    with pytest.raises(SourceError, match=r"t_demo.hdf5: /mask/good: something of it lies where other data"):
        inspect_file(path)


def read_first(path: Path) -> None:
    with h5py.File(path) as file:
        read_demo(file, "demo_0", "opengl")


@pytest.mark.parametrize(
    ("owner", "name", "read"),
    [
        *(("data", name, inspect_file) for name in ("problem_info", "macros_image_convention", "num_demos")),
        *(("data/demo_0", name, read_first) for name in ("num_samples", "model_file", "init_state")),
    ],
)
def test_an_attribute_whose_name_is_one_letter_off_is_damage(
    path: Path, owner: str, name: str, read: Callable[[Path], Any]
) -> None:
    with h5py.File(path, "r+") as file:
        attributes = file[owner].attrs
        attributes[f"{name[:-1]}!"] = attributes.get(name, 1)
        attributes.pop(name, None)
    with pytest.raises(SourceError, match=f"attribute '{name}': there is '{name[:-1]}!' in its place"):
        read(path)


def test_as_many_rows_as_there_are_from_a_later_one_are_not_the_first(path: Path) -> None:
    with h5py.File(path) as file:
        rows = hdf5.child(file, "data/demo_0/actions")
        assert isinstance(rows, hdf5.Rows)
        with pytest.raises((SourceError, ValueError, OSError)):
            hdf5.read_rows(rows, 1, rows.shape[0] + 1)
