"""What a command means when it is not told: the only thing that fits, or an error that lists what does."""

import json
import shutil
from pathlib import Path

import pytest

from statevla.runs.files import PHASE_FOLDERS
from statevla.runs.folder import find_policy, find_store, plan_training
from stores.errors import StoreMissing, UsageError
from stores.manifest import content_hash
from tests.trainers.micro import micro_config, micro_store
from tests.trainers.test_checkpoint import make_snapshot


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_store(tmp_path_factory.mktemp("runs") / "store")


def add_store(root: Path, name: str, template: Path) -> Path:
    return Path(shutil.copytree(template, root / "stores" / name))


def add_checkpoint(root: Path, run: str, phase: int, name: str, store_hash: str) -> Path:
    folder = root / "runs" / run / "checkpoints" / PHASE_FOLDERS[phase] / name
    folder.mkdir(parents=True)
    state = {**make_snapshot(1).state.to_dict(), "phase": phase, "manifest_hash": store_hash}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def test_the_only_store_is_meant_and_several_are_listed(tmp_path: Path, template: Path) -> None:
    with pytest.raises(StoreMissing, match="statevla ingest SUITE"):
        find_store(None, tmp_path / "stores")
    one = add_store(tmp_path, "one", template)
    assert find_store(None, tmp_path / "stores") == one
    two = add_store(tmp_path, "two", template)
    with pytest.raises(UsageError, match=f"{one}, {two}; name one with --store"):
        find_store(None, tmp_path / "stores")
    assert find_store(two, tmp_path / "stores") == two
    with pytest.raises(StoreMissing, match="no store here"):
        find_store(tmp_path / "three")


def test_phase_2_takes_the_encoder_that_was_trained_on_the_store(tmp_path: Path, template: Path) -> None:
    def plan(**options: Path) -> tuple[Path | None, Path]:
        job = plan_training(
            2,
            micro_config(),
            stores=tmp_path / "stores",
            runs=tmp_path / "runs",
            **options,  # type: ignore[arg-type]
        )
        assert str(job.encoder) in job.text
        assert job.config.data.store == str(job.store)
        return job.encoder, job.run

    identity = content_hash(add_store(tmp_path, "one", template))
    add_checkpoint(tmp_path, "foreign", 1, "checkpoint_latest", "0" * 64)
    with pytest.raises(UsageError, match="no phase-1 checkpoint of this store"):
        plan()
    first = add_checkpoint(tmp_path, "a", 1, "checkpoint_latest", identity)
    assert plan() == (first, tmp_path / "runs/a")
    assert plan(run=tmp_path / "elsewhere") == (first, tmp_path / "elsewhere")
    second = add_checkpoint(tmp_path, "demo/b", 1, "checkpoint_latest", identity)
    with pytest.raises(UsageError, match=f"{first}, {second}"):
        plan()
    assert plan(run=tmp_path / "runs/demo/b") == (second, tmp_path / "runs/demo/b")
    assert plan(encoder=first) == (first, tmp_path / "runs/a")


def test_phase_1_runs_are_named_after_the_store(tmp_path: Path, template: Path) -> None:
    add_store(tmp_path, "one", template)
    job = plan_training(1, micro_config(), stores=tmp_path / "stores", runs=tmp_path / "runs")
    assert (job.run, job.encoder) == (tmp_path / "runs/one", None)
    with pytest.raises(UsageError, match="--encoder is for phase 2"):
        plan_training(1, micro_config(), stores=tmp_path / "stores", encoder=tmp_path)


def test_the_best_policy_of_the_only_run_is_meant(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with pytest.raises(UsageError, match="no phase-2 checkpoint"):
        find_policy(None, root)
    latest = add_checkpoint(tmp_path, "a", 2, "checkpoint_latest", "0" * 64)
    assert find_policy(None, root) == latest
    best = add_checkpoint(tmp_path, "a", 2, "checkpoint_best", "0" * 64)
    assert find_policy(None, root) == best
    assert find_policy(latest, root) == latest
    add_checkpoint(tmp_path, "b", 2, "checkpoint_latest", "0" * 64)
    with pytest.raises(UsageError, match="several policies"):
        find_policy(None, root)
    with pytest.raises(StoreMissing, match="no checkpoint here"):
        find_policy(tmp_path / "none", root)
