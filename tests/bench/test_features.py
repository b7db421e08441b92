"""The bench of kept features reads the same bytes every way."""

from statevla.bench.features import bench_features


def test_it_measures_every_way() -> None:
    result = bench_features(frames=20, repeats=1, threads=2)
    assert result["name"] == "features"
    assert result["ratio"] == result["ours"] / result["limit"]
    assert set(result["details"]["cold"]) == {"ours", "limit", "ratio"}
    assert min(result["peers"].values()) > 0
