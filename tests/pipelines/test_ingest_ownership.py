"""An ingest takes only its own folder for its own, and removes nothing that nothing of ours named."""

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import IngestSummary, ingest
from pipelines.ingest.ownership import CLAIM, Holdings, holdings, write_claim
from stores.arrays import ArraySpec, write_region
from stores.derived import begin, seal_bytes
from stores.disk import durable
from stores.errors import UsageError
from stores.manifest import seal
from stores.reader import Store
from stores.verify import verify_store
from tests.pipelines.make_hdf5 import demo_arrays, make_world, write_file, write_suite
from tests.stores.faults import read_tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "source", tasks=2, demos=1)


def run(source: Path, out: Path, **options: Any) -> IngestSummary:
    summary = ingest(IngestConfig("toy", source, out, language="hashed"), isolated=False, **options)
    assert isinstance(summary, IngestSummary)
    return summary


def put(path: Path, data: bytes = b"theirs") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def listing(root: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below `root`, links as they are."""
    return {
        str(path): (path.lstat().st_ino, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
    }


def web_app(out: Path) -> None:
    put(out / "manifest.json", json.dumps({"name": "My app", "icons": [], "start_url": "/"}).encode())


def sealed_by_another(out: Path) -> None:
    put(out / "manifest.json", json.dumps({"name": "app", "sha256": "0" * 64, "objects": []}).encode())


def webdataset(out: Path) -> None:
    put(out / "shards/train-000.tar")


def zarr_array(out: Path) -> None:
    zarr.save_array(str(out / "frames.zarr"), np.zeros(3))


def checkout(out: Path) -> None:
    out.mkdir()
    subprocess.run(["git", "init", "-q", str(out)], check=True)


def link_to_shards(out: Path) -> None:
    put(out.parent / "elsewhere/train.tar")
    out.mkdir()
    (out / "shards").symlink_to(out.parent / "elsewhere")


FOREIGN: dict[str, Callable[[Path], None]] = {
    "a WebDataset": webdataset,
    "a web app": web_app,
    "a sealed file of another program": sealed_by_another,
    "a zarr": zarr_array,
    "units": lambda out: put(out / "units/storage.json", b"{}"),
    "statistics": lambda out: put(out / "stats/2024.json"),
    "features": lambda out: put(out / "features/siglip/x.npy"),
    "latents": lambda out: put(out / "latents/z.npy"),
    "tables": lambda out: put(out / "episodes.parquet"),
    "a hidden folder": lambda out: put(out / ".config/settings"),
    "a temporary of another program": lambda out: put(out / ".tmp-notes"),
    "a git checkout": checkout,
    "a link to shards": link_to_shards,
    "a dangling link": lambda out: (out.mkdir(), (out / "shards").symlink_to("nowhere"))[0],
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_folder_of_somebody_else_is_refused_and_untouched(
    source: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "out")
    before = listing(tmp_path)
    with pytest.raises(UsageError, match="choose another"):
        run(source, tmp_path / "out")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("place", ["shards/train-000.tar", "units/notes.json", "frames.zarr/notes.txt", "shards/a/b"])
def test_what_is_not_ours_in_a_store_of_ours_is_never_removed(source: Path, tmp_path: Path, place: str) -> None:
    run(source, tmp_path / "out")
    put(tmp_path / "out" / place)
    write_file(source / "new_demo.hdf5", {"demo_0": demo_arrays(make_world(9))}, "new")
    before = read_tree(tmp_path / "out")
    with pytest.raises(UsageError, match=f"{place}.*move them away"):
        run(source, tmp_path / "out")
    assert read_tree(tmp_path / "out") == before
    (tmp_path / "out" / place).unlink()
    assert run(source, tmp_path / "out").changed


def test_a_shard_folder_that_became_a_link_is_refused(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    os.rename(tmp_path / "out/shards", tmp_path / "big-disk")
    (tmp_path / "out/shards").symlink_to(tmp_path / "big-disk")
    with pytest.raises(UsageError, match=r"\['shards'\] are links"):
        run(source, tmp_path / "out")


def test_an_unfinished_ingest_is_ours_by_its_claim_and_its_leftovers_go(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipelines.ingest.commit

    with monkeypatch.context() as patch:
        patch.setattr(pipelines.ingest.commit, "write_merged", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "out")
    held = holdings(tmp_path / "out")
    assert held is not None
    assert len(held.units) == 2
    assert (tmp_path / "out" / CLAIM).is_file()
    gone = sorted(source.iterdir())[0]
    gone.unlink()
    assert run(source, tmp_path / "out").changed  # no store was committed, so nothing is lost
    assert not (tmp_path / "out" / CLAIM).exists()
    run(source, tmp_path / "fresh")
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "fresh")


def test_episodes_go_with_their_source_only_when_told_to(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    before = read_tree(tmp_path / "out")
    gone = sorted(source.iterdir())[0]
    kept = gone.read_bytes()
    gone.unlink()
    with pytest.raises(UsageError, match=rf"{gone.name}.* are gone, and the store has 1 episodes of them.*--prune"):
        run(source, tmp_path / "out")
    assert read_tree(tmp_path / "out") == before
    assert run(source, tmp_path / "out", prune=True).episodes == 1
    assert verify_store(tmp_path / "out") == []
    gone.write_bytes(kept)
    assert run(source, tmp_path / "out").episodes == 2


def test_a_killed_prune_does_not_forget_what_the_store_had(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipelines.ingest.commit

    run(source, tmp_path / "out")
    gone = sorted(source.iterdir())[0]
    gone.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.ingest.commit, "write_merged", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "out", prune=True)
    with pytest.raises(UsageError, match="--prune"):
        run(source, tmp_path / "out")
    run(source, tmp_path / "out", prune=True)
    assert len(Store.open(tmp_path / "out").episodes) == 1


def flipped(out: Path) -> None:
    data = bytearray((out / "manifest.json").read_bytes())
    data[len(data) // 2] ^= 1
    (out / "manifest.json").write_bytes(data)


def resealed(**changes: Any) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        fields = {**json.loads((out / "manifest.json").read_bytes()), **changes}
        (out / "manifest.json").write_bytes(durable.json_bytes(seal(fields)))

    return change


UNREADABLE: dict[str, Callable[[Path], None]] = {
    "a flipped bit": flipped,
    "empty": lambda out: put(out / "manifest.json", b""),
    "objects of another kind": resealed(objects=[{}]),
    "sources of another kind": resealed(sources=[{"episodes": 1}]),
}


@pytest.mark.parametrize("damage", UNREADABLE)
def test_a_manifest_that_cannot_be_read_does_not_make_episodes_forgotten(
    source: Path, tmp_path: Path, damage: str
) -> None:
    os.rename(sorted(source.iterdir())[0], gone := source / "a cup, tea_demo.hdf5")
    run(source, tmp_path / "out")
    whole = read_tree(tmp_path / "out")
    UNREADABLE[damage](tmp_path / "out")
    kept = gone.read_bytes()
    gone.unlink()
    before = read_tree(tmp_path / "out")
    with pytest.raises(UsageError, match=r"'a=20cup=2c=20tea_demo'.* are gone, and the store has 1 episodes of them"):
        run(source, tmp_path / "out")
    assert read_tree(tmp_path / "out") == before
    gone.write_bytes(kept)
    run(source, tmp_path / "out")
    assert read_tree(tmp_path / "out") == whole
    UNREADABLE[damage](tmp_path / "out")
    gone.unlink()
    assert run(source, tmp_path / "out", prune=True).episodes == 1
    assert verify_store(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["manifest.json", CLAIM])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_manifest_that_the_system_does_not_give_stops_the_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    run(source, tmp_path / "out")
    write_claim(tmp_path / "out", "toy", Holdings())
    write_file(source / "new_demo.hdf5", {"demo_0": demo_arrays(make_world(9))}, "new")
    before, read = read_tree(tmp_path / "out"), Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self.name == name:
            raise OSError(number, os.strerror(number), str(self))
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(OSError, match=name):
            run(source, tmp_path / "out")
    assert read_tree(tmp_path / "out") == before


@pytest.mark.parametrize(
    "fields",
    [{}, {"units": 5, "sources": {}}, {"units": [["a"]], "sources": {}}, {"units": [], "sources": []},
     {"units": [], "sources": {"a": "many"}}],
)  # fmt: skip
def test_a_sealed_claim_that_is_none_claims_nothing(source: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    run(source, tmp_path / "out")
    put(tmp_path / "out" / CLAIM, durable.json_bytes(seal({"ingest": "toy", **fields})))
    gone = sorted(source.iterdir())[0]
    gone.unlink()
    with pytest.raises(UsageError, match=f"{gone.name}.* are gone"):
        run(source, tmp_path / "out")
    assert run(source, tmp_path / "out", prune=True).episodes == 1
    put(tmp_path / "theirs" / CLAIM, durable.json_bytes(seal({"ingest": "toy", **fields})))
    put(tmp_path / "theirs/shards/train.tar")
    with pytest.raises(UsageError, match="choose another"):
        run(source, tmp_path / "theirs")


@pytest.mark.parametrize("place", ["features/kept", "features/new/deep", "latents", "shards/more", "other", "link"])
def test_no_store_goes_into_a_store(source: Path, tmp_path: Path, place: str) -> None:
    run(source, tmp_path / "store")
    made = begin(tmp_path / "store", "features", "kept", {"content_hash": "x"}, {"x": ArraySpec((1, 2), "float32", 1)})
    write_region(made.root, "x", made.arrays["x"], 0, np.zeros((1, 2), np.float32))
    made.commit({})
    if place == "link":
        (tmp_path / "link").symlink_to("store/features/kept")
    before = listing(tmp_path)
    with pytest.raises(UsageError, match=r"lies in the store .*store, where nothing is written .* Nothing was changed"):
        run(source, tmp_path / place if place == "link" else tmp_path / "store" / place)
    assert listing(tmp_path) == before


def test_no_store_goes_into_one_that_is_being_made(source: Path, tmp_path: Path) -> None:
    write_claim(tmp_path / "store", "toy", Holdings(frozenset(), {}))
    with pytest.raises(UsageError, match="lies in the store"):
        run(source, tmp_path / "store/features/kept")


def test_a_derived_folder_that_was_moved_is_not_a_store(source: Path, tmp_path: Path) -> None:
    put(tmp_path / "out/manifest.json", seal_bytes({"content_hash": "x"}, {}))
    with pytest.raises(UsageError, match="expected an empty folder, or a store of ours"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["manifest.json", CLAIM])
def test_a_folder_under_the_name_of_a_file_of_ours_is_nobodys_to_remove(
    source: Path, tmp_path: Path, name: str
) -> None:
    run(source, tmp_path / "out")
    if name == "manifest.json":
        (tmp_path / "out" / name).unlink()
    put(tmp_path / "out" / name / "thesis.txt")
    before = listing(tmp_path / "out")
    with pytest.raises(UsageError, match=rf"\['{name}'\] should be files, and are not; .*Nothing was changed"):
        run(source, tmp_path / "out")
    assert listing(tmp_path / "out") == before
