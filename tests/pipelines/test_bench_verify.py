"""The verify bench measures real objects and leaves nothing behind."""

import json
import os

import pytest

from pipelines.bench.verify import bench_verify
from stores.errors import UsageError


def test_result_has_the_fixed_keys_and_positive_rates() -> None:
    cores = os.sched_getaffinity(0)
    result = bench_verify(megabytes=1, repeats=1)
    assert {"name", "unit", "ours", "limit", "ratio", "peers", "machine"} <= set(result)
    assert min(result["ours"], result["limit"]) > 0
    assert result["ratio"] == pytest.approx(result["ours"] / result["limit"])
    json.dumps(result, allow_nan=False)
    assert os.sched_getaffinity(0) == cores


def test_wrong_counts() -> None:
    with pytest.raises(UsageError, match="expected 1 or more"):
        bench_verify(repeats=0)
