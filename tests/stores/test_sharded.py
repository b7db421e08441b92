import json
import os
from pathlib import Path

import numpy as np
import pytest
import zarr

import stores.cloud.storage
from stores import arrays
from stores.errors import StoreCorrupt, StoreMissing, UsageError
from stores.sharded import ShardedSpec, aligned, create, open_sharded, write_shard

SPEC = ShardedSpec((23, 3, 2), "float16", 4, 8)


def values(spec: ShardedSpec = SPEC) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(spec.shape).astype(spec.dtype)


def write(root: Path, spec: ShardedSpec = SPEC, piece: int = 3) -> np.ndarray:
    rows = values(spec)
    arrays.create_group(root)
    create(root, "a", spec)
    for m in range(spec.shards):
        mine = rows[m * spec.shard : (m + 1) * spec.shard]
        write_shard(root, "a", spec, m, (mine[i : i + piece] for i in range(0, len(mine), piece)))
    return rows


def test_zarr_reads_what_is_written(tmp_path: Path) -> None:
    rows = write(tmp_path)
    opened = zarr.open_array(tmp_path / "a", mode="r")
    assert opened.shards == (8, 3, 2)
    assert opened.chunks == (4, 3, 2)
    assert np.array_equal(opened[:], rows)


def test_what_zarr_writes_is_read(tmp_path: Path) -> None:
    rows = values()
    write(tmp_path)
    for shard in (tmp_path / "a" / "c").iterdir():  # keep the sealed metadata, let zarr write the shards
        for file in shard.rglob("*"):
            if file.is_file():
                file.unlink()
    zarr.open_array(tmp_path / "a", mode="r+")[:] = rows
    assert np.array_equal(open_sharded(tmp_path, "a").read(0, 23), rows)


@pytest.mark.parametrize("piece", [1, 3, 4, 8])
def test_every_range_is_the_same_rows_however_it_was_written(tmp_path: Path, piece: int) -> None:
    rows = write(tmp_path, piece=piece)
    array = open_sharded(tmp_path, "a", SPEC)
    for start in range(24):
        for stop in range(start, 24):
            assert np.array_equal(array.read(start, stop), rows[start:stop])


def test_rows_go_into_the_callers_buffer(tmp_path: Path) -> None:
    rows = write(tmp_path)
    buffer = np.zeros((10, 3, 2), np.float16)
    found = open_sharded(tmp_path, "a").read(5, 15, buffer)
    assert found is buffer
    assert np.array_equal(buffer, rows[5:15])
    with pytest.raises(UsageError, match="buffer: expected float16"):
        open_sharded(tmp_path, "a").read(5, 15, np.zeros((10, 3, 2), np.float32))


def test_every_flipped_byte_of_a_shard_is_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "a" / SPEC.shard_name(2)
    sound = file.read_bytes()
    assert len(sound) == SPEC.shard_bytes(2)
    for place in range(len(sound)):
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.raises(StoreCorrupt, match="a/c/2/0/0"):
            open_sharded(tmp_path, "a").read(16, 23)


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_cut_or_missing_shard_is_named(tmp_path: Path, cut: int) -> None:
    write(tmp_path)
    file = tmp_path / "a" / SPEC.shard_name(1)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(StoreCorrupt, match="a/c/1/0/0"):
        open_sharded(tmp_path, "a").read(8, 9)
    file.unlink()
    with pytest.raises(StoreCorrupt, match="shard a/c/1/0/0 is missing"):
        open_sharded(tmp_path, "a").read(8, 9)


def test_an_index_that_leaves_a_chunk_out_is_refused(tmp_path: Path) -> None:
    rows = write(tmp_path)
    zeros = zarr.open_array(tmp_path / "a", mode="r+", config={"write_empty_chunks": False})
    zeros[4:8] = 0  # zarr leaves the chunk out and would read zeros
    assert np.array_equal(zarr.open_array(tmp_path / "a", mode="r")[:4], rows[:4])
    with pytest.raises(StoreCorrupt, match="a/c/0/0/0"):
        open_sharded(tmp_path, "a").read(0, 4)


def test_check_reads_again_what_was_checked_before(tmp_path: Path) -> None:
    write(tmp_path)
    array = open_sharded(tmp_path, "a")
    array.read(0, 23)
    file = tmp_path / "a" / SPEC.shard_name(0)
    data = bytearray(file.read_bytes())
    data[3] ^= 8
    file.write_bytes(data)
    with pytest.raises(StoreCorrupt, match="chunk 0"):
        array.check(0)
    array.check(1)


def test_a_chunk_beside_one_that_was_checked_is_checked(tmp_path: Path) -> None:
    write(tmp_path)
    array = open_sharded(tmp_path, "a")
    array.read(0, 4)
    file = tmp_path / "a" / SPEC.shard_name(0)
    data = bytearray(file.read_bytes())
    data[SPEC.chunk_bytes + 3] ^= 8
    file.write_bytes(data)
    with pytest.raises(StoreCorrupt, match="chunk 1"):
        array.read(0, 8)


@pytest.mark.parametrize("most", [1, 7, 50])
def test_a_read_that_the_system_gives_in_parts_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    rows = write(tmp_path)

    def preadv(descriptor: int, views: list[memoryview], offset: int) -> int:
        data = os.pread(descriptor, min(most, len(views[0])), offset)
        views[0][: len(data)] = data
        return len(data)

    monkeypatch.setattr(os, "preadv", preadv)
    assert np.array_equal(open_sharded(tmp_path, "a").read(0, 23), rows)


def test_more_chunks_than_a_call_of_the_system_takes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write(tmp_path)
    monkeypatch.setattr(stores.cloud.storage, "IOV_MAX", 3)  # of two chunks with their checksums
    assert np.array_equal(open_sharded(tmp_path, "a").read(0, 23), rows)


def test_other_metadata_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(StoreMissing):
        open_sharded(tmp_path, "b")
    file = tmp_path / "a" / "zarr.json"
    fields = json.loads(file.read_text())
    fields["shape"][0] = 24
    file.write_text(json.dumps(fields))
    with pytest.raises(StoreCorrupt, match=r"a/zarr.json"):
        open_sharded(tmp_path, "a")


def test_shards_of_other_rows_are_refused(tmp_path: Path) -> None:
    rows = values()
    with pytest.raises(UsageError, match="shard 0 has 8 rows, got 7"):
        write_shard(tmp_path, "a", SPEC, 0, [rows[:7]])
    with pytest.raises(UsageError, match="got more"):
        write_shard(tmp_path, "a", SPEC, 2, [rows[:8]])
    with pytest.raises(UsageError, match="got float32"):
        write_shard(tmp_path, "a", SPEC, 0, [rows.astype(np.float32)])
    with pytest.raises(UsageError, match="as shard"):
        ShardedSpec((4,), "float16", 4, 6)
    assert not list(tmp_path.rglob("c/*/*/*"))


@pytest.mark.parametrize("shape", [(1, 3), (7,), (5, 3, 2)])
def test_memory_begins_on_a_cache_line(shape: tuple[int, ...]) -> None:
    for _ in range(8):
        found = aligned(shape, "float16")
        assert (found.shape, found.dtype, found.ctypes.data % 64) == (shape, np.float16, 0)
        assert found.flags.c_contiguous
