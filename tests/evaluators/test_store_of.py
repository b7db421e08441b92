"""Evaluations read the store that a checkpoint was trained on, where nobody names another and it is still there."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import app
from statevla.config import replace
from statevla.systems.find import store_of
from statevla.systems.table import find_system
from statevla.trainers.trainer import train
from stores.errors import StoreMissing, UsageError
from tests.trainers.micro import config_of_all, micro_store
from tests.trainers.together import checkpoint

JEPA = "temporal_jepa"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores under data/stores, so that none is the only one, and a run of either kind on a third."""
    root = tmp_path_factory.mktemp("project")
    store = micro_store(root / "kept" / "mine")
    for name in ("one", "two"):
        shutil.copytree(store, root / "data" / "stores" / name)
    config = replace(config_of_all("training.max_steps=1"), {"data.store": str(store)})
    train(JEPA, config, store, root / "runs" / "a")
    train("film", config, store, root / "runs" / "a")
    return root


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "offline", "--checkpoint", "runs/a"],
        ["eval", "state", "--checkpoint", "runs/a"],
        ["diagnose", "runs/a"],
    ],
)
def test_the_checkpoints_store_is_read(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    opened: list[str] = []
    monkeypatch.chdir(project)

    def only_noted(path: object) -> None:
        opened.append(str(path))
        raise StoreMissing("far enough")

    monkeypatch.setattr("stores.reader.Store.open", only_noted)
    CliRunner().invoke(app, [*command, "--device", "cpu", "--out", str(tmp_path)])
    assert opened == [str(project / "kept" / "mine")]


def test_one_that_is_named_or_gone(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    latest = checkpoint(Path("runs/a"), find_system(JEPA).name)
    assert store_of(latest, "data/stores/one") == "data/stores/one"
    gone = tmp_path / "gone"
    shutil.copytree(latest, gone)
    state = json.loads((gone / "state.json").read_text())
    state["config"]["data"]["store"] = "nowhere"
    (gone / "state.json").write_text(json.dumps(state))
    with pytest.raises(UsageError, match="several stores"):
        store_of(gone)
