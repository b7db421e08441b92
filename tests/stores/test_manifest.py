"""Manifest, index tables and language cache: same input same bytes, damage and contradictions named."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores import schema
from stores.disk import durable
from stores.errors import StoreCorrupt, StoreError, StoreMissing, UsageError
from stores.language import LANGUAGE_FILE, LanguageCache, LanguageRow, write_language
from stores.made_by import made_by
from stores.manifest import MANIFEST, Manifest, StoreObject, content_hash, hash_objects, seal
from stores.reader import Store
from stores.tables import EPISODES_FILE, SEGMENTS_FILE, check_tables, parse_table, table_bytes, write_table
from stores.verify import verify_store
from tests.stores.make_store import make_tiny_store, sealed_text

WINDOW = schema.SEGMENT_FRAMES


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store")
    make_tiny_store(path)
    return path


def test_a_manifest_comes_back_as_it_was(root: Path) -> None:
    manifest = Manifest.load(root)
    assert Manifest.from_bytes(manifest.to_bytes(), "copy") == manifest
    assert replace(manifest, objects=manifest.objects[::-1]).to_bytes() == manifest.to_bytes()
    assert manifest.content_hash == content_hash(root)


@given(st.data())
def test_any_flipped_bit_of_the_manifest_is_noticed(root: Path, data: st.DataObject) -> None:
    content = bytearray((root / MANIFEST).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(StoreError, match="here"):
        Manifest.from_bytes(bytes(content), "here")


def test_another_schema_version_is_refused_by_number(root: Path) -> None:
    newer = replace(Manifest.load(root), schema_version=2)
    with pytest.raises(StoreError, match="expected schema version 1, got 2"):
        Manifest.from_bytes(newer.to_bytes(), "here")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a//b", "a\\b", ""])
def test_a_manifest_that_points_outside_is_refused(root: Path, path: str) -> None:
    manifest = Manifest.load(root)
    objects = (*manifest.objects, replace(manifest.objects[0], path=path))
    with pytest.raises(StoreCorrupt, match="paths below the store"):
        Manifest.from_bytes(replace(manifest, objects=objects).to_bytes(), "here")


@pytest.mark.parametrize(
    ("field", "value"),
    [("objects", {"a": 1}), ("objects", ["a"]), ("counts", 3), ("counts", {"episodes": "1"}), ("splits", []),
     ("sources", "text"), ("instructions", None), ("suite", 1), ("config", [[1]]), ("obs_spec", 0), ("provenance", [])],
)  # fmt: skip
def test_a_malformed_manifest_is_one_clear_error(root: Path, field: str, value: Any) -> None:
    fields = {**json.loads((root / MANIFEST).read_bytes()), field: value}
    with pytest.raises(StoreCorrupt, match=r"^here: manifest\.json.*expected"):
        Manifest.from_bytes(durable.json_bytes(seal(fields)), "here")


def test_a_deeply_nested_manifest_is_one_clear_error(root: Path) -> None:
    fields = {name: json.dumps(value) for name, value in json.loads((root / MANIFEST).read_bytes()).items()}
    del fields["sha256"]
    deep = fields["config"][:-1] + ', "a": ' + 500 * "[" + 500 * "]" + "}"
    for field, text in (("config", deep), ("sources", 100_000 * "[")):
        with pytest.raises(StoreCorrupt, match=r"^here: manifest\.json: (nested too deeply|not JSON)"):
            Manifest.from_bytes(sealed_text({**fields, field: text}), "here")


def test_segments_in_a_shard_that_the_manifest_does_not_name_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "store")
    manifest = Manifest.load(root)
    objects = tuple(item for item in manifest.objects if "red_block" not in item.path)
    replace(manifest, objects=objects).save(tmp_path / "store")
    with pytest.raises(StoreCorrupt, match=r"do not fill .*red_block"):
        Store.open(tmp_path / "store")


def test_no_manifest_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="is not a store"):
        Store.open(tmp_path)
    with pytest.raises(StoreMissing, match="is not a store"):
        content_hash(tmp_path / "nothing")


def test_hashes_are_the_same_for_any_threads(root: Path) -> None:
    objects = list(Manifest.load(root).objects)
    for threads in (1, 3):
        assert hash_objects(root, [item.path for item in objects], threads) == objects


def test_tables_are_reproducible_and_typed(root: Path) -> None:
    for name, wanted in ((EPISODES_FILE, schema.EPISODES), (SEGMENTS_FILE, schema.SEGMENTS)):
        data = (root / name).read_bytes()
        table = parse_table(data, wanted, name)
        assert table.schema == wanted
        assert table_bytes(table, wanted) == data
        assert table_bytes(pa.Table.from_pylist(table.to_pylist(), schema=wanted), wanted) == data
        assert b"pandas" not in data
        for broken in (data[:-1], data[: len(data) // 2], b""):
            with pytest.raises(StoreCorrupt, match=name):
                parse_table(broken, wanted, name)
        with pytest.raises(StoreCorrupt, match="expected columns"):
            parse_table(data, pa.schema([("other", pa.int64())]), name)
    with pytest.raises(UsageError, match="expected columns"):
        table_bytes(pa.table({"x": [1]}), schema.EPISODES)


def _changed(table: pa.Table, row: int, **values: object) -> pa.Table:
    rows = table.to_pylist()
    rows[row].update(values)
    return pa.Table.from_pylist(rows, schema=table.schema)


def check(episodes: pa.Table, segments: pa.Table, counts: dict[str, int]) -> None:
    """`check_tables` of whole tables."""
    ep, seg = (
        {
            name: table[name].to_numpy()
            for name in table.schema.names
            if pa.types.is_integer(table.schema.field(name).type)
        }
        for table in (episodes, segments)
    )
    check_tables(ep, seg, sorted(set(episodes["split"].to_pylist())), counts, WINDOW, "here")


@pytest.mark.parametrize(
    ("which", "change"),
    [
        ("episodes", {"episode": 7}),
        ("episodes", {"first_frame": 1}),
        ("episodes", {"first_segment": 1}),
        ("episodes", {"frames": 39}),
        ("episodes", {"steps": 12}),
        ("episodes", {"split": "test"}),
        ("segments", {"segment": 3}),
        ("segments", {"episode": 0}),
        ("segments", {"first_step": 17}),
        ("segments", {"steps": 15}),
        ("segments", {"observations": 2_000_000}),
        ("segments", {"observations": 0}),
        ("segments", {"observations": 1}),
    ],
)
def test_contradicting_tables_are_refused(root: Path, which: str, change: dict[str, object]) -> None:
    store = Store.open(root)
    tables = {"episodes": store.episodes, "segments": store.segments}
    check(**tables, counts=store.manifest.counts)
    tables[which] = _changed(tables[which], 1 if which == "episodes" else 4, **change)
    with pytest.raises(StoreCorrupt, match=r"here: .*contradict"):
        check(**tables, counts=store.manifest.counts)


def test_segments_longer_than_the_window_are_refused(root: Path) -> None:
    """Of a window's length is what a reader makes room for."""
    store = Store.open(root)
    with pytest.raises(StoreCorrupt, match=rf"segments have 1 to {WINDOW - 1} steps"):
        check_tables(store.episode_columns, store.segment_columns, ["train"], store.manifest.counts, WINDOW - 1, "here")


@pytest.mark.parametrize(
    ("field", "change", "match"),
    [
        ("config", {}, r"config: expected fields .*window \(int\)"),
        ("config", {"chunk": None}, r"config: expected fields .*chunk \(int\).*got .*chunk \(NoneType\)"),
        ("config", {"codec": None}, r"config: expected fields .*got .*codec \(NoneType\)"),
        ("config", {"codec": "webp"}, r"config: expected 1 or more steps, and a codec of .*'webp'"),
        ("config", {"window": 0}, r"config: expected 1 or more steps"),
        ("sources", [None], r"sources\[0\]: expected a file with its notes, got None"),
        ("sources", [{"file": "a", "notes": None}], r"sources\[0\]: expected a file with its notes"),
        ("sources", [{"file": 3}], r"sources\[0\]"),
    ],
)
def test_a_manifest_that_lacks_what_readers_need_is_one_clear_error(
    root: Path, field: str, change: Any, match: str
) -> None:
    fields = json.loads((root / MANIFEST).read_bytes())
    del fields["sha256"]
    whole = {**fields[field], **change} if field == "config" and change else change
    texts = {name: json.dumps(value) for name, value in {**fields, field: whole}.items()}
    with pytest.raises(StoreCorrupt, match=f"here: manifest.json: {match}"):
        Manifest.from_bytes(sealed_text(texts), "here")


@pytest.mark.parametrize("name", ["steps", "shard"])
def test_a_missing_value_in_a_table_is_damage(root: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(root, tmp_path / "store")
    path = tmp_path / "store" / SEGMENTS_FILE
    table = pq.read_table(path)
    place = table.schema.get_field_index(name)
    values = table[name].to_pylist()
    pq.write_table(table.set_column(place, name, pa.array([None, *values[1:]], table.schema.field(name).type)), path)
    data = path.read_bytes()
    manifest = Manifest.load(root)
    changed = StoreObject(SEGMENTS_FILE, len(data), hashlib.sha256(data).hexdigest())
    objects = tuple(changed if item.path == SEGMENTS_FILE else item for item in manifest.objects)
    replace(manifest, objects=objects).save(tmp_path / "store")
    with pytest.raises(StoreCorrupt, match=rf"segments.parquet: column {name}: 1 of \d+ values are missing"):
        Store.open(tmp_path / "store")
    assert any(f"column {name}: 1 of" in str(problem) for problem in verify_store(tmp_path / "store"))


def test_a_dropped_segment_is_noticed(root: Path) -> None:
    store = Store.open(root)
    with pytest.raises(StoreCorrupt, match="contradict"):
        check(store.episodes, store.segments.slice(0, len(store) - 1), store.manifest.counts)


def _row(text: str, value: float = 0.5, revision: str = "r1", width: int = 512) -> LanguageRow:
    return LanguageRow(text, "clip", revision, np.full(width, value, np.float32))


def test_language_is_sorted_and_never_substituted(tmp_path: Path) -> None:
    rows = [_row("put b", 0.25), _row("put a", 0.75)]
    write_language(tmp_path / LANGUAGE_FILE, rows)
    first = (tmp_path / LANGUAGE_FILE).read_bytes()
    write_language(tmp_path / LANGUAGE_FILE, rows[::-1])
    assert (tmp_path / LANGUAGE_FILE).read_bytes() == first
    cache = LanguageCache.load(tmp_path, 512)
    assert (cache.encoder, cache.revision) == ("clip", "r1")
    np.testing.assert_array_equal(cache.vector("put a"), np.full(512, 0.75, np.float32))
    with pytest.raises(StoreMissing, match=r"no embedding of 'put c'; .*'put a', 'put b'"):
        cache.vector("put c")


@pytest.mark.parametrize(
    "rows",
    [
        [_row("a"), _row("a")],
        [_row("a"), _row("b", revision="r2")],
        [_row("a", np.nan)],
        [_row("a"), _row("b", width=3)],
    ],
)
def test_a_bad_language_cache_is_neither_written_nor_read(tmp_path: Path, rows: list[LanguageRow]) -> None:
    from stores.language import LANGUAGE

    with pytest.raises(UsageError, match=r"language cache|embedding of"):
        write_language(tmp_path / LANGUAGE_FILE, rows)
    assert list(tmp_path.iterdir()) == []
    dicts = [{**vars(row), "embedding": row.embedding.tolist()} for row in rows]
    write_table(tmp_path / LANGUAGE_FILE, dicts, LANGUAGE)
    with pytest.raises(StoreCorrupt, match=r"language\.parquet"):
        LanguageCache.load(tmp_path, 512)


@pytest.mark.parametrize(
    "said", [{"expert": "1"}, ["expert"], "expert", {"expert": 3}, {"expert": -1}, {"expert": True}]
)
def test_who_made_demonstrations_is_one_error_where_it_cannot_be(said: object) -> None:
    with pytest.raises(StoreCorrupt, match=r"manifest.json: sources: made_by: expected counts of 2 episodes by text"):
        made_by([{"episodes": 2, "made_by": said}])
    assert made_by([{"episodes": 2}, {"episodes": 1, "made_by": {"expert": 1}}]) == {"": 2, "expert": 1}
