"""The measure of mixing: a full shuffle is the limit, one lane of one segment the worst."""

from pathlib import Path

import pytest

from statevla.bench.order import bench_order
from stores.errors import UsageError
from tests.stores.make_store import make_tiny_store


def test_more_lanes_and_larger_blocks_mix_more(tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "store", episodes=16, frames=33, image=16, window=8)
    result = bench_order(tmp_path / "store", batch_size=8, threads=1)
    found = result["details"]
    narrow, wide = found["1 lanes of 16 segments"], found["8 lanes of 1 segments"]
    assert (narrow["lanes_used"], wide["lanes_used"]) == (1, 8)
    assert wide["segments"] == 8 > narrow["segments"]  # a row of every lane
    assert narrow["megabytes_held"] == pytest.approx(2 * wide["megabytes_held"])
    assert found["full shuffle"]["variance_ratio"] == pytest.approx(1, abs=0.6)
    assert result["ratio"] == result["ours"] / result["limit"]
    plain = bench_order(tmp_path / "store", batch_size=8, pictures=False)["details"]
    assert plain["8 lanes of 16 segments"]["segments"] == found["8 lanes of 16 segments"]["segments"]
    assert "variance_ratio" not in plain["full shuffle"]
    with pytest.raises(UsageError, match="too few for two batches"):
        bench_order(tmp_path / "store", batch_size=4096, threads=1)
