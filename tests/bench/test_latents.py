"""The bench of kept states runs and compares like with like."""

from pathlib import Path

from statevla.bench.latents import bench_latents
from stores.reader import Store
from tests.stores.make_store import make_tiny_store


def test_it_measures_every_way(tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "store", episodes=4, frames=12, image=16)
    result = bench_latents(Store.open(tmp_path / "store"), preset="tiny", batch_size=4, steps=2, encoded_steps=1)
    assert result["name"] == "latents"
    assert result["ratio"] == result["ours"] / result["limit"]
    assert result["details"]["speedup"] == result["ours"] / result["peers"]["encoding at every step"]
    assert result["details"]["frames"] == Store.open(tmp_path / "store").manifest.counts["frames"]
