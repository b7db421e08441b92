"""Derived folders are listed with what they are, and those that nobody can open any more are removed."""

from pathlib import Path

import numpy as np
import pytest

from stores.arrays import ArraySpec, write_region
from stores.derived import BEGUN, begin, open_derived
from stores.errors import StoreCorrupt, UsageError
from stores.kept import list_kept, named_kept, remove_kept, useless
from stores.manifest import content_hash
from stores.sharded import ShardedSpec, write_shard
from stores.summary import for_people, inspect_store
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
    assert {tuple(row) for row in for_people(inspect_store(store))["derived"]} == {("folder", "state", "size")}
    assert (rows["latents/old"]["state"], rows["latents/good"]["size"]) == ("stale", good.bytes)


def test_what_no_reader_takes_is_removed_and_the_rest_stays(store: Path) -> None:
    found = useless(store)
    assert [item.path for item in found] == ["latents/begun", "latents/old", "latents/short"]
    assert list(remove_kept(store, found)) == found
    assert {path.name for path in (store / "latents").iterdir()} == {"good"}
    assert useless(store) == []
    assert verify_store(store) == []


def test_what_is_finished_is_removed_by_its_name_alone(store: Path) -> None:
    (good,) = named_kept(store, ["latents/good/"])
    assert good.state == "finished"
    assert list(remove_kept(store, [good])) == [good]
    assert "latents/good" not in {item.path for item in list_kept(store)}
    with pytest.raises(UsageError, match=r"latents/good: no such derived folder; there are latents/begun, .*stats/"):
        named_kept(store, ["latents/begun", "latents/good"])


def test_what_changes_between_listing_and_removing_stays(store: Path) -> None:
    """Somebody finishes it, or makes another one of that name, while the other is being asked."""
    own = content_hash(store)
    found = useless(store)
    write(store, "begun", own)
    write(store, "old", own)
    assert [item.path for item in remove_kept(store, found)] == ["latents/short"]
    assert {path.name for path in (store / "latents").iterdir()} == {"good", "begun", "old"}
    (good,) = named_kept(store, ["latents/good"])
    write(store, "good", "0" * 64)
    assert list(remove_kept(store, [good])) == []


def test_what_somebody_puts_beside_finished_ones_between_naming_and_removing_stays(store: Path) -> None:
    named = named_kept(store, ["latents/good"])
    (store / "latents/good/notes.txt").write_text("of the user")
    assert list(remove_kept(store, named)) == []
    assert (store / "latents/good/notes.txt").read_text() == "of the user"


def test_a_writer_that_died_after_its_seal_leaves_a_sound_folder(store: Path) -> None:
    list(remove_kept(store, useless(store)))
    begun = store / "latents/good" / BEGUN
    folder = begin(store, "latents", "other", {"content_hash": content_hash(store)}, {"z": SPEC})
    begun.write_bytes((folder.root / BEGUN).read_bytes())
    assert {problem.object.split("/")[1] for problem in verify_store(store)} == {"other"}
    (other,) = useless(store)
    list(remove_kept(store, [other]))
    assert verify_store(store) == []


@pytest.mark.parametrize("sharded", [False, True])
def test_a_flipped_bit_is_mended_as_the_errors_say(store: Path, sharded: bool) -> None:
    """By `statevla clean` with the folder's name, then by making it again."""
    list(remove_kept(store, useless(store)))
    made = {"content_hash": content_hash(store), "encoder": "tower"}
    spec = ShardedSpec((4, 2), "float32", 2, 4)
    if sharded:
        folder = begin(store, "latents", "good", made, {"z": spec})
        write_shard(folder.root, "z", spec, 0, [np.zeros((4, 2), np.float32)])
        folder.commit({})
    else:
        write(store, "good", made["content_hash"])
        made["encoder"] = "good"
    (path,) = (path for path in (store / "latents/good/z/c").rglob("*") if path.is_file())
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)
    remedy = rf"run `statevla clean {store} latents/good`, then compute it again"
    (problem,) = verify_store(store)
    assert problem.problem.startswith("altered")
    assert problem.problem.endswith(remedy)
    found = open_derived(store, "latents", made, "x", name="good")
    with pytest.raises(StoreCorrupt, match=f"crc32c; {remedy}"):
        found.sharded("z").read(0, 4) if sharded else found.array("z").read()
    list(remove_kept(store, named_kept(store, ["latents/good"])))
    write(store, "good", made["content_hash"])
    assert verify_store(store) == []


@pytest.mark.parametrize(
    "name",
    ["latents/old/notes.txt", "latents/short/z/mine.npy", "latents/begun/c", "latents/mine/a", "features/thesis.tex",
     "stats/mine.json", "stats/notes.txt"],
)  # fmt: skip
def test_what_holds_files_of_somebody_else_stays(store: Path, name: str) -> None:
    (store / name).parent.mkdir(parents=True, exist_ok=True)
    (store / name).write_text("{}")
    folder = name if name.count("/") == 1 else "/".join(name.split("/")[:2])
    assert {item.path: item.state for item in list_kept(store)}[folder] == "foreign"
    assert list(remove_kept(store, useless(store)))
    with pytest.raises(UsageError, match="holds files that are not of"):
        named_kept(store, [folder])
    assert (store / name).read_text() == "{}"


def test_a_finished_folder_with_a_file_of_somebody_else_is_not_removed_by_its_name(store: Path) -> None:
    (store / "latents/good/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds files that are not of latents"):
        named_kept(store, ["latents/good"])


def test_files_of_somebody_else_are_not_replaced(store: Path) -> None:
    (store / "latents/old/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds files that are not of latents, so it is not replaced"):
        write(store, "old", content_hash(store))
    assert (store / "latents/old/notes.txt").read_text() == "mine"
