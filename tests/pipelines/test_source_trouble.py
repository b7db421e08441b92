"""Absent is not unreadable, and trouble around a file is not damage in it. Also: what a hostile file may cost."""

import errno
import json
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.ingest.config import IngestConfig, plan_ingest
from pipelines.ingest.driver import IngestSummary, ingest
from pipelines.ingest.unit import UnitTask
from pipelines.sources import hdf5
from pipelines.sources.libero_demo import read_demo
from pipelines.sources.libero_header import inspect_file
from pipelines.sources.reading import make_here
from stores.errors import SourceError, SourceTrouble
from stores.verify import verify_store
from tests.pipelines.make_hdf5 import demo_arrays, make_world, write_file, write_suite


def run(source: Path, out: Path, **options: Any) -> IngestSummary:
    summary = ingest(IngestConfig("toy", source, out, language="hashed"), isolated=False, **options)
    assert isinstance(summary, IngestSummary)
    return summary


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_file(tmp_path / "source/t_demo.hdf5", {"demo_0": demo_arrays(make_world())}, "do it")


# Damage is not absence.


@pytest.mark.parametrize(
    ("group", "name"),
    [("data", "problem_info"), ("data", "macros_image_convention"), ("data", "num_demos"),
     ("data/demo_0", "num_samples"), ("data/demo_0", "model_file")],
)  # fmt: skip
def test_an_attribute_that_is_there_and_cannot_be_read_is_refused(
    path: Path, group: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(path, "r+") as file:
        file["data"].attrs["macros_image_convention"] = "opengl"
        file["data"].attrs["num_demos"] = 1
        file["data/demo_0"].attrs["num_samples"] = 40
        assert name in file[group].attrs
    read = h5py.AttributeManager.__getitem__

    def damaged(self: Any, key: str) -> Any:
        if key == name:
            raise KeyError("Unable to synchronously open attribute (bad version number)")  # as h5py does
        return read(self, key)

    monkeypatch.setattr(h5py.AttributeManager, "__getitem__", damaged)
    with pytest.raises(SourceError, match=f"attribute '{name}'.* cannot be read"):  # noqa: PT012
        inspect_file(path)
        with hdf5.open_hdf5(path) as file:
            read_demo(file, "demo_0", "opengl", "after")


def test_a_damaged_name_among_the_attributes_is_no_absence(path: Path) -> None:
    """The list of attributes has one that cannot be opened; whether it was ours, nobody knows."""
    content = bytearray(path.read_bytes())
    at = content.find(b"problem_info\0")
    content[at : at + 4] = b"\xff\xfe\xff\xfe"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="problem_info"):
        inspect_file(path)


def test_states_that_cannot_be_read_are_no_reason_to_believe_the_flag(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        states = file["data/demo_0/states"][()]
        states[3, 3] = np.nan
        file["data/demo_0/states"][...] = states
    with hdf5.open_hdf5(path) as file, pytest.raises(SourceError, match="states"):
        read_demo(file, "demo_0", "opengl", "after")
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/states"]
    with hdf5.open_hdf5(path) as file:
        assert read_demo(file, "demo_0", "opengl", "after").alignment == "after"


# Trouble is not damage.


def test_a_dangling_link_stops_the_run_and_says_where_it_leads(path: Path, tmp_path: Path) -> None:
    run(path.parent, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    (path.parent / "b_demo.hdf5").symlink_to("../.git/annex/objects/b.hdf5")
    (path.parent / "c_demo.hdf5").symlink_to("/cache/c.hdf5")
    every = r"b_demo.hdf5.*leads to ../.git/annex/objects/b.hdf5; .*c_demo.hdf5.*leads to /cache/c.hdf5.*git annex get"
    with pytest.raises(SourceTrouble, match=every):
        run(path.parent, tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    assert verify_store(tmp_path / "out") == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.EAGAIN])
def test_what_the_system_refuses_is_no_quarantine(
    path: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, f"Unable to open file (errno = {number}, error message = '{os.strerror(number)}')")

    run(path.parent, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(h5py, "File", refuse)
        with pytest.raises(SourceTrouble, match=rf"t_demo.hdf5.*{os.strerror(number)}.*Nothing was quarantined"):
            run(path.parent, tmp_path / "out")
    assert verify_store(tmp_path / "out") == []
    assert not run(path.parent, tmp_path / "out").changed


def test_too_little_memory_is_trouble_and_too_much_asked_for_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="HDF5 cannot read this"), hdf5.reporting("x"):
        raise MemoryError
    monkeypatch.setattr(hdf5, "MEMORY_PROBE", 1 << 60)
    with pytest.raises(SourceTrouble, match="too little memory"), hdf5.reporting("x"):
        raise MemoryError


def test_a_source_replaced_after_planning_is_not_read_with_the_old_header(path: Path, tmp_path: Path) -> None:
    config = IngestConfig("toy", path.parent, tmp_path / "out", language="hashed")
    plan = plan_ingest(config, isolated=False)
    unit = plan.units[0]
    task = UnitTask(unit, str(path.parent), str(config.out), plan.settings(unit, config), "0" * 12, "")
    make_here(task)
    write_file(path, {"demo_0": demo_arrays(make_world(7))}, "another instruction")
    with pytest.raises(SourceTrouble, match=r"replaced while it was read.*do it.*another instruction"):
        make_here(task)


# What a hostile file may cost.


def test_bad_names_cost_their_file_or_demonstration_only(tmp_path: Path) -> None:
    source = write_suite(tmp_path / "source", tasks=1, demos=1)
    write_file(source / f"{'x' * 200}.hdf5", {"demo_0": demo_arrays(make_world(3))})
    write_file(source / os.fsdecode(b"b\xff.hdf5"), {"demo_0": demo_arrays(make_world(4))})
    write_file(source / "n_demo.hdf5", {n: demo_arrays(make_world(5)) for n in ("demo_0", "d" * 200)}, "named")
    summary = run(source, tmp_path / "out")
    assert summary.episodes == 2
    assert [("UTF-8" in row["reason"], "bytes in a shard" in row["reason"]) for row in summary.quarantine] == [
        (True, False), (False, True), (False, True),
    ]  # fmt: skip
    assert verify_store(tmp_path / "out") == []
    assert not run(source, tmp_path / "out").changed


def test_data_moved_onto_bytes_that_nobody_reads_is_found(tmp_path: Path) -> None:
    """The array's address is off by 8 bytes: it ends in another dataset, which ingest never opens."""
    arrays = demo_arrays(make_world())
    path = write_file(tmp_path / "t_demo.hdf5", {"demo_0": arrays, "demo_1": demo_arrays(make_world(1))})
    with h5py.File(path, "r+") as file:
        extra = file["data/demo_0"].create_dataset("obs/ee_pos", data=np.zeros((40, 3)))
        file.flush()
        victim = file["data/demo_0/obs/gripper_states"].id
        place, size = victim.get_offset(), victim.get_storage_size()
        other = extra.id.get_offset()
    content = path.read_bytes()
    field = place.to_bytes(8, "little") + size.to_bytes(8, "little")
    assert content.count(field) == 1
    path.write_bytes(content.replace(field, (other - 8).to_bytes(8, "little") + field[8:]))
    header = inspect_file(path)
    assert tuple(header.episodes) == ("demo_1",)
    assert "lies where other data of the file do" in dict(header.refused)["demo_0"]


@pytest.mark.parametrize("more", [1, 200 * 2**20])
@pytest.mark.parametrize("checked", [False, True], ids=["plain", "fletcher32"])
def test_a_chunk_that_inflates_beyond_what_it_declares_is_refused(tmp_path: Path, more: int, checked: bool) -> None:
    shape = (16, 8, 8, 3)
    with h5py.File(tmp_path / "t.hdf5", "w") as file:
        data = file.create_dataset("x", shape, "u1", chunks=shape, compression="gzip", fletcher32=checked)
        data[...] = 7
        packer = zlib.compressobj(9)
        whole = packer.compress(bytes([7]) * (np.prod(shape) + 4 * checked)) + packer.compress(bytes(more))
        data.id.write_direct_chunk((0, 0, 0, 0), whole + packer.flush() + b"\0\0\0\0" * checked)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with h5py.File(tmp_path / "t.hdf5") as file, hdf5.reporting("t"):
        rows = hdf5.dataset(file, "x", "uint8", shape, 1 << 30)
        with pytest.raises((SourceError, OSError)):
            hdf5.read_rows(rows)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@pytest.mark.parametrize("chunk", [(16, 8, 8, 3), (5, 3, 8, 2), (1, 8, 8, 3), (40, 7, 7, 3)])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", ["u1", "<f8"])
def test_chunks_unpacked_here_are_what_hdf5_reads(tmp_path: Path, chunk: Any, shuffle: bool, kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, (37, 8, 8, 3)).astype(kind)
    chunk = tuple(min(a, b) for a, b in zip(chunk, values.shape, strict=True))
    with h5py.File(tmp_path / "t.hdf5", "w") as file:
        file.create_dataset("x", data=values, chunks=chunk, compression="gzip", shuffle=shuffle)
    with h5py.File(tmp_path / "t.hdf5") as file:
        rows = hdf5.dataset(file, "x", "uint8" if kind == "u1" else "float", (37, 8, 8, 3), 1 << 30)
        for start, stop in ((0, 37), (3, 4), (15, 33), (36, 37)):
            np.testing.assert_array_equal(hdf5.read_rows(rows, start, stop), values[start:stop])


def test_text_that_nests_without_end_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["data"].attrs["problem_info"] = "[" * 100_000
    with pytest.raises(SourceError, match="problem_info"):
        inspect_file(path)


def test_text_that_steers_a_terminal_does_not_get_there(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "put \x1b[2Jit away"})
    with pytest.raises(SourceError, match=r"expected printable text") as caught:
        inspect_file(path)
    assert str(caught.value).isprintable()


def test_a_file_that_another_program_writes_stops_the_run_and_says_so(path: Path, tmp_path: Path) -> None:
    hold = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(SourceTrouble, match=r"t_demo.hdf5: .*another program has it open for writing"):
            run(path.parent, tmp_path / "out")
        other.communicate()
    assert run(path.parent, tmp_path / "out").quarantined == 0


@pytest.mark.parametrize("spoil", ["NaN", "a row short", "unreadable"])
def test_positions_of_the_hand_that_cannot_be_read_are_not_absent(tmp_path: Path, spoil: str) -> None:
    """They show the pictures' orientation; without them it would be taken from less."""
    worlds = {f"demo_{n}": make_world(n) for n in range(2)}
    demos = {name: {**demo_arrays(world), "obs/ee_pos": world.joints[1:, :3].copy()} for name, world in worlds.items()}
    if spoil == "NaN":
        demos["demo_0"]["obs/ee_pos"][3] = np.nan
    elif spoil == "a row short":
        demos["demo_0"]["obs/ee_pos"] = demos["demo_0"]["obs/ee_pos"][:-1]
    path = write_file(tmp_path / "t_demo.hdf5", demos)
    if spoil == "unreadable":
        with h5py.File(path) as file:
            address = h5py.h5o.get_info(file["data/demo_0/obs/ee_pos"].id).addr
        data = bytearray(path.read_bytes())
        data[address] = 0xFF
        path.write_bytes(data)
    header = inspect_file(path)
    assert tuple(header.episodes) == ("demo_1",)
    ((name, reason),) = header.refused
    assert name == "demo_0"
    assert "ee_pos" in reason or "cannot read" in reason


@pytest.mark.parametrize("key", ["actions", "states", "obs/joint_states", "obs"])
def test_what_two_demonstrations_share_is_refused(tmp_path: Path, key: str) -> None:
    path = write_file(tmp_path / "t_demo.hdf5", {f"demo_{n}": demo_arrays(make_world(n)) for n in range(3)})
    with h5py.File(path, "r+") as file:
        del file[f"data/demo_2/{key}"]
        file[f"data/demo_2/{key}"] = file[f"data/demo_0/{key}"]
    header = inspect_file(path)
    assert tuple(header.episodes) == ("demo_1",)
    assert [demo for demo, _ in header.refused] == ["demo_0", "demo_2"]


def test_a_chunk_that_is_packed_twice_is_refused(path: Path) -> None:
    """Each turn may unpack to a thousand times as much; only the last has a declared size."""
    with h5py.File(path, "r+") as file:
        pictures = file["data/demo_0/obs/agentview_rgb"][()]
        del file["data/demo_0/obs/agentview_rgb"]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((8, *pictures.shape[1:]))
        made.set_deflate(9)
        made.set_deflate(9)
        space = h5py.h5s.create_simple(pictures.shape)
        found = h5py.h5d.create(file["data/demo_0/obs"].id, b"agentview_rgb", h5py.h5t.STD_U8LE, space, made)
        found.write(h5py.h5s.ALL, h5py.h5s.ALL, pictures)
    with pytest.raises(SourceError, match=r"no usable demonstration.*expected each filter once"):
        run(path.parent, path.parent.parent / "out")


@pytest.mark.parametrize("value", [np.arange(4), "text"])
def test_an_initial_state_that_is_none_is_no_absence(path: Path, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        file["data/demo_0"].attrs["init_state"] = value
    with pytest.raises(SourceError, match="'init_state': expected at most"):
        run(path.parent, path.parent.parent / "out")


def test_groups_that_nest_without_end_are_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        group = file.create_group("other")
        for _ in range(100):
            group = group.create_group("g")
    with pytest.raises(SourceError, match="groups nest deeper than 64 levels"):
        inspect_file(path)


def test_a_look_at_all_objects_that_runs_out_of_memory_is_not_taken_for_a_whole_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_little(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("pipelines.sources.ranges._claims", too_little)
    with pytest.raises(SourceError, match=r"t_demo\.hdf5: .*MemoryError"):
        inspect_file(path)
