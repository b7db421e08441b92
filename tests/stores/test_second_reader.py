"""The format page suffices: a reader written from it gives what went into the store, and what our reader gives."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from stores.arrays import ArraySpec, write_region
from stores.derived import begin
from stores.disk.lock import lock
from stores.manifest import Manifest
from stores.reader import Store
from stores.sharded import ShardedSpec, write_shard
from tests.pipelines.make_hdf5 import demo_arrays, make_world, write_file
from tests.stores import second_reader
from tests.stores.make_store import make_tiny_store


def test_both_readers_give_what_went_in(tmp_path: Path) -> None:
    made = make_tiny_store(tmp_path, episodes=3, frames=20, image=16, window=8, chunk=4, codec="png")
    store = Store.open(tmp_path)
    seen = {row["id"]: [] for row in store.episodes.to_pylist()}
    by_id = {f"{episode.source}/{episode.demo}": episode for episode in made}
    for row, step, now, state, after, action, chunk, is_pad in second_reader.transitions(tmp_path):
        episode = by_id[row["id"]]
        seen[row["id"]].append(step)
        np.testing.assert_array_equal(now, episode.images[step])
        np.testing.assert_array_equal(state, episode.robot_state[step])
        np.testing.assert_array_equal(action, episode.action[step])
        wanted = np.minimum(np.arange(step, step + 4), len(episode.action) - 1)
        np.testing.assert_array_equal(chunk, episode.action[wanted])
        np.testing.assert_array_equal(is_pad, np.arange(step, step + 4) >= len(episode.action))
        assert (after is None) == (step + 1 == len(episode.images))
        if after is not None:
            np.testing.assert_array_equal(after, episode.images[step + 1])
    assert seen == {name: list(range(len(episode.action))) for name, episode in by_id.items()}
    theirs = second_reader.frames(tmp_path)
    assert set(theirs) == set(store.frames)
    for name, array in store.frames.items():
        np.testing.assert_array_equal(theirs[name], array)


def test_it_reads_a_store_that_is_not_ascii_and_its_statistics(tmp_path: Path) -> None:
    text = "stelle die Tür ✓ 把红色"
    write_file(tmp_path / "source/Tür_把_demo.hdf5", {"demo_0": demo_arrays(make_world())}, text)
    ingest(IngestConfig("tür", tmp_path / "source", tmp_path / "store", language="hashed"), isolated=False)
    compute_statistics(tmp_path / "store")
    assert second_reader.read_manifest(tmp_path / "store")["instructions"] == [text]
    rows = list(second_reader.transitions(tmp_path / "store"))
    assert {row[0]["instruction"] for row in rows} == {text}
    (path,) = (tmp_path / "store/stats").iterdir()
    fields = second_reader.sealed(path)
    frames = second_reader.frames(tmp_path / "store")
    (action,) = [v["action"] for v in (fields, *fields.values()) if isinstance(v, dict) and "action" in v][:1]
    values = frames["action"][~np.isnan(frames["action"]).any(axis=1)].astype(np.float64)
    assert action["count"] == len(values) == len(rows)
    np.testing.assert_allclose(action["mean"], values.mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(action["q99"], np.quantile(values, 0.99, axis=0))


def test_it_reads_a_derived_folder(tmp_path: Path) -> None:
    make_tiny_store(tmp_path, episodes=2, frames=9, image=8)
    rng = np.random.default_rng(0)
    wanted = {
        "z": rng.normal(size=(18, 5)).astype(np.float32),
        "scale": rng.normal(size=(18,)).astype(np.float16),
        "patches": rng.integers(-128, 127, (18, 3, 4), np.int8),
    }
    made_from = {"content_hash": Manifest.load(tmp_path).content_hash, "encoder": "Köder ✓", "precision": 1e-07}
    specs = {name: ArraySpec(values.shape, values.dtype.name, 4 + len(name)) for name, values in wanted.items()}
    with lock(tmp_path, "test"):
        folder = begin(tmp_path, "latents", "mine", made_from, specs)
        for name, values in wanted.items():
            write_region(folder.root, name, specs[name], 0, values)
        folder.commit({"words": ["把"]})
    seal, arrays = second_reader.derived(tmp_path, "latents", "mine")
    assert (seal["made_from"], seal["about"]) == (made_from, {"words": ["把"]})
    assert set(arrays) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(arrays[name], values)
        assert arrays[name].dtype == values.dtype


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 40])
def test_it_reads_sharded_features_and_latents(frames: int, tmp_path: Path) -> None:
    make_tiny_store(tmp_path, episodes=1, frames=9, image=8)
    rng = np.random.default_rng(frames)
    wanted = {
        "agentview": rng.integers(-128, 127, (frames, 3, 4), np.int8),
        "agentview_scale": rng.normal(size=(frames, 3)).astype(np.float16),
        "z": rng.normal(size=(frames, 5)).astype(np.float32),
    }
    specs = {name: ShardedSpec(values.shape, values.dtype.name, 4, 16) for name, values in wanted.items()}
    with lock(tmp_path, "test"):
        made = begin(tmp_path, "features", "mine", {"content_hash": Manifest.load(tmp_path).content_hash}, specs)
        for name, values in wanted.items():
            for m in range(specs[name].shards):
                write_shard(made.root, name, specs[name], m, [values[16 * m : 16 * (m + 1)]])
        made.commit({})
    _, arrays = second_reader.derived(tmp_path, "features", "mine")
    assert set(arrays) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(arrays[name], values)
        assert arrays[name].dtype == values.dtype
