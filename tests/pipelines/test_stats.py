"""Statistics over the train split, against plain NumPy on the frames; one pass, the same bits however rows are cut."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import stores.numbers
from pipelines.derive.stats import compute_statistics, measure
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from stores import arrays
from stores.arrays import CheckedArray
from stores.manifest import Manifest, hash_objects
from stores.reader import Store
from stores.spec import ObsSpec
from stores.summary import inspect_store
from tests.pipelines.make_hdf5 import write_suite
from tests.stores.make_store import write_frames


@pytest.fixture
def root(tmp_path: Path) -> Path:
    source = write_suite(tmp_path / "source", tasks=2, demos=5)
    ingest(IngestConfig("toy", source, tmp_path / "store", language="hashed", train_split=0.6))
    return tmp_path / "store"


def test_against_numpy_on_the_train_split_only(root: Path) -> None:
    statistics = compute_statistics(root)
    store = Store.open(root)
    train = np.array([split == "train" for split in store.episode_columns["split"]])
    assert 0 < train.sum() < len(train)
    rows = train[store.frames["episode"]]
    for name in ("action", "robot_state"):
        values = store.frames[name][rows].astype(np.float64)
        values = values[~np.isnan(values).any(axis=1)]
        got = statistics[name]
        assert got["count"] == len(values)
        np.testing.assert_allclose(got["mean"], values.mean(0), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(got["std"], values.std(0), rtol=1e-10)
        np.testing.assert_array_equal(got["min"], values.min(0))
        np.testing.assert_array_equal(got["max"], values.max(0))
        np.testing.assert_allclose([got["q01"], got["q99"]], np.quantile(values, [0.01, 0.99], axis=0), rtol=1e-12)
    assert store.stats().to_dict() == statistics


def test_one_pass_reads_every_chunk_once_and_gives_the_same_bits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compute_statistics(root)
    (file,) = (root / "stats").iterdir()
    data = file.read_bytes()
    read: list[str] = []
    real = CheckedArray.chunk

    def counted(self: CheckedArray, m: int) -> np.ndarray:
        read.append(f"{self.name}/{m}")
        return real(self, m)

    monkeypatch.setattr(CheckedArray, "chunk", counted)
    for size in (7, 4096):  # episodes lie across chunks, or many in one
        monkeypatch.setattr(stores.numbers, "CHUNK_ROWS", size)
        store = size_of_chunks(root, root.parent / str(size), size)
        read.clear()
        assert measure(Store.open(store)).to_dict() == first
        assert len(read) == len(set(read)) > 0
    file.unlink()
    assert compute_statistics(root) == first
    assert file.read_bytes() == data


def size_of_chunks(root: Path, out: Path, size: int) -> Path:
    """The same store with other chunks in ``frames.zarr``."""
    shutil.copytree(root, out)
    frames = {name: arrays.open_checked(root, f"frames.zarr/{name}").read() for name in stores.numbers.FIELDS}
    manifest = Manifest.load(root)
    spec = ObsSpec.from_dict(manifest.obs_spec)
    paths = write_frames(out, frames, spec)
    kept = [item for item in manifest.objects if not item.path.startswith("frames.zarr/")]
    replace(manifest, objects=(*kept, *hash_objects(out, paths))).save(out)
    return out


def test_computed_once_per_content(root: Path) -> None:
    compute_statistics(root)
    (file,) = (root / "stats").iterdir()
    before = file.stat().st_mtime_ns
    compute_statistics(root)
    assert file.stat().st_mtime_ns == before


def test_inspection_adds_up(root: Path) -> None:
    found = inspect_store(root)
    assert found["statistics"] is False
    assert sum(task["episodes"] for task in found["tasks"].values()) == found["episodes"] == 10
    assert sum(task["frames"] for task in found["tasks"].values()) == found["frames"]
    assert found["splits"] == {"train": 6, "val": 4}
    assert found["alignment"] == {"after": 10}
    assert found["store"] == str(root)
    compute_statistics(root)
    assert inspect_store(root)["statistics"] is True
