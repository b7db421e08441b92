"""The cache of remote ranges: bounded, shared, never believed without a checksum; nothing depends on what it holds."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.cloud.cache import MARK, CachedStorage, RangeCache
from stores.cloud.storage import LocalStorage
from stores.disk import durable
from stores.errors import StoreCorrupt, StoreError, UsageError
from stores.reader import Store
from tests.stores.make_store import make_tiny_store

CONTENT = "ab" * 32


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain") / "store"
    make_tiny_store(root, stats=False)
    return root


class Counted(LocalStorage):
    """Counts what is read by range."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.ranges: list[tuple[str, int, int]] = []

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        self.ranges.append((name, offset, size))
        return super().read_range(name, offset, size)


def opened(plain: Path, folder: Path, limit: int = 2**30) -> tuple[Store, Counted]:
    inner = Counted(plain)
    store = Store.open(CachedStorage(inner, RangeCache(folder, limit)))
    inner.ranges.clear()
    return store, inner


def test_what_lies_beside_a_segment_comes_with_it_where_the_cache_has_room_for_the_store(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.reader.TOGETHER", 4)  # the store is small
    here = Store.open(plain)
    rows = here.segments.select(["shard", "offset", "size"]).to_pylist()
    assert {row["shard"] for row in rows[:4]} != {row["shard"] for row in rows[-4:]}  # there is a border
    wanted: dict[str, list[list[int]]] = {}
    for number, row in enumerate(rows):  # of each shard and each four rows of the table, one range
        wanted.setdefault(f"{row['shard']} {number // 4}", []).append([row["offset"], row["offset"] + row["size"]])
    ranges = {(name.split()[0], parts[0][0], parts[-1][1] - parts[0][0]) for name, parts in wanted.items()}
    far, asked = opened(plain, tmp_path / "cache")
    for i in np.random.default_rng(0).permutation(len(here)).tolist():
        far.fetch_segment(i)
        assert far.read_segment(i).images == here.read_segment(i).images
    ends = [asked_for for asked_for in asked.ranges if asked_for[2] == 1024]
    assert len(ends) == 2
    assert sorted(set(asked.ranges) - set(ends)) == sorted(ranges)
    assert len(asked.ranges) == len(ranges) + 2


def test_what_came_by_one_request_is_not_looked_for_again_and_is_read_when_it_is_gone(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, asked = opened(plain, tmp_path / "cache")
    far.fetch_segment(0)
    came = [i for i in range(len(far)) if i in far._beside(0)]
    assert len(came) > 1
    looked: list[int] = []
    monkeypatch.setattr(RangeCache, "has", lambda *place: looked.append(1))
    ranges = len(asked.ranges)
    for i in came:
        far.fetch_segment(i)
    assert looked == []
    assert len(asked.ranges) == ranges
    shutil.rmtree(tmp_path / "cache")
    np.testing.assert_array_equal(far.decode_segment(came[1]), Store.open(plain).decode_segment(came[1]))


@pytest.mark.parametrize("apart", ["offset", "shard"])
def test_of_rows_that_do_not_follow_one_another_only_those_beside_come(plain: Path, tmp_path: Path, apart: str) -> None:
    """As of a table in another order: the second row is not behind the first, or as far behind in another shard."""
    far, asked = opened(plain, tmp_path / "cache")
    columns = far.segment_columns

    class Apart:
        rows = columns.rows

        def codes(self, name: str) -> Any:
            codes, names = columns.codes(name)
            return codes + (np.arange(columns.rows) == 1 if apart == name else 0), names

        def __getitem__(self, name: str) -> Any:
            return columns[name] + (np.arange(columns.rows) == 1 if apart == name else 0)

    replace(far, segment_columns=Apart()).fetch_segment(0)  # type: ignore[arg-type]
    assert asked.ranges[-1][1:] == (int(columns["offset"][0]), int(columns["size"][0]))


def test_every_range_is_asked_for_once_by_all_readers(plain: Path, tmp_path: Path) -> None:
    here = Store.open(plain)
    limit = here.manifest.counts["bytes"] - 1  # so that each comes by itself
    first, asked = opened(plain, tmp_path / "cache", limit)
    second, again = opened(plain, tmp_path / "cache", limit)
    for i in range(len(here)):
        first.fetch_segment(i)
        np.testing.assert_array_equal(first.decode_segment(i), here.decode_segment(i))
        np.testing.assert_array_equal(second.decode_segment(i), here.decode_segment(i))
    assert len(asked.ranges) == len(set(asked.ranges)) == len(here) + 2  # the ends of two shards
    assert again.ranges == []


def test_a_spoilt_file_is_fetched_again_and_damage_far_away_is_said_and_not_kept(plain: Path, tmp_path: Path) -> None:
    here = Store.open(plain)
    store, _ = opened(plain, tmp_path)
    store.fetch_segment(0)
    (kept,) = [Path(entry.path) for entry in RangeCache(tmp_path, 1).files() if "-0-" in entry.name]
    data = bytearray(kept.read_bytes())
    data[1000] ^= 1
    kept.write_bytes(data)
    np.testing.assert_array_equal(store.decode_segment(0), here.decode_segment(0))
    data[1000] ^= 1
    assert kept.read_bytes() == data
    kept.write_bytes(data[:-1])
    np.testing.assert_array_equal(store.decode_segment(0), here.decode_segment(0))

    class Flipped(Counted):
        def read_range(self, name: str, offset: int, size: int) -> bytes:
            found = bytearray(super().read_range(name, offset, size))
            if size > 2000:
                found[500::1000] = bytes(byte ^ 1 for byte in found[500::1000])
            return bytes(found)

    broken = Store.open(CachedStorage(Flipped(plain), RangeCache(tmp_path / "other", 2**30)))
    broken.fetch_segment(0)
    with pytest.raises(StoreCorrupt, match="expected crc32"):
        broken.read_segment(0)
    assert all(entry.stat().st_size < 2000 for entry in RangeCache(tmp_path / "other", 1).files())


@given(sizes=st.lists(st.integers(1, 120), min_size=1, max_size=40), limit=st.integers(100, 1000))
def test_it_never_holds_more_than_its_limit(
    sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = RangeCache(tmp_path_factory.mktemp("bounded"), limit)
    for number, size in enumerate(sizes):
        cache.put(CONTENT, number, bytes(size))
        assert cache.bytes() <= limit
    kept = {number for number, size in enumerate(sizes) if cache.has(CONTENT, number, size)}
    assert (len(sizes) - 1 in kept) == (sizes[-1] <= limit // 8)


def test_what_was_used_last_stays_and_what_a_dead_writer_left_goes(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 800)
    for number in range(8):
        cache.put(CONTENT, number, bytes(100))
        os.utime(cache.path(CONTENT, number, 100), (number, number))
    left = durable.temp_name(cache.path(CONTENT, 99, 100))
    left.write_bytes(bytes(10))
    os.utime(left, (1, 1))
    assert cache.get(CONTENT, 0, 100) == bytes(100)  # the oldest, used again
    RangeCache(tmp_path, 800).put(CONTENT, 100, bytes(100))
    there = [number for number in (*range(8), 100) if cache.has(CONTENT, number, 100)]
    assert 0 in there
    assert 100 in there
    assert 1 not in there
    assert not left.exists()
    assert cache.clear() == 100 * len(there)
    assert cache.bytes() == 0


def test_a_full_disk_and_a_removed_folder_change_nothing_but_the_number_of_requests(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    cache = RangeCache(tmp_path / "cache", 2**30, said.append)
    asked = Counted(plain)
    store, here = Store.open(CachedStorage(asked, cache)), Store.open(plain)

    def full(path: Path, data: bytes | memoryview) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "put_aside", full)
        assert cache.trouble() == "No space left on device"
        for i in (0, 1, 0):
            np.testing.assert_array_equal(store.decode_segment(i), here.decode_segment(i))
    assert len(said) == 1
    assert "cannot keep what is read from afar: No space left on device; reads go on" in said[0]
    store.decode_segment(0)
    assert cache.clear() > 0
    cache.path(CONTENT, 0, 0).parent.parent.joinpath("gone").mkdir()
    np.testing.assert_array_equal(store.decode_segment(0), here.decode_segment(0))


def test_room_for_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="room for a byte or more, got 0"):
        RangeCache(tmp_path, 0)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


STRANGERS = {
    "locale": "de/messages.po",
    "git": "de/" + "a" * 38,
    "git of sha256": "de/" + "a" * 62,
    "ccache": "a/b/result",
    "a range elsewhere": f"cd/{CONTENT}-0-9",
    "a range at the top": f"{CONTENT}-0-9",
    "upper case": f"AB/{CONTENT.upper()}-0-9",
    "a temporary file of another": "ab/.tmp-0123456789ab-photo.raw",
    "one file": "thesis.tex",
}


@pytest.mark.parametrize("name", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_folder_of_something_else_is_no_cache(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(bytes(9000))
    os.utime(tmp_path / name, (1, 1))
    before, said = files_of(tmp_path), []
    cache = RangeCache(tmp_path, 10_000, said.append)
    for refused in (cache.clear, cache.require_own, cache.trouble):
        with pytest.raises(UsageError, match=r"holds .*, which is not the cache's. Nothing was changed"):
            refused()
    cache.put(CONTENT, 0, bytes(1200))
    assert (files_of(tmp_path), cache.bytes(), len(said)) == (before, 0, 1)


@pytest.mark.parametrize("name", STRANGERS.values(), ids=STRANGERS.keys())
def test_what_somebody_puts_into_a_cache_is_neither_counted_nor_removed(name: str, tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 10_000)
    cache.put(CONTENT, 0, bytes(1200))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(bytes(9000))
    os.utime(tmp_path / name, (1, 1))
    again = RangeCache(tmp_path, 10_000)
    again.put(CONTENT, 1, bytes(1200))
    assert (again.trouble(), again.bytes(), again.clear()) == (None, 2400, 2400)
    assert files_of(tmp_path).keys() == {MARK, name}


def test_a_cache_of_before_the_mark_is_taken(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 10_000)
    cache.put(CONTENT, 0, bytes(100))
    (tmp_path / MARK).unlink()
    cache.put(CONTENT, 1, bytes(100))
    assert (tmp_path / MARK).exists()
    assert RangeCache(tmp_path, 10_000).clear() == 200


def test_ranges_that_may_not_be_removed_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RangeCache(tmp_path, 10_000)
    for content in ("aa" * 32, "bb" * 32):
        cache.put(content, 0, bytes(100))
    unlink = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("aa"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(StoreError, match="100 bytes of 200 may not be removed by this user"):
        cache.clear()
    assert cache.bytes() == 100
