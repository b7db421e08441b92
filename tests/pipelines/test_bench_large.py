"""The large bench watches what it says, and its arithmetic holds."""

import json
import os
from pathlib import Path

import pytest

from pipelines.bench.large import GIGABYTE, anonymous_bytes, bench_large, by_gigabyte, family, quarters
from stores.errors import UsageError
from tests.pipelines.make_hdf5 import write_suite


def test_a_small_one_reports_every_role(tmp_path: Path) -> None:
    result = bench_large(write_suite(tmp_path / "source", tasks=1, demos=1), workers=1, gigabytes=0.0003)
    assert result["bytes"] >= 300_000
    assert set(result["anonymous_bytes_peak"]) == set(result["open_files_peak"]) >= {"driver"}
    assert min(result["anonymous_bytes_peak"].values()) > 0
    assert result["frames"] > 0
    json.dumps(result, allow_nan=False)


def test_wrong_numbers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="workers, gigabytes above 0"):
        bench_large(tmp_path, workers=0)


def test_frames_are_counted_by_the_gigabyte() -> None:
    marks = [(10.0, 0), (11.0, 100), (13.0, 200), (17.0, 400)]
    assert by_gigabyte(marks, 400, 4 * GIGABYTE) == [
        (10.0, 11.0, 100), (11.0, 13.0, 100), (13.0, 17.0, 200), (13.0, 17.0, 200)
    ]  # fmt: skip
    assert quarters([(0.0, 5), (1.0, 7), (2.0, 1), (3.0, 2)]) == [5, 7, 1, 2]


def test_this_process_is_the_driver_of_its_family() -> None:
    assert family(os.getpid())[os.getpid()] == "driver"
    assert anonymous_bytes(os.getpid()) > 1_000_000
