"""Derived folders: keyed by what made them, written by row range, sealed last; stale and damaged are refused."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stores.arrays import ArraySpec, write_region
from stores.derived import (
    BEGUN,
    Derived,
    Unfinished,
    begin,
    key_of,
    open_derived,
    parse_seal,
    room_needed,
    seal_bytes,
)
from stores.disk import durable
from stores.disk.lock import lock
from stores.errors import StaleKey, StoreCorrupt, StoreMissing, UsageError
from stores.layout import DERIVED, is_data, is_derived, is_leftover, is_seal, seal_path
from stores.sharded import ShardedSpec, write_shard
from stores.verify import verify_store
from tests.stores.faults import STRIDES, every_crash, every_pair, read_tree
from tests.stores.make_store import make_tiny_store, sealed_text

MADE = {"content_hash": "ab" * 32, "encoder": "tower", "revision": "r1"}
ROWS = np.arange(50 * 3, dtype=np.float16).reshape(50, 3)
ARRAYS = {"agentview": ArraySpec(ROWS.shape, "float16", 16)}
MAKE = "statevla features"


def write(root: Path, name: str = "tower", chunks: range | None = None) -> str:
    """Whatever of the chunks is missing, then the seal."""
    folder = begin(root, "features", name, MADE, ARRAYS)
    spec = folder.arrays["agentview"]
    for m in folder.missing("agentview") if chunks is None else chunks:
        rows = ROWS[m * spec.chunk : (m + 1) * spec.chunk]
        write_region(folder.root, "agentview", spec, m * spec.chunk, rows)
    return folder.commit({"pooled": False})


def read(root: Path, **made_from: str) -> Derived:
    return open_derived(root, "features", {**MADE, **made_from}, MAKE, name="tower")


def test_rows_come_back_by_range_with_what_made_them(tmp_path: Path) -> None:
    assert write(tmp_path) == key_of(MADE)
    found = read(tmp_path)
    assert (found.key, found.made_from, found.about) == (key_of(MADE), MADE, {"pooled": False})
    np.testing.assert_array_equal(found.array("agentview").read(10, 37), ROWS[10:37])
    assert {item.path for item in found.objects} == {
        "zarr.json", "agentview/zarr.json", *(f"agentview/c/{m}/0" for m in range(4))
    }  # fmt: skip
    with pytest.raises(StoreMissing, match=r"no array 'wrist', only \['agentview'\]"):
        found.array("wrist")


def test_the_key_is_of_all_that_made_it_in_any_order() -> None:
    assert key_of(MADE) == key_of(dict(reversed(MADE.items())))
    assert len({key_of({**MADE, name: "other"}) for name in MADE}) == len(MADE)


def test_made_from_something_else_is_stale_and_says_what(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match=f"not there yet; run `{MAKE}`"):
        read(tmp_path)
    write(tmp_path)
    with pytest.raises(StaleKey, match=f"another revision than this store's; run `{MAKE}` again"):
        read(tmp_path, revision="r2")


def test_a_name_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(StoreMissing) as told:
        open_derived(tmp_path, "features", MADE, MAKE, name="towr")
    end = f"features/towr/manifest.json: features are not there yet (there are: tower); run `{MAKE}`"
    assert str(told.value) == f"{tmp_path}: {end}"
    with pytest.raises(StoreMissing, match="latents are not there yet; run"):  # features are no latents
        open_derived(tmp_path, "latents", MADE, MAKE, name="tower")


def test_an_unfinished_folder_is_none_and_is_gone_on_with(tmp_path: Path) -> None:
    folder = begin(tmp_path, "features", "tower", MADE, ARRAYS)
    write_region(folder.root, "agentview", ARRAYS["agentview"], 0, ROWS[:16])
    with pytest.raises(UsageError, match="3 chunks are not written yet, first 1"):
        folder.commit({})
    with pytest.raises(StoreMissing, match="not finished"):
        read(tmp_path)
    again = begin(tmp_path, "features", "tower", MADE, ARRAYS)
    assert again.missing("agentview") == [1, 2, 3]
    other = begin(tmp_path, "features", "tower", {**MADE, "revision": "r2"}, ARRAYS)
    assert other.missing("agentview") == [0, 1, 2, 3]


SHARDED = ShardedSpec(ROWS.shape, "float16", 4, 16)


def fill(root: Path, spec: ArraySpec | ShardedSpec, shards: Iterable[int] | None = None) -> Unfinished:
    """Those shards (chunks, of an array without), or what is missing."""
    folder = begin(root, "features", "tower", MADE, {"agentview": spec})
    for m in folder.missing("agentview") if shards is None else shards:
        rows = ROWS[m * 16 : (m + 1) * 16]
        if isinstance(spec, ShardedSpec):
            write_shard(folder.root, "agentview", spec, m, [rows])
        else:
            write_region(folder.root, "agentview", spec, m * 16, rows)
    return folder


@pytest.mark.parametrize("spec", [ARRAYS["agentview"], SHARDED])
@pytest.mark.parametrize("place", [0, 60, -1])
def test_what_an_interrupted_writer_left_is_not_sealed_damaged(
    tmp_path: Path, spec: ArraySpec | ShardedSpec, place: int
) -> None:
    """Two faults: the writer dies, then bits flip in what it had finished. The seal would be of those bits."""
    fill(tmp_path / "whole", spec).commit({})
    fill(tmp_path / "hurt", spec, [0, 1])
    for hurt in (f"agentview/{list(spec.files())[1]}", "agentview/zarr.json", "zarr.json"):
        file = tmp_path / "hurt/features/tower" / hurt
        data = bytearray(file.read_bytes())
        data[place] ^= 4
        file.write_bytes(data)
    again = begin(tmp_path / "hurt", "features", "tower", MADE, {"agentview": spec})
    assert again.missing("agentview") == [1, 2, 3]
    fill(tmp_path / "hurt", spec).commit({})
    assert read_tree(tmp_path / "hurt") == read_tree(tmp_path / "whole")


def test_what_is_removed_while_it_is_read_is_to_be_computed_again(tmp_path: Path) -> None:
    spec = ShardedSpec((4, 2), "float32", 2, 4)
    folder = begin(tmp_path, "latents", "run", MADE, {"z": spec})
    write_shard(folder.root, "z", spec, 0, [np.ones((4, 2), np.float32)])
    folder.commit({})
    array = open_derived(tmp_path, "latents", MADE, MAKE, "run").sharded("z")
    array.read(0, 1)
    durable.remove(folder.root)
    with pytest.raises(StoreMissing, match=r"z/c/0/0 is missing; latents/run was removed: compute it again$"):
        array.read(3, 4)


def test_a_file_in_its_place_stays_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "run").write_text("mine")
    with pytest.raises(UsageError, match="latents/run: expected a folder of latents, or nothing, got a file"):
        begin(tmp_path, "latents", "run", MADE, ARRAYS)
    assert (tmp_path / "latents" / "run").read_text() == "mine"


@pytest.mark.crash
@pytest.mark.parametrize("spec", [pytest.param(ARRAYS["agentview"], marks=pytest.mark.slow), SHARDED])
def test_what_is_sealed_is_durable_whoever_wrote_it(tmp_path: Path, spec: ArraySpec | ShardedSpec) -> None:
    def work(root: Path) -> None:
        with lock(root, "test"):
            fill(root, spec).commit({})

    fill(tmp_path / "whole", spec).commit({})
    whole = read_tree(tmp_path / "whole/features")
    pairs = every_pair(tmp_path, lambda root: None, work, work, ("kill", "power"), "derived, two faults", (99, 1))
    for crash, ended, root in pairs:
        assert not ended or read_tree(root / "features") == whole, crash


@pytest.mark.parametrize("left", ["nothing", "a part", "a file of somebody else"])
def test_a_writer_that_ends_by_an_error_leaves_what_it_finished_or_nothing(tmp_path: Path, left: str) -> None:
    def fail(folder: Unfinished) -> None:
        with folder:
            if left == "a part":
                write_region(folder.root, "agentview", ARRAYS["agentview"], 0, ROWS[:16])
            elif left != "nothing":
                (folder.root / "notes.txt").write_text("mine")
            staged = folder.root / ".tmp-0123456789ab-shards/agentview/c"
            staged.mkdir(parents=True)
            (staged / "1").write_bytes(b"half of it")
            raise OSError("quota")

    with pytest.raises(OSError, match="quota"):
        fail(begin(tmp_path, "features", "tower", MADE, ARRAYS))
    assert (tmp_path / "features/tower").exists() == (left != "nothing")
    missing = begin(tmp_path, "features", "tower", MADE, ARRAYS).missing("agentview")
    assert missing == ([1, 2, 3] if left == "a part" else [0, 1, 2, 3])
    assert (tmp_path / "features/tower/notes.txt").exists() == (left == "a file of somebody else")


def test_what_needs_room_is_what_is_not_there_yet(tmp_path: Path) -> None:
    """Of the same array what is missing; what else has the name is removed first, and gives its room."""
    total = sum(SHARDED.files().values())
    assert room_needed(tmp_path, "features", "tower", {"agentview": SHARDED}) == total
    fill(tmp_path, SHARDED, [0, 3])
    there = SHARDED.shard_bytes(0) + SHARDED.shard_bytes(3)
    assert room_needed(tmp_path, "features", "tower", {"agentview": SHARDED}) == total - there
    assert room_needed(tmp_path, "features", "tower", {"agentview": ShardedSpec((4, 3), "float16", 4, 16)}) == 0


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "seal"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path)
    chunk, seal = tmp_path / "features/tower/agentview/c/2/0", tmp_path / "features/tower/manifest.json"
    if damage == "missing":
        chunk.unlink()
    elif damage == "short":
        chunk.write_bytes(chunk.read_bytes()[:-1])
    elif damage == "flipped":
        chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    else:
        seal.write_bytes(seal.read_bytes().replace(b"false", b"true"))
    with pytest.raises(StoreCorrupt, match="altered" if damage == "seal" else "agentview/c/2/0"):
        read(tmp_path).array("agentview").read()


def test_verify_knows_finished_and_unfinished_ones(tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "store")
    write(tmp_path / "store")
    assert verify_store(tmp_path / "store") == []
    begin(tmp_path / "store", "latents", "run", MADE, {"z": ArraySpec((4, 2), "float32", 4)})
    found = verify_store(tmp_path / "store")
    assert {problem.object.split("/")[1] for problem in found} == {"run"}
    assert all("not finished" in problem.problem for problem in found)


@pytest.mark.parametrize(
    "place", ["features/../x", "features/a/b", "features/", "features/ ", "features/.tmp-a", "thumbs/a"]
)
def test_other_names_are_refused(tmp_path: Path, place: str) -> None:
    kind, _, name = place.partition("/")
    with pytest.raises(UsageError, match="derived folder"):
        begin(tmp_path, kind, name, MADE, ARRAYS)


@pytest.mark.crash
@STRIDES
def test_a_crash_leaves_the_old_folder_none_or_the_new_one_and_a_rerun_mends_it(tmp_path: Path, stride: int) -> None:
    def work(root: Path) -> None:
        with lock(root, "test"):
            write(root)

    for crash, root in every_crash(tmp_path, lambda root: None, work, stride=stride):
        with contextlib.suppress(StoreMissing):  # any other error would say that it is there
            np.testing.assert_array_equal(read(root).array("agentview").read(), ROWS)
        work(root)
        assert read_tree(root) == read_tree(tmp_path / "undisturbed"), crash


def test_layout_tells_kinds_apart() -> None:
    assert all(map(is_data, ("shards/a.tar", "frames.zarr/action/c/0/0", "episodes.parquet", "language.parquet")))
    assert not any(map(is_data, ("units/a.json", "quarantine.jsonl", "manifest.json", "stats/a.json", "shardsx/a")))
    assert is_derived("features/a/x")
    assert not is_derived("features")
    assert all(is_seal(seal_path(kind, "a")) for kind in DERIVED)
    assert not any(
        map(is_seal, ("manifest.json", "stats/.tmp-1-a.json", "features/a/b/manifest.json", "shards/a/manifest.json"))
    )
    assert is_leftover("shards/.tmp-00-a.tar")
    assert not is_leftover(f"features/a/{BEGUN}")


def test_a_seal_without_objects_is_one_file() -> None:
    assert b'"objects": []' in seal_bytes(MADE, {"mean": [1.0]})


GOOD = {"path": "zarr.json", "bytes": 1, "sha256": "0" * 64}
DEEP = 500 * "[" + 500 * "]"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"objects": {"a": GOOD}}, r"expected fields .*objects \(list\).*got .*objects \(dict\)"),
        ({"objects": None}, "got .*objects .NoneType"),
        ({"objects": ["zarr.json"]}, "expected objects {path, bytes, sha256}, got zarr.json"),
        ({"objects": [[GOOD]]}, "expected objects {path, bytes, sha256}"),
        ({"objects": [{**GOOD, "bytes": "1"}]}, "expected objects {path, bytes, sha256}"),
        ({"objects": [{**GOOD, "bytes": True}]}, "expected objects {path, bytes, sha256}"),
        ({"objects": [{**GOOD, "bytes": -1}]}, "expected paths below the store, sizes"),
        ({"objects": [{**GOOD, "path": 7}]}, "expected objects {path, bytes, sha256}"),
        ({"objects": [{**GOOD, "path": "../x"}]}, "expected paths below the store"),
        ({"objects": [{**GOOD, "sha256": "../../" + 58 * "a"}]}, "expected .* sha256 in hex"),
        ({"objects": [{**GOOD, "sha256": 63 * "a"}]}, "expected .* sha256 in hex"),
        ({"objects": [{"path": "zarr.json"}]}, "expected objects {path, bytes, sha256}"),
        ({"made_from": [1]}, r"made_from \(list\)"),
        ({"about": "text"}, r"about \(str\)"),
        ({"key": 5}, r"key \(int\)"),
        ({"key": "0" * 16}, "the key of made_from, got '0000000000000000'"),
        ({"more": 1}, "more .int"),
    ],
)
def test_a_malformed_seal_is_one_clear_error(changed: dict[str, Any], told: str) -> None:
    fields = {"key": key_of(MADE), "made_from": MADE, "about": {}, "objects": [GOOD], **changed}
    with pytest.raises(StoreCorrupt, match=f"^here: .*{told}"):
        parse_seal(sealed_text({name: json.dumps(value) for name, value in fields.items()}), "here")


@pytest.mark.parametrize("field", ["made_from", "about", "objects"])
@pytest.mark.parametrize("text", [DEEP, 100_000 * "["])
def test_a_deeply_nested_seal_is_one_clear_error(field: str, text: str) -> None:
    fields = {"key": f'"{key_of(MADE)}"', "made_from": json.dumps(MADE), "about": "{}", "objects": "[]"}
    nested = f"[{text}]" if field == "objects" else f'{{"a": {text}}}'
    if field == "about" and text is DEEP:
        return  # content of any kind
    with pytest.raises(StoreCorrupt, match=r"^here: "):
        parse_seal(sealed_text({**fields, field: nested}), "here")
