"""Derived folders are listed with what they are, and those that nobody can open any more are removed."""

from pathlib import Path

import numpy as np
import pytest

from stores.arrays import ArraySpec, write_region
from stores.derived import begin
from stores.kept import list_kept, remove_kept, useless
from stores.manifest import content_hash
from stores.summary import inspect_store
from stores.verify import verify_store
from tests.stores.make_store import make_tiny_store

SPEC = ArraySpec((4, 2), "float32", 4)


def write(store: Path, name: str, own: str, finish: bool = True) -> Path:
    folder = begin(store, "latents", name, {"content_hash": own, "encoder": name}, {"z": SPEC})
    if finish:
        write_region(folder.root, "z", SPEC, 0, np.zeros((4, 2), np.float32))
        folder.commit({"step": 3})
    return folder.root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_tiny_store(tmp_path / "store")
    own = content_hash(tmp_path / "store")
    write(tmp_path / "store", "good", own)
    write(tmp_path / "store", "old", "0" * 64)
    write(tmp_path / "store", "begun", own, finish=False)
    (write(tmp_path / "store", "short", own) / "z/c/0/0").write_bytes(b"")
    return tmp_path / "store"


def test_every_folder_is_listed_with_what_it_is(store: Path) -> None:
    found = {item.path: item for item in list_kept(store)}
    states = {path.split("/")[1]: item.state for path, item in found.items() if path.startswith("latents/")}
    assert states == {"good": "finished", "old": "stale", "begun": "unfinished", "short": "damaged"}
    statistics = [item for path, item in found.items() if path.startswith("stats/")]
    assert [item.state for item in statistics] == ["finished"]
    good = found["latents/good"]
    assert (good.made_from["encoder"], good.about) == ("good", {"step": 3})
    assert good.bytes == sum(path.stat().st_size for path in (store / "latents/good").rglob("*") if path.is_file())
    rows = {row["folder"]: row for row in inspect_store(store)["derived"]}
    assert (rows["latents/old"]["state"], rows["latents/good"]["size"]) == ("stale", good.bytes)


def test_what_no_reader_takes_is_removed_and_the_rest_stays(store: Path) -> None:
    found = useless(store)
    assert [item.path for item in found] == ["latents/begun", "latents/old", "latents/short"]
    assert list(remove_kept(store, found)) == found
    assert {path.name for path in (store / "latents").iterdir()} == {"good"}
    assert useless(store) == []
    assert verify_store(store) == []
