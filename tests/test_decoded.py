"""The decoded tier: the same batches from a mapped file, made once, checked, refused where there is no room."""

import itertools
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zarr

from statevla.config import DataConfig
from statevla.data import decoded
from statevla.data.decoded import decode_store, find_decoded
from statevla.data.loaders import SegmentLoader, SplitReader
from statevla.data.needs import NOW, PAIRS, Needs
from statevla.data.views import open_decoded
from stores.disk import room
from stores.errors import StateVLAError, StoreCorrupt
from stores.progress import ProgressEvent
from stores.reader import Store
from stores.verify import verify_store
from tests.stores.make_store import make_tiny_store
from tests.test_loaders import CHUNK, DATA, same
from tests.trainers.test_latents import no_pictures


@pytest.fixture
def store(tmp_path: Path) -> Store:
    make_tiny_store(tmp_path / "store", episodes=8, frames=21, image=16, window=8, chunk=CHUNK)
    return Store.open(tmp_path / "store")


@pytest.mark.parametrize("needs", [PAIRS, NOW])
def test_batches_are_those_of_the_shards(store: Store, needs: Needs, monkeypatch: pytest.MonkeyPatch) -> None:
    def loader(data: DataConfig) -> SegmentLoader:
        return SegmentLoader(store, "train", 8, 3, data, CHUNK, needs)

    count = 2 * loader(DATA).batches_per_epoch
    wanted = list(itertools.islice(loader(DATA).batches(), count))
    reader = SplitReader(store, "val", 8, CHUNK, DATA, needs=needs)
    validation = list(reader.batches())
    found = decode_store(store, Path(store.root), 2)
    assert verify_store(store.root) == []
    no_pictures(monkeypatch)
    for threads in (1, 3):
        mapped = loader(replace(DATA, loader_threads=threads))
        mapped.source.view = open_decoded(found, 0.0)
        for (where, one), (there, two) in zip(wanted, mapped.batches(), strict=False):
            assert where == there
            assert same(one, two)
    reader.source.view = open_decoded(found, 0.0)
    assert all(same(one, two) for one, two in zip(validation, reader.batches(), strict=True))


def test_a_second_reader_opens_the_file_and_damage_is_named(store: Store) -> None:
    found = decode_store(store, Path(store.root), 1)
    again = find_decoded(store)
    assert again is not None
    pictures = zarr.open_group(Path(store.root, "decoded", found.name), mode="r")["agentview"]
    assert (pictures[:9] == store.decode_segment(0)[0]).all()
    file = Path(store.root, "decoded", found.name, "agentview/c/0/0/0/0")
    data = bytearray(file.read_bytes())
    data[77] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreCorrupt, match=r"agentview: its content does not match its crc32c"):
        open_decoded(again, 0.0)
    file.write_bytes(data[:-1])
    assert find_decoded(store) is None  # it is made again


def test_a_full_disk_refuses_before_anything_is_decoded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = room.shutil.disk_usage(store.root)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    no_pictures(monkeypatch)
    with pytest.raises(StateVLAError, match=r"decoded pictures need .* GB are free"):
        decode_store(store, Path(store.root), 1)
    assert verify_store(store.root) == []


def test_an_interrupted_pass_is_nothing_to_a_reader(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        no_pictures(broken)
        with pytest.raises(AssertionError):
            decode_store(store, Path(store.root), 1)
    assert find_decoded(store) is None
    assert verify_store(store.root) == []
    assert decode_store(store, Path(store.root), 1).about == {"cameras": ["agentview", "eye_in_hand"]}
    assert verify_store(store.root) == []


def test_a_second_process_waits_for_the_first_and_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding, go = threading.Event(), threading.Event()
    original = decoded.walk_pictures
    passes = []

    def walk(*arguments: Any) -> Any:
        passes.append(arguments)
        decoding.set()
        assert go.wait(60)
        return original(*arguments)

    monkeypatch.setattr(decoded, "walk_pictures", walk)
    first = threading.Thread(target=decode_store, args=(store, Path(store.root), 1), daemon=True)
    first.start()
    assert decoding.wait(60)
    said = []

    def listen(event: ProgressEvent) -> None:
        said.append(event.message)
        go.set()

    assert decode_store(store, Path(store.root), 1, listen).about == {"cameras": ["agentview", "eye_in_hand"]}
    first.join(60)
    assert len(passes) == 1
    (line,) = said
    assert line.startswith(f"waits: {store.root} is being written by decoding (pid ")
