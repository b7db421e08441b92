"""The documents' commands, each as a process, with every flag as the documents write it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from pipelines.commands.options import Recipe
from statevla.config import PRESETS, load_config
from statevla.documents import eval as documents_eval
from statevla.documents import run_libero_eval
from statevla.documents import train as documents_train
from statevla.documents.flags import parse, words
from statevla.recipes import FOLDER, load_recipe, names
from statevla.systems.table import SYSTEMS, sections
from stores.errors import StoreMissing, UsageError
from tests.trainers.micro import micro_store

ROOT = Path(__file__).parents[2]

VERBATIM = """\
data: {data_directory: "/path/to/libero_object", demos_per_task: 50, max_len_data: 260, train_split: 0.9}
model: {image_size: 224, patch_size: 16, embed_dim: 256, lang_emb_dim: 512, robot_state_dim: 9, encoder_depth: 12,
  d_state: 16, d_conv: 4, expand: 2, state_dim: 256, action_dim: 7, action_seq_len: 10, policy_layers: 3,
  policy_embed_dim: 256}
training: {batch_size: 64, learning_rate: 1.0e-4, weight_decay: 0.05, gradient_clip: 1.0, ema_momentum: 0.996,
  ema_momentum_schedule: "cosine", save_interval: 100, log_interval: 10,
  phase1: {num_epochs: 1000, learning_rate: 1.0e-4, temporal_predictor_hidden_dim: 512},
  phase2: {num_epochs: 1000, learning_rate: 5.0e-5}}
"""

SMALL = """\
data: {{data_directory: "{folder}/raw/micro", demos_per_task: 3, max_len_data: 260}}
model: {{image_size: 32, patch_size: 8, embed_dim: 32, encoder_depth: 1, d_state: 4, policy_layers: 1,
  policy_d_state: 4, gripper_width: 8, state_dim: 32, robot_state_dim: 9, action_seq_len: 10}}
training: {{batch_size: 8, max_steps: {steps}, device: cpu, torch_threads: 1, log_interval: 1,
  phase1: {{temporal_predictor_hidden_dim: 16}}}}
"""


def test_the_documents_configuration_is_the_base_preset(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(VERBATIM)
    assert load_config("base", file) == PRESETS["base"]
    assert load_recipe("documents").request("flow_matching").config() == PRESETS["base"]


def test_help_and_quickstart_name_every_recipe() -> None:
    page = (ROOT / "docs/quickstart.md").read_text()
    for name in names():
        assert f"{name}," in get_args(Recipe)[1].help
        assert f"| `{name}` |" in page


@pytest.mark.parametrize("name", names())
def test_every_recipe_configures_every_system(name: str) -> None:
    recipe = load_recipe(name)
    assert set(recipe.systems) <= {row.name for row in SYSTEMS}
    for row in SYSTEMS:
        recipe.request(row.name).config(sections())


def test_what_the_recipes_of_the_showcases_say() -> None:
    first, second = (load_recipe("tabletop").request(row.name).config() for row in SYSTEMS[:2])
    assert (first.training.max_steps, second.training.max_steps) == (4200, 2500)
    assert (first.training.phase1.learning_rate, second.training.phase2.learning_rate) == (3e-3, 2e-3)
    assert first.model == second.model == PRESETS["tiny"].model
    libero = load_recipe("libero").request("temporal_jepa").config()
    assert (libero.model.image_size, libero.data.cache_gib, libero.training.max_steps) == (64, 6, 6000)
    assert FOLDER.name == "recipes"


def test_one_table_of_flags_each() -> None:
    given = parse("t", "", documents_train.FLAGS, ["--config", "c.yaml", "--phase", "1", "--batch_size", "32"])
    assert words(documents_train.FLAGS, given) == [
        "--config", "c.yaml", "--phase", "1", "--set", "training.batch_size=32",
    ]  # fmt: skip
    given = parse("t", "", run_libero_eval.FLAGS,
                  ["--checkpoint", "c.pt", "--task_suite", "libero_object", "--num_trials", "50"])  # fmt: skip
    assert words(run_libero_eval.FLAGS, given) == [
        "--checkpoint", "c.pt", "--suite", "libero_object", "--num-trials", "50",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        parse("t", "", documents_eval.FLAGS, [])
    assert stop.value.code == 2


def test_a_missing_store_names_the_command_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = {"data.data_directory": "/d/libero_object", "data.train_split": 0.8}
    with pytest.raises(StoreMissing, match=r"ingest libero_object --source /d/libero_object --train-split 0.8"):
        documents_train.find_store(keys)
    store = micro_store(tmp_path / "data/stores/libero_object")
    assert documents_train.find_store(keys) == str(store.relative_to(tmp_path))
    assert documents_train.find_store({"data.data_directory": str(store)}) == str(store)


def test_another_split_than_the_stores_is_refused(tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    with pytest.raises(UsageError, match=r"data.train_split: 0.5, but .* was ingested with"):
        documents_train.compare({"data.train_split": 0.5}, str(store))


Run = Callable[..., str]


def as_process(folder: Path, module: str, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"statevla.documents.{module}", *arguments], cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stderr


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The same without a process."""

    def call(folder: Path, module: str, *arguments: str, status: int = 0) -> str:
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as stop:
            MODULES[module].run(arguments)
        said = capsys.readouterr().err
        assert (stop.value.code or 0) == status, said
        return said

    return call


MODULES = {"train": documents_train, "eval": documents_eval, "run_libero_eval": run_libero_eval}


def test_the_documents_way_from_training_to_evaluation(tmp_path: Path, here: Run) -> None:
    check_the_way(tmp_path, here)


@pytest.mark.slow
def test_the_documents_way_as_processes(tmp_path: Path) -> None:
    check_the_way(tmp_path, as_process)


@pytest.mark.parametrize("module", MODULES)
def test_a_wrong_flag_is_wrong_usage(tmp_path: Path, here: Run, module: str) -> None:
    assert "--frobnicate" in here(tmp_path, module, "--checkpoint", "c", "--frobnicate", "1", status=2)


def check_the_way(tmp_path: Path, run: Run) -> None:
    micro_store(tmp_path / "data/stores/micro")
    (tmp_path / "conf").mkdir()
    config = tmp_path / "conf/config.yaml"
    config.write_text(SMALL.format(folder=tmp_path, steps=2))
    first, second = "checkpoints/phase1_temporal_jepa", "checkpoints/phase2_flow_matching"
    said = run(tmp_path, "train", "--config", "conf/config.yaml", "--phase", "1")
    assert "data.demos_per_task: 3, but data/stores/micro has up to" in said
    assert (tmp_path / first / "checkpoint_best/state.json").is_file()
    config.write_text(SMALL.format(folder=tmp_path, steps=4))
    run(
        tmp_path,
        "train",
        "--config",
        "conf/config.yaml",
        "--phase",
        "1",
        "--checkpoint",
        f"{first}/checkpoint_latest.pt",
    )
    assert json.loads((tmp_path / first / "checkpoint_latest/state.json").read_text())["step"] == 4
    run(tmp_path, "train", "--config", "conf/config.yaml", "--phase", "2", "--phase1_checkpoint",
        f"{first}/checkpoint_best.pt", "--batch_size", "16")  # fmt: skip
    policy = json.loads((tmp_path / second / "checkpoint_latest/state.json").read_text())
    assert (policy["step"], policy["config"]["training"]["batch_size"]) == (4, 16)
    assert policy["parent"]["checkpoint"] == "checkpoint_best"
    run(tmp_path, "eval", "--checkpoint", f"{second}/checkpoint_best.pt")
    assert list((tmp_path / "eval").rglob("*.json"))
    complaint = run(tmp_path, "run_libero_eval", "--checkpoint", f"{second}/checkpoint_none.pt", "--task_suite",
                    "libero_object", "--num_trials", "50", status=1)  # fmt: skip
    assert "checkpoint_none" in complaint
