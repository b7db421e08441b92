"""Monitors that are not healthy are said once; metrics reach a tracker under the same names."""

import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from statevla.models.monitors import change_f1, correlation_excess, within_episodes
from statevla.runs.layout import metrics
from statevla.systems.table import find_system
from statevla.systems.temporal_jepa import JepaModel
from statevla.trainers.trackers import tracker
from statevla.trainers.trainer import train
from statevla.trainers.watch import THRESHOLDS, WARM, Threshold, Watch, update_norm
from stores.errors import StoreCorrupt, UsageError
from tests.models.build import batch, micro, normalization
from tests.trainers.micro import at_step, config_of_all, micro_store
from tests.trainers.together import lines


def test_a_predictor_that_does_not_look_at_actions_is_visible() -> None:
    torch.manual_seed(0)
    model, data = JepaModel(micro(), normalization()).eval(), batch(6)
    torch.nn.init.normal_(model.predictor.delta.weight, std=0.5)
    with torch.no_grad():
        seeing = model.terms(data, {})
        seeing["wanted"] = seeing["predicted"] + 0.01 * torch.randn_like(seeing["predicted"])
        assert model.monitors(seeing)["action_ratio"] > 2
        torch.nn.init.zeros_(model.predictor.action.weight)
        blind = model.terms(data, {})
        assert model.monitors(blind)["action_ratio"] == pytest.approx(1)


def test_copying_is_the_measure_of_a_prediction() -> None:
    model, data = JepaModel(micro(), normalization()).eval(), batch(6)
    with torch.no_grad():
        terms = model.terms(data, {})  # the predictor starts as "nothing changes"
    assert model.monitors(terms)["copy_ratio"] == pytest.approx(1)
    assert "action" not in model.train().terms(data, {})


def test_correlations_above_chance() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 16, generator=g)
    assert abs(correlation_excess(z[:40])) < 0.2  # by chance alone it is 15 / 39
    assert correlation_excess(z[:, :1].expand(-1, 16)) == pytest.approx(15, abs=0.01)
    assert correlation_excess(torch.zeros(8, 4)) == pytest.approx(-3 / 7)


def test_variance_within_episodes() -> None:
    episode = torch.tensor([7, 7, 3, 3])
    apart = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
    assert within_episodes(apart, episode) == 0
    assert within_episodes(apart, torch.tensor([0, 1, 0, 1])) == pytest.approx(1)
    mixed = torch.tensor([[0.0], [2.0], [0.0], [2.0]])
    assert within_episodes(mixed, episode) == pytest.approx(1)


def test_changes_of_the_gripper() -> None:
    wanted = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]).bool()[..., None]
    keep = torch.ones(2, 4, dtype=torch.bool)
    assert change_f1(wanted, wanted, keep) == 1
    late = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]]).bool()[..., None]
    assert change_f1(late, wanted, keep) == 0
    keep[0, 2:] = False
    assert change_f1(wanted, wanted, keep) is None


def test_a_warning_is_said_once_and_not_at_the_start() -> None:
    watch = Watch()
    sick = {"z_std": 0.01, "action_ratio": 1.0, "copy_ratio": 3.0, "data_wait": 0.9, "unknown": -1.0}
    assert watch.warnings(sick, WARM - 1) == []
    said = watch.warnings(sick, WARM)
    assert [name for name, _ in said] == ["z_std", "copy_ratio", "action_ratio", "data_wait"]
    assert "z_std is 0.01 at step 200: the state has collapsed" in said[0][1]
    assert watch.warnings(sick, WARM + 1) == []
    assert [name for name, _ in Watch().warnings({"z_used": 0.0, "shuffled_ratio": 1.05}, WARM)] == ["z_used"]
    assert [name for name, _ in Watch().warnings({"z_used": 0.1, "shuffled_ratio": 1.05}, 3000)] == ["shuffled_ratio"]
    assert Watch().warnings({each.name: float("nan") for each in THRESHOLDS}, WARM) == []


def test_the_size_of_an_update() -> None:
    old, new = [torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.5])]
    assert update_norm(old, new) == pytest.approx(0.1)
    assert update_norm([], new) == 0


def test_a_run_logs_monitors_norms_and_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = micro_store(tmp_path / "store")
    told: list[dict[str, Any]] = []
    fake: Any = types.ModuleType("trackio")
    fake.init = lambda **given: (told.append(given), print("* Created new run"))
    fake.log = lambda values, step: told.append({"step": step, **values})
    fake.finish = lambda: (told.append({"done": True}), print("* Run finished"))
    monkeypatch.setitem(sys.modules, "trackio", fake)
    config = config_of_all("training.max_steps=2", "training.validate_every_steps=2", "training.tracker=trackio")
    train("temporal_jepa", config, store, tmp_path / "run")
    line = lines(tmp_path / "run", "temporal_jepa", "train")[-1]
    assert line["update_norm"] > 0
    assert line["grad_norm"] > 0
    assert 0 <= line["data_wait"] <= 1
    val = lines(tmp_path / "run", "temporal_jepa", "val")[-1]
    assert {"z_rank", "z_std_least", "z_correlation", "z_within", "copy_ratio", "action_ratio"} <= set(val)
    assert told[0]["name"] == "run-phase1_temporal_jepa"
    assert told[-1] == {"done": True}
    assert [each["step"] for each in told[1:-1]] == [1, 2, 2]
    assert told[-2]["val/z_rank"] == val["z_rank"]
    assert told[0]["resume"] == "never"  # another run of that name is another run
    longer = config_of_all("training.max_steps=3", "training.validate_every_steps=2", "training.tracker=trackio")
    told.clear()
    train("temporal_jepa", longer, store, tmp_path / "run", resume=True)
    assert (told[0]["name"], told[0]["resume"]) == ("run-phase1_temporal_jepa", "allow")
    assert [each["step"] for each in told[1:-1]] == [3, 3]
    assert "new run" not in capsys.readouterr().out  # which may be JSON


def test_tensorboard_is_told_anew_of_the_steps_that_a_resumed_run_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    fake: Any = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = lambda *given, **more: made.append((given, more)) or types.SimpleNamespace(close=lambda: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    for step in (0, 7):
        with tracker("tensorboard", tmp_path, "film", config_of_all(), step):
            pass
    assert made == [
        ((str(tmp_path / "tensorboard/film"),), {}),
        ((str(tmp_path / "tensorboard/film"),), {"purge_step": 8}),
    ]


def test_a_resumed_run_does_not_say_again_what_its_metrics_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, run = micro_store(tmp_path / "store"), tmp_path / "run"
    always = Threshold("z_std", lambda value: True, "whatever it is", least=2)
    monkeypatch.setattr("statevla.trainers.watch.THRESHOLDS", (always,))
    config = config_of_all("training.max_steps=4", "training.validate_every_steps=1")
    stopped = train(
        "temporal_jepa", config, store, run, progress=at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    )
    assert stopped.steps == 2
    train("temporal_jepa", config, store, run, resume=True)
    assert [line["step"] for line in lines(run, "temporal_jepa", "warning")] == [2]
    path = metrics(run, find_system("temporal_jepa").folder)
    path.write_text(path.read_text() + '{"kind": "train", "loss": 1}\n')
    with pytest.raises(StoreCorrupt, match=r"line \d+: expected kind and step"):
        train("temporal_jepa", config_of_all("training.max_steps=5"), store, run, resume=True)


def test_a_tracker_that_is_not_installed_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with (
        pytest.raises(UsageError, match=r"pip install 'statevla\[trackio\]'"),
        tracker("trackio", tmp_path, "film", config_of_all()),
    ):
        pass
