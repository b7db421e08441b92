"""`python -m statevla.bench.gpu` without a GPU: the same way through the code, no figures that mean anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from statevla.bench.gpu.report import Report, Wrong

ROOT = Path(__file__).resolve().parents[2]

BARE = """
import runpy, sys
class Absent:
    '''Packages that a bare machine with PyTorch lacks.'''
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("google_crc32c", "simplejpeg", "isal", "zarr", "orjson", "dask", "webdataset"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Absent())
sys.argv = ["gpu", *sys.argv[1:]]
runpy.run_module("statevla.bench.gpu", run_name="__main__")
"""


def contents(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_what_fails_is_kept_and_the_rest_goes_on(tmp_path: Path) -> None:
    report = Report(tmp_path / "new" / "gpu.json", 60.0, {"device": "none"})

    def wrong() -> dict[str, object]:
        raise Wrong("2 is not 3")

    def broken() -> dict[str, object]:
        raise KeyError("driver")

    report.put("first", lambda: {"ms": 1.0})
    assert list(contents(report.path)["items"]) == ["first"]  # type: ignore[call-overload]
    report.put("second", wrong)
    report.put("third", broken)
    assert list(contents(report.path)["items"]) == ["first", "second", "third"]  # type: ignore[call-overload]
    report.put("fourth", lambda: {"ms": 4.0})
    found = json.loads(report.path.read_text())
    assert found["items"]["fourth"]["ms"] == 4
    assert found["items"]["second"]["failed"] == "2 is not 3"
    assert "KeyError" in found["items"]["third"]["failed"]
    assert "in broken" in found["items"]["third"]["where"]
    assert found["wrong"] == ["second"]
    assert report.failed == ["second", "third"]
    assert [line.split()[0] for line in report.table().splitlines()] == ["first", "second", "third", "fourth"]


def test_nothing_starts_when_the_time_is_spent(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json", -1.0, {})
    called: list[int] = []

    def late() -> dict[str, object]:
        called.append(1)
        return {}

    report.put("late", late)
    assert not called
    assert "left_out" in report.items["late"]
    assert report.failed == []


def test_an_interrupt_is_not_an_item_that_failed(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json", 60.0, {})
    report.put("first", lambda: {"ms": 1.0})

    def interrupted() -> dict[str, object]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.put("second", interrupted)
    assert list(contents(report.path)["items"]) == ["first"]  # type: ignore[call-overload]


def dry_run(folder: Path, sections: str) -> dict[str, object]:
    report = folder / "gpu.json"
    command = [sys.executable, "-c", BARE, "--device", "cpu", "--quick", "--only", sections, "--report", str(report)]
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    items = contents(report)["items"]
    assert isinstance(items, dict)
    assert {name for name, value in items.items() if "failed" in value or "left_out" in value} == set()
    return items


def test_a_dry_run_of_training_on_a_bare_machine(tmp_path: Path) -> None:
    items = dry_run(tmp_path, "training")
    assert list(items) == ["training step, phase 1, batch 2", "training step, phase 2, batch 2"]


@pytest.mark.slow
def test_a_dry_run_of_everything_on_a_bare_machine(tmp_path: Path) -> None:
    items = dry_run(tmp_path, "correct,scan,graphs,acting,training,layers,peers")
    assert len([name for name in items if name.startswith("acting ")]) == 3
    same = [value for name, value in items.items() if name.startswith("graph is eager")]
    assert {value["difference"] for value in same} == {0}  # type: ignore[index]  # without a GPU both are eager


def test_an_unknown_section_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "statevla.bench.gpu", "--device", "cpu", "--only", "speed", "--report", "x.json"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--only speed: expected some of correct, scan," in done.stderr
    assert list(tmp_path.iterdir()) == []
