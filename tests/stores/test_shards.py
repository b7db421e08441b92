"""Tar shards against Python's tarfile and stock WebDataset; the byte-range index; what damage does."""

import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stores.cloud.storage import LocalStorage
from stores.errors import StoreCorrupt, StoreMissing, UsageError
from stores.segments import SegmentMembers
from stores.shards import pack_segment, read_segment, tar_header, write_shard
from tests.stores.make_store import make_tiny_store

LONG = "pick_up_the_alphabet_soup_and_the_cream_cheese_box_and_place_both_of_them_in_the_basket_demo"


def _segments(count: int = 3) -> list[SegmentMembers]:
    rng = np.random.default_rng(0)
    return [
        SegmentMembers(
            f"{LONG}/demo_{i}-00000{i}",
            (
                ("json", b'{"a": 1}'),
                ("robot_state.npy", rng.bytes(512)),
                *((f"agentview.{t:02d}.jpg", rng.bytes(int(rng.integers(1, 3000)))) for t in range(3)),
            ),
        )
        for i in range(count)
    ]


def _read(storage: LocalStorage, shard: str, index) -> dict[str, bytes]:
    where = f"{shard}, segment {index.key!r}"
    key, members = read_segment(storage, shard, "0" * 64, index.offset, index.size, index.crc32, lambda: where)
    assert key == index.key
    return members


def _tar_of_tarfile(segments: list[SegmentMembers]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for segment in segments:
            for name, data in segment.members:
                info = tarfile.TarInfo(f"{segment.key}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_bytes_are_those_of_tarfile(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", _segments())
    ours, theirs = (tmp_path / "a.tar").read_bytes(), _tar_of_tarfile(_segments())
    assert theirs.startswith(ours)  # tarfile pads the end to 10 KiB
    assert not any(theirs[len(ours) :])
    assert ours[-1024:] == bytes(1024)


NAMES = st.lists(st.text("abcdefghijklmnopqrstuvwxyz_0123456789-", min_size=1, max_size=120), min_size=1, max_size=4)


@given(NAMES, st.sampled_from(["json", "agentview.00.jpg", "x" * 110]), st.integers(0, 8**11 - 1))
def test_headers_are_those_of_tarfile(parts: list[str], member: str, size: int) -> None:
    name = "/".join(parts)
    info = tarfile.TarInfo(f"{name}.{member}")
    info.size = size
    try:
        wanted = info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError:
        with pytest.raises(UsageError, match="does not fit USTAR"):
            tar_header(f"{name}.{member}", size)
    else:
        assert tar_header(f"{name}.{member}", size) == wanted


def test_the_index_finds_every_member(tmp_path: Path) -> None:
    segments = _segments()
    index = write_shard(tmp_path / "shards/a.tar", iter(segments)).segments
    storage = LocalStorage(tmp_path)
    assert [entry.key for entry in index] == [segment.key for segment in segments]
    for segment, entry in zip(segments, index, strict=True):
        assert _read(storage, "shards/a.tar", entry) == dict(segment.members)
    with tarfile.open(tmp_path / "shards/a.tar") as tar:
        data_offsets = [info.offset_data for info in tar]
    assert data_offsets == [offset for entry in index for offset in entry.member_offset]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "a.tar", _segments()) == write_shard(tmp_path / "b.tar", _segments())
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.parametrize("codec", ["jpeg", "png"])
def test_stock_webdataset_reads_a_shard(tmp_path: Path, codec: str) -> None:
    made = make_tiny_store(tmp_path, codec=codec)
    suffix = {"jpeg": "jpg", "png": "png"}[codec]
    urls = sorted(str(path) for path in (tmp_path / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    by_key = {sample["__key__"]: sample for sample in samples}
    assert len(by_key) == len(samples)
    for episode in made:
        first = by_key[f"{episode.source}/{episode.demo}-000000"]
        np.testing.assert_array_equal(first["robot_state.npy"], episode.robot_state[:17])
        np.testing.assert_array_equal(first["action.npy"], episode.action[:25])
        assert first["json"]["instruction"] == episode.instruction
        shown = np.asarray(first[f"eye_in_hand.16.{suffix}"], np.int64)
        worst = np.abs(shown - episode.images[16, 1].astype(np.int64)).max()
        assert worst <= (6 if codec == "jpeg" else 0)


def test_a_raw_reader_needs_only_tarfile_json_and_numpy(tmp_path: Path) -> None:
    made = make_tiny_store(tmp_path, episodes=1)
    with tarfile.open(next((tmp_path / "shards").glob("*.tar"))) as tar:
        names = tar.getnames()
        key = f"{made[0].source}/{made[0].demo}-000002"
        assert json.load(tar.extractfile(f"{key}.json"))["first_step"] == 32
        is_pad = np.load(io.BytesIO(tar.extractfile(f"{key}.is_pad.npy").read()), allow_pickle=False)
        image = Image.open(tar.extractfile(f"{key}.agentview.00.jpg"))
    assert names[:4] == [f"{made[0].source}/{made[0].demo}-000000.{n}" for n in _first_members()]
    assert is_pad.tolist() == [False] * 8 + [True] * 9
    assert image.size == (32, 32)


def _first_members() -> list[str]:
    return ["json", "robot_state.npy", "action.npy", "is_pad.npy"]


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/b.c", "a\nb", "ä"])
def test_keys_that_webdataset_or_tar_would_bend_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match=r"key|ASCII"):
        write_shard(tmp_path / "a.tar", [SegmentMembers(key, (("json", b"{}"),))])
    assert list(tmp_path.iterdir()) == []


def test_doubles_are_refused(tmp_path: Path) -> None:
    segment = SegmentMembers("a", (("json", b"{}"),))
    with pytest.raises(UsageError, match="twice"):
        write_shard(tmp_path / "a.tar", [segment, segment])
    with pytest.raises(UsageError, match="distinct"):
        pack_segment(SegmentMembers("a", (("json", b"{}"), ("json", b"{}"))), 0)


@given(st.integers(min_value=0), st.integers(0, 7))
def test_any_flipped_bit_of_a_segment_is_noticed(position: int, bit: int) -> None:
    packed, entry = pack_segment(_segments(1)[0], 0)
    broken = bytearray(packed)
    broken[position % len(packed)] ^= 1 << bit

    class Flipped(LocalStorage):
        def read_range(self, name: str, offset: int, size: int) -> bytes:
            return bytes(broken)

    with pytest.raises(StoreCorrupt, match=r"a\.tar, segment .*demo_0-000000.*crc32"):
        _read(Flipped("store"), "a.tar", entry)


def test_a_cut_or_missing_shard_is_named(tmp_path: Path) -> None:
    index = write_shard(tmp_path / "a.tar", _segments()).segments
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: index[2].offset])  # at a segment boundary: still a valid tar
    _read(LocalStorage(tmp_path), "a.tar", index[1])
    with pytest.raises(StoreCorrupt, match=r"a\.tar, segment .*demo_2-000002.*too short"):
        _read(LocalStorage(tmp_path), "a.tar", index[2])
    with pytest.raises(StoreMissing, match=r"b\.tar is missing"):
        _read(LocalStorage(tmp_path), "b.tar", index[0])


def test_bytes_that_are_no_sample_are_refused(tmp_path: Path) -> None:
    """Their checksum holds: whoever wrote the index made it of them."""
    first, second, _ = write_shard(tmp_path / "a.tar", _segments()).segments
    data = (tmp_path / "a.tar").read_bytes()
    whole = data[first.offset : first.offset + first.size]
    wrong = {
        "two samples": data[first.offset : second.offset + second.size],
        "cut": whole[:-512],
        "a piece of a header": whole + whole[:100],
        "no header": b"?" * 512 + whole,
        "a size of letters": whole[:124] + b"zzzzzzzzzzz" + whole[135:],
        "a size past the end": whole[:124] + b"77777777777" + whole[135:],
        "not ASCII": b"\xff" + whole[1:],
    }
    for number, packed in enumerate(wrong.values()):
        (tmp_path / f"{number}.tar").write_bytes(packed)
        with pytest.raises(StoreCorrupt, match=r"here: not the members of one tar sample"):
            read_segment(
                LocalStorage(tmp_path), f"{number}.tar", "0" * 64, 0, len(packed), zlib.crc32(packed), lambda: "here"
            )
