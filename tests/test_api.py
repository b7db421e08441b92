"""The public names: what docs/api.md says of them runs, and importing them costs nothing."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import statevla
from pipelines.collect.tabletop import collect_tabletop
from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from statevla.runs.layout import checkpoints
from statevla.systems.table import find_system
from statevla.trainers.trainer import train
from stores.errors import StoreMissing, UsageError
from tests.trainers.micro import micro_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after the quickstart, in miniature."""
    folder = tmp_path_factory.mktemp("api")
    collect_tabletop(folder / "data/raw/tabletop", 8, image_size=32)
    store = folder / "data/stores/tabletop"
    ingest(IngestConfig(suite="tabletop", source=folder / "data/raw/tabletop", out=store, language="hashed"))
    compute_statistics(store)
    run = folder / "runs/tabletop"
    train("temporal_jepa", micro_config("training.max_steps=1"), store, run)
    encoder = checkpoints(run, find_system("temporal_jepa").folder) / "checkpoint_latest"
    train("flow_matching", micro_config("training.max_steps=1"), store, run, encoder_checkpoint=encoder)
    return folder


def test_the_examples_of_the_page_run_in_their_order(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.S)
    assert len(examples) == 6
    names: dict[str, object] = {}
    for number, example in enumerate(examples):
        exec(compile(example, f"docs/api.md, example {number}", "exec"), names)  # noqa: S102
    assert set(re.findall(r"statevla\.(\w+)\(", "".join(examples))) <= set(statevla.__all__)


def test_an_epoch_of_batches_is_every_row_once(project: Path) -> None:
    store = statevla.open_store(project / "data/stores/tabletop")
    seen = [
        [(int(e), int(f)) for batch in statevla.batches(store, batch_size=4, seed=seed, threads=threads)
         for e, f in zip(batch.episode, batch.frame, strict=True)]
        for seed, threads in ((0, 1), (0, 3), (1, 1))
    ]  # fmt: skip
    assert seen[0] == seen[1] != seen[2]
    assert len(seen[0]) == len(set(seen[0]))
    columns = store.episode_columns
    assert 0 <= int(columns["steps"][columns["split"] == "train"].sum()) - len(seen[0]) < 4 * 8  # lanes cut evenly
    batch = next(statevla.batches(store, batch_size=4, next_observation=True))
    assert batch.has_next.all()


def test_paths_are_taken_as_people_write_them_and_stay_valid(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(project))
    monkeypatch.chdir(project)
    stores = [statevla.open_store(make(path)) for make in (str, Path)
              for path in ("data/stores/tabletop", "~/data/stores/tabletop")]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for store in stores:
        assert next(statevla.batches(store, batch_size=4)).chunk.shape[0] == 4
        assert store.stats() is not None
    policy = statevla.load_policy("~/runs/tabletop", device="cpu")
    statevla.evaluate(policy, "tabletop", out="~/results", name="mine", episodes=4, max_steps=2)
    assert (project / "results/results.json").is_file()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"batch_size": -1}, {"chunk": 0}, {"epochs": 0}, {"threads": 0}, {"seed": -1}, {"seed": 2**64}],
)  # fmt: skip
def test_a_number_of_batches_that_is_out_of_range_is_named(project: Path, wrong: dict[str, Any]) -> None:
    store = statevla.open_store(project / "data/stores/tabletop")
    with pytest.raises(UsageError, match=f"batches: {next(iter(wrong))}: expected a whole number"):
        statevla.batches(store, **wrong)


def test_a_policy_that_refuses_an_instruction_names_those_of_its_training(project: Path) -> None:
    policy = statevla.load_policy(project / "runs/tabletop")
    policy.vector("wash the dishes")
    with pytest.raises(StoreMissing, match="was trained on: put the green block") as caught:
        policy.vector("")
    assert "wash the dishes" not in str(caught.value)


def test_every_public_name_is_there_and_no_other() -> None:
    for name in statevla.__all__:
        assert getattr(statevla, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Polciy'"):
        statevla.Polciy  # noqa: B018
    for package in ("statevla", "stores"):  # a Store is a type of the second
        assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import statevla", ("torch", "torch._dynamo", "numpy", "zarr", "pyarrow", "dask", "matplotlib")),
        ("import statevla; statevla.Policy; statevla.evaluate", ("dask", "h5py", "matplotlib")),
        ("import statevla.systems.table; import statevla.policies.policy", ("torch._dynamo", "sympy", "transformers")),
        ("import statevla.runs.listing; import statevla.reports.runs_page", ("torch", "transformers", "zarr")),
    ],
)
def test_importing_loads_nothing_heavy(code: str, absent: tuple[str, ...]) -> None:
    check = f"{code}\nimport sys\nfound = sorted(set({absent!r}) & set(sys.modules))\nassert not found, found\n"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
