"""The ingest bench measures a real ingest and leaves nothing behind."""

import json
import os
from pathlib import Path

import pytest

from pipelines.bench import ingest
from pipelines.bench.ingest import bench_ingest
from pipelines.bench.table import BenchOptions, run_bench
from stores.errors import UsageError
from tests.pipelines.make_hdf5 import write_suite


def test_result_has_the_fixed_keys_and_positive_rates(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    result = bench_ingest(write_suite(tmp_path / "source", tasks=1, demos=1), workers=1, repeats=1, copies=2)
    assert {"name", "unit", "ours", "limit", "ratio", "quartiles", "peers", "machine"} <= set(result)
    assert (result["name"], result["unit"], result["frames"]) == ("ingest", "frames/s", 40)
    assert min(result["ours"], result["limit"], *result["peers"].values()) > 0
    assert result["ratio"] == pytest.approx(result["ours"] / result["limit"])
    json.dumps(result, allow_nan=False)
    assert os.sched_getaffinity(0) == cores
    assert "STATEVLA_UNSAFE_NO_FSYNC" not in os.environ


def test_wrong_counts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected 1 or more"):
        bench_ingest(tmp_path, workers=0)


def test_the_command_takes_demonstrations_as_often_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, int]] = []
    monkeypatch.setattr(ingest, "bench_ingest", lambda source, **options: told.append(options) or {})
    for copies in (None, 25):
        run_bench("ingest", BenchOptions(None, tmp_path, None, 0, copies=copies))
    assert told == [{"workers": 1, "copies": ingest.COPIES}, {"workers": 1, "copies": 25}]
