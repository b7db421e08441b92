"""Everything in a source's folder is read, quarantined or named (a dangling link stops the run)."""

from pathlib import Path

import h5py
import pytest

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from pipelines.ingest.entries import other_entries
from stores.disk.durable import temp_name
from stores.errors import SourceTrouble
from stores.reader import Store
from tests.pipelines.make_hdf5 import demo_arrays, make_world, write_file
from tests.stores.faults import read_tree


def test_every_entry_is_read_quarantined_or_named(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for number, name in enumerate(["one_demo.hdf5", "two_demo.h5", "three_demo.HDF5", "one_demo.h5", "deep/six.hdf5"]):
        write_file(source / name, {"demo_0": demo_arrays(make_world(number))}, f"task {number}")
    write_file(source / "renamed.bak", {"demo_0": demo_arrays(make_world(9))})
    (source / "linked_demo.h5").symlink_to(source / "deep/six.hdf5")
    (source / "notes.txt").write_text("read me")
    (source / ".hidden.hdf5").write_text("")
    (source / "folder.hdf5").mkdir()
    (source / "broken_demo.hdf5").write_text("not what its name says")
    summary = ingest(IngestConfig("x", source, tmp_path / "out", language="hashed"), isolated=False)
    store = Store.open(tmp_path / "out")
    assert sorted(store.episode_columns["id"]) == sorted(
        f"{name}/demo_0" for name in ("linked_demo.h5", "one_demo", "one_demo.h5", "three_demo.HDF5", "two_demo.h5")
    )
    refused = {row["file"]: row["reason"] for row in summary.quarantine}
    assert set(refused) == {"broken_demo.hdf5"}
    assert "expected an HDF5 file" in refused["broken_demo.hdf5"]
    told = "\n".join(summary.notes)
    for name in ("deep/: sub-folder with 1 files", "folder.hdf5/", "renamed.bak: HDF5", "notes.txt", ".hidden.hdf5"):
        assert name in told


@pytest.mark.parametrize(
    ("pointer", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer .*git lfs pull"),
        ("/annex/objects/SHA256E-s1--00.hdf5\n", "a git-annex pointer .*git annex get"),
    ],
)
def test_a_pointer_in_a_files_place_stops_the_run_and_changes_nothing(tmp_path: Path, pointer: str, said: str) -> None:
    """Its content was not fetched, which is no fault of it: a store that has it keeps it."""
    source = tmp_path / "in"
    for number in range(2):
        write_file(source / f"{number}_demo.hdf5", {"demo_0": demo_arrays(make_world(number))})
    config = IngestConfig("x", source, tmp_path / "out", language="hashed")
    ingest(config, isolated=False)
    before = read_tree(tmp_path / "out")
    (source / "1_demo.hdf5").write_text(pointer)
    with pytest.raises(SourceTrouble, match=f"1_demo.hdf5: {said}.*Nothing was changed"):
        ingest(config, isolated=False)
    assert read_tree(tmp_path / "out") == before


def test_a_hidden_file_is_called_hidden_and_what_a_killed_writer_left_is_called_that(tmp_path: Path) -> None:
    used = write_file(tmp_path / "one_demo.hdf5", {"demo_0": demo_arrays(make_world(0))})
    left = temp_name(used)
    for path in (left, tmp_path / ".kept.hdf5", tmp_path / "other.bak"):
        path.write_bytes(used.read_bytes())
    (tmp_path / temp_name(tmp_path / "folder").name).mkdir()
    refused, notes = other_entries(tmp_path, [used], (".hdf5", ".h5"))
    assert refused == []
    told = {name: rest for name, _, rest in (note.partition(": ") for note in notes)}
    assert told.pop(".kept.hdf5") == "hidden, not read: its name begins with a dot"
    assert told.pop("other.bak").endswith("its name does not end in .hdf5 or .h5; rename it")
    assert left.name in told
    assert len(told) == 2
    assert all("left by an interrupted writer" in rest and "rename" not in rest for rest in told.values())


def test_the_same_name_with_two_suffixes_is_two_files_of_one_task(tmp_path: Path) -> None:
    for number, name in enumerate(["one_demo.hdf5", "one_demo.h5"]):
        write_file(tmp_path / "in" / name, {"demo_0": demo_arrays(make_world(number))})
    ingest(IngestConfig("x", tmp_path / "in", tmp_path / "out", language="hashed"), isolated=False)
    assert set(Store.open(tmp_path / "out").episode_columns["task"]) == {"one"}


def test_a_single_file_has_no_other_entries(tmp_path: Path) -> None:
    path = write_file(tmp_path / "one_demo.hdf5", {"demo_0": demo_arrays(make_world(0))})
    (tmp_path / "other.txt").write_text("")
    assert other_entries(path, [path], (".hdf5",)) == ([], [])


def test_num_demos_that_disagrees_is_a_note(tmp_path: Path) -> None:
    path = write_file(tmp_path / "in/one_demo.hdf5", {f"demo_{n}": demo_arrays(make_world(n)) for n in range(3)})
    with h5py.File(path, "r+") as file:
        file["data"].attrs["num_demos"] = 7
    summary = ingest(IngestConfig("x", tmp_path / "in", tmp_path / "out", language="hashed"), isolated=False)
    assert (summary.episodes, summary.quarantined) == (3, 0)
    assert any("num_demos declares 7, the file holds 3" in note for note in summary.notes)
