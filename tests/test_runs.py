"""What a command means when it is not told: the only thing that fits, or an error that lists what does."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import statevla
from cli import main
from statevla.config import replace
from statevla.config.load import Request, parse_overrides
from statevla.runs.layout import checkpoints, run_of, without_suffix
from statevla.runs.stores import find_store
from statevla.systems.find import find_encoder, find_policy, to_resume
from statevla.systems.system import System
from statevla.systems.table import find_system
from statevla.trainers.jobs import TrainingJob, plan_resume, plan_training
from stores.errors import StoreMissing, UsageError
from stores.manifest import content_hash
from tests.trainers.micro import SETTINGS, micro_config, micro_store
from tests.trainers.test_checkpoint import make_snapshot


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_store(tmp_path_factory.mktemp("runs") / "store")


def add_store(root: Path, name: str, template: Path) -> Path:
    return Path(shutil.copytree(template, root / "stores" / name))


JEPA, FLOW = find_system("temporal_jepa"), find_system("flow_matching")
MICRO = Request("tiny", parse_overrides(SETTINGS))


def nothing_more(system: System) -> Request:
    return Request(None, {})


def add_checkpoint(root: Path, run: str, system: System, name: str, store_hash: str, *settings: str, step: int = 1,
                   total: int = 1) -> Path:  # fmt: skip
    folder = checkpoints(root / "runs" / run, system.folder) / name
    folder.mkdir(parents=True)
    config = replace(micro_config("model.policy_layers=2"), parse_overrides(settings)).to_dict()
    state = {**make_snapshot(1).state.to_dict(), "system": system.name, "content_hash": store_hash, "step": step}
    (folder / "state.json").write_text(json.dumps({**state, "config": config, "scheduler": {"total_steps": total}}))
    return folder


def test_a_run_of_another_system_is_called_what_it_is(tmp_path: Path) -> None:
    run = run_of(add_checkpoint(tmp_path, "eyes", find_system("film"), "checkpoint_latest", "0" * 64))
    add_checkpoint(tmp_path, "eyes", find_system("act"), "checkpoint_latest", "0" * 64)
    with pytest.raises(StoreMissing) as told:
        find_encoder(run, "0" * 64)
    (expected, got) = str(told.value).removeprefix(f"{run}: expected a run with a checkpoint of ").split(", ")
    assert {"stamo", "temporal_jepa"} <= set(expected.split(" or "))
    assert got == "got one with film and act; name another"
    add_checkpoint(tmp_path, "seen", JEPA, "checkpoint_best", "0" * 64)  # the right one, but not its latest
    with pytest.raises(StoreMissing, match="seen: no checkpoint here"):
        find_encoder(tmp_path / "runs" / "seen", "0" * 64)


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


def test_a_policy_takes_the_encoder_that_was_trained_on_the_store(tmp_path: Path, template: Path) -> None:
    def plan(request: Request = MICRO, **options: Path) -> TrainingJob:
        job = plan_training(
            FLOW,
            request,
            stores=tmp_path / "stores",
            runs=tmp_path / "runs",
            **options,  # type: ignore[arg-type]
        )
        assert str(job.parent) in job.text
        assert job.config.data.store == str(job.store)
        return job

    def chosen(**options: Path) -> tuple[Path | None, Path]:
        job = plan(**options)  # type: ignore[arg-type]
        return job.parent, job.run

    identity = content_hash(add_store(tmp_path, "one", template))
    add_checkpoint(tmp_path, "foreign", JEPA, "checkpoint_latest", "0" * 64)
    with pytest.raises(UsageError, match="no checkpoint of temporal_jepa of this store"):
        plan()
    first = add_checkpoint(tmp_path, "a", JEPA, "checkpoint_latest", identity)
    assert chosen() == (first, tmp_path / "runs/a")
    assert chosen(run=tmp_path / "elsewhere") == (first, tmp_path / "elsewhere")
    deeper = add_checkpoint(tmp_path, "demo/b", JEPA, "checkpoint_latest", identity)
    assert chosen() == (first, tmp_path / "runs/a"), "a run right below runs/ comes first"
    second = add_checkpoint(tmp_path, "c", JEPA, "checkpoint_latest", identity)
    with pytest.raises(UsageError, match=f"{first}, {second}"):
        plan()
    assert chosen(run=tmp_path / "runs/demo/b") == (deeper, tmp_path / "runs/demo/b")
    assert chosen(encoder=first) == (first, tmp_path / "runs/a")
    assert chosen(encoder=tmp_path / "runs/a") == (first, tmp_path / "runs/a"), "a run is as good as its checkpoint"


def test_a_policy_inherits_the_model_of_its_encoders_run(tmp_path: Path, template: Path) -> None:
    identity = content_hash(add_store(tmp_path, "one", template))
    encoder = add_checkpoint(tmp_path, "a", JEPA, "checkpoint_latest", identity, "model.d_state=2")
    where = {"stores": tmp_path / "stores", "runs": tmp_path / "runs"}
    job = plan_training(FLOW, Request(None, {"model.gripper_width": 8, "training.batch_size": 4}), **where)
    assert job.parent == encoder
    assert (job.config.model.d_state, job.config.model.policy_layers) == (2, 2)
    assert (job.config.model.gripper_width, job.config.training.batch_size) == (8, 4)
    named = plan_training(FLOW, MICRO, **where)
    assert named.config.model.policy_layers == 1, "a preset that is named is the model; `train` refuses what differs"


def test_an_encoders_run_is_named_after_the_store(tmp_path: Path, template: Path) -> None:
    add_store(tmp_path, "one", template)
    job = plan_training(JEPA, MICRO, stores=tmp_path / "stores", runs=tmp_path / "runs")
    assert (job.run, job.parent) == (tmp_path / "runs/one", None)
    with pytest.raises(UsageError, match="--encoder is for systems that take one"):
        plan_training(JEPA, MICRO, stores=tmp_path / "stores", encoder=tmp_path)


def test_the_latest_policy_of_the_only_run_is_meant(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with pytest.raises(UsageError, match="statevla train --phase 2"):
        find_policy(None, root)
    best = add_checkpoint(tmp_path, "a", FLOW, "checkpoint_best", "0" * 64)
    assert find_policy(None, root) == best
    latest = add_checkpoint(tmp_path, "a", FLOW, "checkpoint_latest", "0" * 64)
    add_checkpoint(tmp_path, "demo/train", FLOW, "checkpoint_latest", "0" * 64)
    add_checkpoint(tmp_path, "control", FLOW, "checkpoint_latest", "0" * 64, "data.shuffle_instructions=true")
    assert find_policy(None, root) == latest, "neither a control nor a deeper run is meant beside it"
    for way in (root / "a", best.parent, Path(f"{latest}.pt")):
        assert find_policy(way, root) == latest, way
    for way in (best, Path(f"{best}.pt")):
        assert find_policy(way, root) == best, way
    add_checkpoint(tmp_path, "b", FLOW, "checkpoint_latest", "0" * 64)
    with pytest.raises(UsageError, match="several policies"):
        find_policy(None, root)
    with pytest.raises(StoreMissing, match="no checkpoint here"):
        find_policy(tmp_path / "none", root)
    with pytest.raises(UsageError, match="expected a trained policy"):
        find_policy(add_checkpoint(tmp_path, "c", JEPA, "checkpoint_latest", "0" * 64), root)


def test_the_demos_trained_policy_is_meant_when_it_is_the_only_one(tmp_path: Path) -> None:
    trained = add_checkpoint(tmp_path, "demo/train", FLOW, "checkpoint_latest", "0" * 64)
    add_checkpoint(tmp_path, "demo/shuffled", FLOW, "checkpoint_latest", "0" * 64, "data.shuffle_instructions=true")
    assert find_policy(None, tmp_path / "runs") == trained


def test_what_resume_means(tmp_path: Path, template: Path) -> None:
    run = tmp_path / "runs/a"
    with pytest.raises(StoreMissing, match="nothing to resume"):
        to_resume(run)
    one = add_checkpoint(tmp_path, "a", JEPA, "checkpoint_latest", "0" * 64, total=9)
    assert to_resume(run) == to_resume(one) == to_resume(one.parent) == (JEPA, one)
    two = add_checkpoint(tmp_path, "a", FLOW, "checkpoint_latest", "0" * 64)
    assert to_resume(run) == (JEPA, one), "the one that is not finished"
    assert to_resume(run, FLOW) == (FLOW, two)
    with pytest.raises(UsageError, match="a checkpoint of flow_matching, not of temporal_jepa"):
        to_resume(two, JEPA)
    add_checkpoint(tmp_path, "b", JEPA, "checkpoint_latest", "0" * 64, total=9)
    add_checkpoint(tmp_path, "b", FLOW, "checkpoint_latest", "0" * 64, total=9)
    with pytest.raises(UsageError, match="--system temporal_jepa or --system flow_matching"):
        to_resume(tmp_path / "runs/b")


def test_a_resumed_run_needs_nothing_but_its_name(tmp_path: Path, template: Path) -> None:
    store = add_store(tmp_path, "one", template)
    setting = f"data.store={store}"
    latest = add_checkpoint(tmp_path, "a", JEPA, "checkpoint_latest", "0" * 64, setting, "training.max_steps=7")
    job = plan_resume(tmp_path / "runs/a", lambda system: Request(None, {"training.log_interval": 5}))
    assert (job.system, job.resume, job.run, job.store) == (JEPA, latest, tmp_path / "runs/a", str(store))
    assert (job.config.training.max_steps, job.config.training.log_interval) == (7, 5)
    assert job.config.model == micro_config("model.policy_layers=2").model


def test_a_run_is_gone_on_with_from_any_folder(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = add_store(tmp_path, "one", template)
    monkeypatch.chdir(tmp_path)
    job = plan_training(JEPA, MICRO, store="stores/one")
    assert (job.store, job.config.data.store) == ("stores/one", str(store))
    assert plan_training(JEPA, MICRO, store="s3://robots/one").config.data.store == "s3://robots/one"
    latest = add_checkpoint(tmp_path, "a", JEPA, "checkpoint_latest", content_hash(store), "data.store=stores/one")
    assert plan_resume(latest, nothing_more).config.data.store == str(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    where = r"stores/one: no store here; that is what .*checkpoint_latest names, relative to .* started; .*--store"
    with pytest.raises(StoreMissing, match=where):
        plan_resume(latest, nothing_more)
    with pytest.raises(StoreMissing, match=where):
        plan_training(FLOW, MICRO, encoder=latest)
    assert plan_resume(latest, nothing_more, store=store).config.data.store == str(store)


def test_an_encoders_run_is_no_policys(tmp_path: Path) -> None:
    latest = add_checkpoint(tmp_path, "a", JEPA, "checkpoint_latest", "0" * 64)
    for path in (latest, tmp_path / "runs/a"):
        with pytest.raises(UsageError, match="temporal_jepa"):
            statevla.load_policy(path)
    with pytest.raises(StoreMissing):
        statevla.load_policy(tmp_path / "runs/b")


def test_layout_of_a_checkpoint() -> None:
    assert run_of(Path("runs/a/checkpoints/phase1_temporal_jepa/checkpoint_best")) == Path("runs/a")
    assert run_of(Path("checkpoints/phase1_temporal_jepa/checkpoint_best")) == Path()
    assert run_of(Path("somewhere/checkpoint_best")) == Path("somewhere")
    assert without_suffix(Path("checkpoints/x/checkpoint_best.pt")) == Path("checkpoints/x/checkpoint_best")


def test_a_run_that_is_the_folder_itself_has_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the documents' commands leave it: checkpoints/ in the folder where they are called."""
    add_checkpoint(tmp_path, "here", JEPA, "checkpoint_latest", "0" * 64)
    monkeypatch.chdir(tmp_path / "runs" / "here")
    monkeypatch.setattr(sys, "argv", ["statevla", "runs", "."])
    with pytest.raises(SystemExit):
        main()
    row = next(line for line in capsys.readouterr().out.splitlines() if "temporal_jepa" in line)
    assert row.split("│")[1].strip() == "."
