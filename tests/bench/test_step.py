"""The bench of a training step measures both phases, and the command prints it as JSON."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cli import app
from statevla.bench import step
from tests.trainers.micro import micro_store

PARTS = {"forward and backward", "clip and optimizer", "moving average"}


def test_it_measures_both_phases_and_says_so_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = micro_store(tmp_path / "store")
    monkeypatch.setattr(step, "bench_step", partial(step.bench_step, batch_size=4, steps=4))
    monkeypatch.setattr(sys, "argv", ["statevla", "bench", "step", "--store", str(store), "--json"])
    with pytest.raises(SystemExit) as ended:
        app()
    assert ended.value.code == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result.keys() == {"name", "unit", "ours", "limit", "ratio", "machine", "details"}
    assert (result["name"], result["unit"]) == ("step", "samples/s")
    details = result["details"]
    told = {name: details.pop(name) for name in ("preset", "batch_size", "device", "steps")}
    assert told == {"preset": "tiny", "batch_size": 4, "device": "cpu", "steps": 4}
    assert list(details) == ["temporal_jepa", "flow_matching"]
    assert {name: result[name] for name in ("ours", "limit", "ratio")}.items() <= details["temporal_jepa"].items()
    for phase in details.values():
        assert phase["parts"].keys() == PARTS
        assert all(milliseconds > 0 for milliseconds in phase["parts"].values())
        assert phase["ours"] > 0
        assert phase["limit"] == pytest.approx(4000 / sum(phase["parts"].values()))
        assert phase["ratio"] == pytest.approx(phase["ours"] / phase["limit"])
        assert 0 <= phase["data_wait"] <= 1
        assert phase["peak_gb"] is None, "of a GPU's tensors only"
