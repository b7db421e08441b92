"""The reader gives back what went in, from a folder and from memory, and raises on any damage."""

import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

import stores.cloud.storage
from stores.cloud.storage import LocalStorage, RemoteStorage
from stores.disk import handles
from stores.errors import StaleKey, StoreCorrupt, StoreError, StoreMissing, UsageError
from stores.reader import Store
from stores.shards import read_segment
from tests.stores.faults import read_tree
from tests.stores.make_store import MadeEpisode, make_tiny_store, train_statistics


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[MadeEpisode]]:
    root = tmp_path_factory.mktemp("store") / "tiny"
    return root, make_tiny_store(root, codec="png")


def _upload(root: Path, url: str) -> None:
    target = fsspec.filesystem("memory")
    for name, content in read_tree(root).items():
        if content is not None:
            target.pipe_file(f"{url.removeprefix('memory://')}/{name}", content)


@pytest.fixture(scope="module", params=["folder", "memory"])
def store(request, made) -> Store:
    if request.param == "folder":
        return Store.open(made[0])
    _upload(made[0], "memory://bucket/tiny")
    return Store.open("memory://bucket/tiny")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")
def test_a_disk_is_asked_for_a_segment_before_it_is_read(
    made: tuple[Path, list[MadeEpisode]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all its bytes and no others, in pieces; who reads it says what is wrong with it."""
    asked: list[tuple[str, int, int]] = []

    def advised(descriptor: int, offset: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        asked.append((os.readlink(f"/proc/self/fd/{descriptor}"), offset, size))

    monkeypatch.setattr(os, "posix_fadvise", advised)
    monkeypatch.setattr(stores.cloud.storage, "ADVISED", 1000)
    store = Store.open(made[0])
    row = {name: column[1] for name, column in store.segment_columns.items()}
    store.fetch_segment(1)
    assert {path for path, _, _ in asked} == {str(made[0] / row["shard"])}
    stops = [offset + size for _, offset, size in asked]
    assert [row["offset"], *stops[:-1]] == [offset for _, offset, _ in asked]
    assert stops[-1] == row["offset"] + row["size"]
    assert len(asked) == -(-row["size"] // 1000)

    absent = Store.open(made[0])
    monkeypatch.setattr(absent.storage, "root", str(made[0] / "nowhere"))
    monkeypatch.setattr(absent.storage, "_handles", handles.Handles(str(made[0] / "nowhere")))
    absent.fetch_segment(1)
    with pytest.raises(StoreMissing):
        absent.read_segment(1)


def test_a_notebook_shows_a_store_and_a_segment_in_a_few_words(store: Store) -> None:
    shown = f"Store({store.root!r}, tiny, 4 episodes, 163 frames, "
    assert repr(store).startswith(shown)
    assert repr(store).endswith(f", content {store.content_hash[:12]})")
    segment = store.read_segment(0)
    cameras = ", ".join(store.spec.camera_names)
    assert repr(segment) == f"Segment({segment.where}, {len(segment.robot_state)} frames of {cameras})"


def test_an_open_store_reads_no_column_of_a_store_that_has_taken_its_place(tmp_path: Path) -> None:
    """Not even one of the same layout, whose checksums would then fit its shards."""
    make_tiny_store(tmp_path / "store", frames=12, window=8)
    opened, touched = Store.open(tmp_path / "store"), Store.open(tmp_path / "store")
    key = touched.read_segment(0).key
    os.utime(tmp_path / "store/segments.parquet")
    assert Store.open(tmp_path / "store").read_segment(0).key == touched.read_segment(0).key == key
    assert touched.segment_columns["crc32"].shape == (len(touched),)
    make_tiny_store(tmp_path / "store", frames=12, window=8, seed=1)
    for read in (lambda: opened.read_segment(0), lambda: opened.segment_columns["crc32"], lambda: opened.segments):
        with pytest.raises(StoreCorrupt, match=r"segments.parquet: it was written again since this store was opened"):
            read()


def test_every_transition_comes_back(store: Store, made) -> None:
    seen = 0
    for i in range(len(store)):
        row = {name: column[i] for name, column in store.segment_columns.items()}
        episode = made[1][row["episode"]]
        segment, images = store.read_segment(i), store.decode_segment(i)
        first, stop = row["first_step"], row["first_step"] + row["observations"]
        np.testing.assert_array_equal(np.stack(images, axis=1), episode.images[first:stop])
        np.testing.assert_array_equal(segment.robot_state, episode.robot_state[first:stop])
        real = ~segment.is_pad
        np.testing.assert_array_equal(segment.action[real], episode.action[first : first + real.sum()])
        assert real.sum() == min(row["steps"] + 9, len(episode.action) - first)
        assert (segment.action[~real] == episode.action[-1]).all()
        assert segment.meta["instruction"] == episode.instruction
        assert segment.meta["first_step"] == first
        seen += row["steps"]
    assert seen == sum(len(e.action) for e in made[1]) == store.manifest.counts["steps"]


def test_frames_come_back(store: Store, made) -> None:
    frames = store.frames
    np.testing.assert_array_equal(frames["robot_state"], np.concatenate([e.robot_state for e in made[1]]))
    for e, episode in enumerate(made[1]):
        mine = frames["episode"] == e
        assert frames["index"][mine].tolist() == list(range(len(episode.images)))
        action = frames["action"][mine]
        np.testing.assert_array_equal(action[: len(episode.action)], episode.action)
        assert np.isnan(action[len(episode.action) :]).all()


def test_tables_language_and_statistics(store: Store, made) -> None:
    assert store.episode_columns["split"].tolist() == [e.split for e in made[1]]
    assert store.episode_columns["frames"].tolist() == [len(e.images) for e in made[1]]
    assert store.language.vector(made[1][0].instruction).shape == (512,)
    assert store.stats() == train_statistics(made[1])
    assert store.spec.image_sizes == ((32, 32), (32, 32))


def test_cameras_can_be_chosen_and_buffers_given(store: Store) -> None:
    both = store.decode_segment(1)
    np.testing.assert_array_equal(store.decode_segment(1, ["eye_in_hand"])[0], both[1])
    out = [np.zeros_like(frames) for frames in both]
    decoded = store.read_segment(1).decode(out=out)
    assert all(mine is given for mine, given in zip(decoded, out, strict=True))
    np.testing.assert_array_equal(out, both)
    with pytest.raises(UsageError, match="eye_in_hand images need contiguous uint8"):
        store.read_segment(1).decode(out=[out[0], out[1][:, :1]])
    with pytest.raises(UsageError, match="'wrist'"):
        store.decode_segment(1, ["wrist"])


def test_threads_agree(store: Store) -> None:
    alone = [store.decode_segment(i) for i in range(len(store))]
    with ThreadPoolExecutor(8) as pool:
        for a, b in zip(alone, pool.map(Store.open(store.root).decode_segment, range(len(store))), strict=True):
            np.testing.assert_array_equal(a, b)


def test_no_such_segment(store: Store) -> None:
    for i in (-1, len(store)):
        with pytest.raises(UsageError, match=f"segment {i}: the store has {len(store)}"):
            store.read_segment(i)


def test_members_that_are_not_a_segments_are_named(store: Store) -> None:
    segment = store.read_segment(0)
    shard, place = store._place(0)
    key, members = read_segment(store.storage, shard.path, shard.sha256, *place, lambda: "here")
    image = next(name for name in members if name.endswith((".jpg", ".png")))
    more, less = {**members, "more.txt": b""}, {name: data for name, data in members.items() if name != image}
    for wrong, said in (
        (more, r"lacks the members \[\], has the unknown \['more\.txt'\]"),
        (less, rf"lacks the members \['{image}'\], has the unknown \[\]"),
    ):
        with pytest.raises(StoreCorrupt, match=said) as told:
            store.parse_segment(0, key, wrong)
        assert str(told.value).startswith(segment.where)
    with pytest.raises(StoreCorrupt) as told:
        store.parse_segment(0, key, {**members, image: b"no picture"}).decode()
    assert str(told.value).startswith(f"{segment.where}, {image}: ")


def test_same_input_same_store(made, tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "again", codec="png")
    assert read_tree(tmp_path / "again") == read_tree(made[0])


def test_statistics_of_another_content_are_stale(tmp_path: Path) -> None:
    make_tiny_store(tmp_path, episodes=2, seed=1)
    make_tiny_store(tmp_path, episodes=2, seed=2, stats=False)
    with pytest.raises(StaleKey, match="statevla stats"):
        Store.open(tmp_path).stats()


def test_nothing_at_a_url() -> None:
    with pytest.raises(StoreMissing, match="memory://nowhere is not a store"):
        Store.open("memory://nowhere")
    with pytest.raises(StoreError, match=r"nosuchprotocol://bucket/store: .*cannot be read"):
        Store.open("nosuchprotocol://bucket/store")


def test_whatever_a_file_system_raises_names_the_object(made, monkeypatch) -> None:
    remote = RemoteStorage("memory://bucket/denied")
    for storage, shard in ((LocalStorage(made[0]), "shards"), (remote, "shards/a.tar")):
        if storage is remote:

            def refuse(*args: object, **options: object) -> bytes:
                raise RuntimeError("Unable to locate credentials")

            monkeypatch.setattr(type(remote.files), "cat_file", refuse)
        for read in (lambda s=storage, n=shard: s.read(n), lambda s=storage, n=shard: s.read_range(n, 0, 5)):
            with pytest.raises(StoreError, match=f"{shard} (is not an ordinary file|cannot be read: RuntimeError)"):
                read()


def test_stock_tools_agree_with_the_index(made) -> None:
    store = Store.open(made[0])
    group = zarr.open_group(made[0] / "frames.zarr", mode="r")
    for name, array in store.frames.items():
        np.testing.assert_array_equal(group[name][...], array)
    for row in store.segments.to_pylist():
        with tarfile.open(made[0] / row["shard"]) as tar:
            for name, offset, size in zip(row["member_name"], row["member_offset"], row["member_size"], strict=True):
                info = tar.getmember(f"{row['key']}.{name}")
                assert (info.offset_data, info.size) == (offset, size)


def test_importing_stores_loads_nothing_heavy() -> None:
    code = (
        "import sys, importlib, pkgutil, stores\n"
        "for m in pkgutil.walk_packages(stores.__path__, 'stores.'): importlib.import_module(m.name)\n"
        "print([m for m in ('torch', 'transformers', 'dask', 'distributed', 'h5py', 'fsspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
