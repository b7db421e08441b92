"""What changes a store's identity, and what does not; and the bytes that every format leads to, held to the bit."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pipelines.ingest.unit
import stores.schema
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import IngestSummary, ingest
from pipelines.sources import libero
from stores.disk import durable
from stores.errors import StoreCorrupt, StoreError
from stores.images import encode_image
from stores.layout import is_data
from stores.manifest import Manifest, content_hash, seal
from stores.reader import Store
from stores.schema import FORMATS
from stores.segments import Span, segment_members
from stores.shards import write_shard
from stores.tables import table_bytes
from tests.pipelines.make_hdf5 import write_suite

BEFORE = Path(__file__).parents[1] / "fixtures" / "manifest_before_content_hash.json"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "source", tasks=2, demos=2)


def run(source: Path, out: Path, **options: Any) -> IngestSummary:
    config = {"suite": "toy", "language": "hashed", "codec": "png", **options}
    return ingest(IngestConfig(source=source, out=out, **config), isolated=False)


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def newer_code(patch: pytest.MonkeyPatch) -> None:
    """Another version of the toolkit and its libraries, with comments edited and a module renamed."""
    patch.setattr(pipelines.ingest.unit, "__version__", "9.9.9")
    patch.setattr(pipelines.ingest.unit.importlib.metadata, "version", lambda name: "99")
    pipelines.ingest.unit.writer.cache_clear()
    real = Path.read_bytes

    def edited(self: Path) -> bytes:
        return real(self) + (b"# a comment\n" if self.suffix == ".py" else b"")

    patch.setattr(Path, "read_bytes", edited)
    patch.setattr(libero, "__name__", "pipelines.sources.renamed")
    patch.setitem(sys.modules, "pipelines.sources.renamed", libero)


def test_another_version_of_code_and_libraries_makes_nothing_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, tmp_path / "store")
    before, identity = tree(tmp_path / "store"), content_hash(tmp_path / "store")
    with monkeypatch.context() as patch:
        newer_code(patch)
        again = run(source, tmp_path / "store")
        assert (again.units_reused, again.changed) == (2, False)
        assert tree(tmp_path / "store") == before
        run(source, tmp_path / "fresh")
    pipelines.ingest.unit.writer.cache_clear()
    fresh = Manifest.load(tmp_path / "fresh")
    assert fresh.content_hash == identity
    assert fresh.provenance["code_version"] == "9.9.9"
    assert fresh.provenance["libraries"]["numpy"] == "99"


def test_hashing_sources_makes_nothing_again_and_is_kept(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "store")
    before, identity = tree(tmp_path / "store"), content_hash(tmp_path / "store")
    told = run(source, tmp_path / "store", hash_sources=True)
    assert (told.units_reused, told.changed) == (2, True)
    assert content_hash(tmp_path / "store") == identity
    after = tree(tmp_path / "store")
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert all(row["sha256"] for row in Manifest.load(tmp_path / "store").sources)
    assert not run(source, tmp_path / "store").changed
    assert tree(tmp_path / "store") == after


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sources", lambda manifest: ({"file": "another.hdf5", "notes": ["elsewhere"]},)),
        ("provenance", lambda manifest: {**manifest.provenance, "code_version": "9"}),
        ("counts", lambda manifest: {**manifest.counts, "quarantined": 5}),
        ("objects", lambda manifest: tuple(item for item in manifest.objects if is_data(item.path))),
    ],
)
def test_provenance_and_records_are_no_part_of_identity(
    source: Path, tmp_path: Path, name: str, change: Callable[[Manifest], Any]
) -> None:
    run(source, tmp_path / "store")
    manifest = Manifest.load(tmp_path / "store")
    other = replace(manifest, **{name: change(manifest)})
    assert other != manifest
    assert other.content_hash == manifest.content_hash
    assert other.to_bytes() != manifest.to_bytes()  # sealed all the same


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("suite", lambda manifest: "another"),
        ("schema_version", lambda manifest: 2),
        ("obs_spec", lambda manifest: {**manifest.obs_spec, "control_hz": 10}),
        ("config", lambda manifest: {**manifest.config, "window": 8}),
        ("splits", lambda manifest: {"train": 1, "val": 3}),
        ("instructions", lambda manifest: ("do something else",)),
        ("objects", lambda manifest: tuple(
            replace(item, sha256="0" * 64) if item.path == "episodes.parquet" else item for item in manifest.objects
        )),
    ],
)  # fmt: skip
def test_what_a_reader_can_see_is_identity(
    source: Path, tmp_path: Path, name: str, change: Callable[[Manifest], Any]
) -> None:
    run(source, tmp_path / "store")
    manifest = Manifest.load(tmp_path / "store")
    assert replace(manifest, **{name: change(manifest)}).content_hash != manifest.content_hash


def test_a_manifest_with_another_content_hash_than_its_own_is_refused(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "store")
    path = tmp_path / "store" / "manifest.json"
    manifest = Manifest.load(tmp_path / "store")
    told = durable.json_bytes(seal({**__import__("json").loads(path.read_bytes()), "content_hash": "0" * 64}))
    with pytest.raises(StoreCorrupt, match=f"expected content_hash {manifest.content_hash}"):
        Manifest.from_bytes(told, "here")


@pytest.mark.parametrize(
    "raised", [("formats", name) for name in FORMATS] + [("unit", "FORMAT"), ("source", "format")], ids=str
)
def test_a_raised_format_makes_again_what_it_decides(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: tuple[str, str]
) -> None:
    run(source, tmp_path / "store")
    before = tree(tmp_path / "store")
    kind, name = raised
    if kind == "formats":
        monkeypatch.setitem(stores.schema.FORMATS, name, 2)
    elif kind == "unit":
        monkeypatch.setattr(pipelines.ingest.unit, "FORMAT", 2)
    else:
        monkeypatch.setattr(libero.LiberoSource, "format", 9999)
    again = run(source, tmp_path / "store")
    assert again.changed
    after = tree(tmp_path / "store")
    assert {name for name in after if before[name] != after[name] and is_data(name)} == set()
    assert Manifest.load(tmp_path / "store").provenance["formats"] != {}


def test_a_store_of_before_is_refused_with_the_command_that_makes_it_again(source: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Make it again: statevla ingest tabletop --source FOLDER --out here"):
        Manifest.from_bytes(BEFORE.read_bytes(), "here")
    run(source, tmp_path / "store")
    shutil.copy(BEFORE, tmp_path / "store" / "manifest.json")
    with pytest.raises(StoreError, match="no content_hash"):
        Store.open(tmp_path / "store")


GOLDEN = {
    "images jpeg": "78988b80b796ab7df1338ccaf0a40cae092a31db85c9976f5023d7f354fbf176",
    "images png": "cbed6be061a4e5c37a985255327bb312e0be5487f0fd8f7c21a360c642e03d5a",
    "segments": "9487e12dd95fd40c25c8bcfe4a9b037a0a37322f04b8e2e192a780f584355622",
    "shards": "376b7346ba5fef8f144e2512e876af08ccba776f6561ea1c5d53693b6e14a194",
    "frames": "ee266069cb58886c7fd022d05952e66f8ad07692926592a038a4b6c0e1e71da3",
    "tables": "d09073e7485ae519d2fae777bc57c949495981e574a7bc6970f7abaef2e91afd",
}
"""sha256 of what each format makes of the same input. When one of these changes, ask whether it was meant; if it was,
raise its number (`stores.schema.FORMATS`), so that finished stores are made again, and write the new hash here."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def golden(folder: Path) -> dict[str, str]:
    rows, columns = np.mgrid[0:24, 0:32]
    image = np.stack([rows * 9, columns * 7, (rows + columns) * 4], axis=-1).astype(np.uint8)
    state = (np.arange(5 * 9, dtype=np.float32) / 8).reshape(5, 9)
    action = (np.arange(5 * 7, dtype=np.float32) / 16 - 1).reshape(5, 7)
    pictures = {camera: [encode_image(image, "png")] * 5 for camera in ("agentview", "eye_in_hand")}
    meta = {"episode": "task/demo_0", "instruction": "do it", "source": "task.hdf5", "demo": "demo_0"}
    members = segment_members("task/demo_0-000000", Span(0, 5, 5), meta, state, action, pictures, 10, "png")
    shard = write_shard(folder / "a.tar", [members])
    fields = {"robot_state": state, "action": action, "episode": np.zeros(5, np.int64), "index": np.arange(5)}
    from stores.spec import LIBERO
    from tests.stores.make_store import write_frames

    frames = b"".join((folder / name).read_bytes() for name in write_frames(folder, fields, LIBERO))
    table = pa.table({"task": ["a", "b"] * 600, "steps": list(range(1200))})
    return {
        "images jpeg": sha256(encode_image(image, "jpeg")),
        "images png": sha256(encode_image(image, "png")),
        "segments": sha256(b"\0".join(name.encode() + data for name, data in members.members)),
        "shards": shard.sha256,
        "frames": sha256(frames),
        "tables": sha256(table_bytes(table, table.schema)),
    }


def test_the_bytes_of_every_format_are_as_ever(tmp_path: Path) -> None:
    assert golden(tmp_path) == GOLDEN
