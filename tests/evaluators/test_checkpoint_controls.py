"""Controls in a checkpoint's place: each does what it says, results say it, and comparisons name it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli import app
from pipelines.collect.tabletop import collect_tabletop
from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from statevla.evaluators.choose import choose_policy
from statevla.evaluators.compare import compare
from statevla.evaluators.compare_results import policy_rows
from statevla.evaluators.goals import WithGoals
from statevla.observation import Observation
from statevla.policies.checkpoint_controls import CONTROLS, MeanAction, NoInstruction
from statevla.policies.noise import Draw
from statevla.policies.policy import Policy
from statevla.systems.acting import Scene
from statevla.trainers.trainer import train
from stores.errors import UsageError
from stores.reader import Store
from tests.trainers.micro import config_of_all

SHORT = ("--episodes", "4", "--max-steps", "4", "--videos", "0", "--json")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of tabletop demonstrations, and runs of a policy told by language and of one told by either."""
    root = tmp_path_factory.mktemp("controls")
    collect_tabletop(root / "raw", 8, image_size=32)
    ingest(IngestConfig(suite="tabletop", source=root / "raw", out=root / "store", language="hashed"))
    compute_statistics(root / "store")
    config = config_of_all("training.max_steps=3", "film.hidden=16", "goal.image_size=32", "goal.width=32")
    for system in ("film", "goal"):
        train(system, config, root / "store", root / system)
    return root


def chosen(root: Path, control: str | None = None, run: str = "film", **more: Any) -> Any:
    return choose_policy("checkpoint", "tabletop", checkpoint=root / run, device="cpu", control=control, **more).policy


def seen(policy: Any, count: int = 3) -> list[Observation]:
    rng = np.random.default_rng(0)
    texts = sorted(policy.trained)
    return [
        Observation(
            images=tuple(rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)),
            robot_state=rng.normal(size=9).astype(np.float32),
            instruction=texts[i % len(texts)],
        )
        for i in range(count)
    ]


def test_the_untrained_model_is_the_same_with_random_weights(root: Path) -> None:
    policy, state = chosen(root), torch.get_rng_state()
    control, other = (chosen(root, "untrained", seed=seed) for seed in (0, 1))
    assert torch.equal(state, torch.get_rng_state())
    mine, theirs = (each.model.state_dict() for each in (control, policy))
    assert {name: value.shape for name, value in mine.items()} == {name: value.shape for name, value in theirs.items()}
    assert not torch.equal(mine["net.policy.0.weight"], theirs["net.policy.0.weight"])
    for name in ("standardize_action.shift", "standardize_action.scale", "standardize_robot_state.shift"):
        assert torch.equal(mine[name], theirs[name])
    fresh = Policy.untrained(policy.config, Store.open(root / "store"), system="film").model.state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in mine.items())
    assert len({policy.identity, control.identity, other.identity}) == 3
    assert chosen(root, "untrained").identity == control.identity
    assert (control.step, control.made_by, control.trained.keys()) == (None, {}, policy.trained.keys())
    assert control.init_states == policy.init_states
    assert not torch.equal(control.act(seen(policy)).chunk, policy.act(seen(policy)).chunk)


def test_the_mean_action_is_the_train_splits_whatever_is_seen(root: Path) -> None:
    policy, control = chosen(root), chosen(root, "mean-action")
    assert isinstance(control, MeanAction)
    store = Store.open(root / "store")
    taught = [
        store.frames["action"][start : start + steps]
        for start, steps, split in zip(
            np.cumsum([0, *store.episode_columns["frames"][:-1]]), store.episode_columns["steps"],
            store.episode_columns["split"], strict=True,
        )
        if split == "train"
    ]  # fmt: skip
    mean = np.concatenate(taught).mean(axis=0)
    mean[6] = 1 if mean[6] > 0 else -1
    chunk = control.act(seen(policy), [Draw(1, row) for row in range(3)]).chunk
    assert chunk.shape == (3, policy.chunk, 7)
    np.testing.assert_allclose(chunk.numpy(), np.broadcast_to(mean, chunk.shape), rtol=1e-4, atol=1e-6)
    closed = replace(store.stats(), action=replace(store.stats().action, mean=(*store.stats().action.mean[:6], 0.1)))
    assert MeanAction.of(policy, closed).action[6] == 1
    assert control.init_states == policy.init_states


def test_no_instruction_is_an_embedding_of_zeros(root: Path) -> None:
    policy, control = chosen(root), chosen(root, "no-instruction")
    assert isinstance(control, NoInstruction)
    first, *_ = seen(policy)
    told = [replace(first, instruction=text) for text in (*sorted(policy.trained)[:2], "never heard of")]
    chunks = [control.act([each]).chunk for each in told]
    assert torch.equal(chunks[0], chunks[1])
    assert torch.equal(chunks[0], chunks[2])
    batch = policy.observe(told[:1])
    with torch.inference_mode():
        zero = policy.model.condition(torch.zeros_like(batch.language))
        assert torch.equal(policy.model.decide(Scene(batch.images, batch.robot_state, zero, None)).chunk, chunks[0])
    own = [policy.act([each]).chunk for each in told[:2]]
    assert not torch.equal(own[0], own[1])
    assert not torch.equal(own[0], chunks[0])
    assert not control.vector("never heard of").any()
    assert (control.step, control.made_by) == (policy.step, policy.made_by)


def evaluated(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    app(["eval", "tabletop", "--checkpoint", str(root / "film"), *options, *SHORT], standalone_mode=False)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def trials_of(results: dict[str, Any]) -> list[tuple[str, int]]:
    return [(record["task"], record["start"]) for record in results["records"]]


def test_results_and_comparisons_name_the_control(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = evaluated(root, capsys)
    assert own["control"] is None
    told = {control: evaluated(root, capsys, "--control", control) for control in CONTROLS}
    for control, results in told.items():
        folder = Path(results["out"])
        assert results["control"] == json.loads((folder / "run.json").read_text())["control"] == control
        assert folder.name.startswith(f"tabletop-{control}-")
        assert results["policy"].endswith(f"checkpoint_latest, {control}")
        assert f"A control: {CONTROLS[control]}." in (folder / "results.md").read_text()
        assert trials_of(results) == trials_of(own)
    assert len({results["identity"] for results in (own, *told.values())}) == 4
    found = compare([root / "film", *(Path(results["out"]) for results in told.values())])  # a run means its own
    assert [each.name for each in found.evaluations] == ["film", *(f"film, {control}" for control in CONTROLS)]
    assert not found.notes[:-1], "that they are controls is in their names"
    tables = {row[0]: row[4:6] for row in policy_rows(found)}
    minutes = {each["control"]: each["training_minutes"] for each in found.to_dict()["policies"]}
    assert [*minutes] == [None, *CONTROLS]
    assert minutes[None] == minutes["no-instruction"] > minutes["untrained"] == 0
    assert tables["film, no-instruction"] == tables["film"]
    assert tables["film, untrained"] == [tables["film"][0], "0.0"]
    assert tables["film, mean-action"] == ["-", "-"]


def test_evaluations_of_before_are_gone_on_with(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(evaluated(root, capsys, "--tasks", "1")["out"])
    described = json.loads((folder / "run.json").read_text())
    assert described.pop("control", 0) is None
    (folder / "run.json").write_text(json.dumps(described))
    assert evaluated(root, capsys, "--tasks", "1")["steps_run"] == 0
    assert compare([folder, Path(evaluated(root, capsys, "--tasks", "1", "--control", "untrained")["out"])]).pairs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            "--policy expert --control untrained",
            "control: untrained stands in a checkpoint's place; expert is a",
        ),
        ("--policy zero --control mean-action", "zero is a control itself"),
        ("--control deaf", "control 'deaf': expected one of untrained, mean-action, no-instruction"),
        ("--control mean-action --euler-steps 2", "euler_steps: makes no sense with mean-action"),
        ("--control mean-action --goals image", "goals: makes no sense with mean-action"),
    ],
)
def test_a_control_that_cannot_be_is_one_line(root: Path, options: str, said: str) -> None:
    with pytest.raises(UsageError) as told:
        app(["eval", "tabletop", "--checkpoint", str(root / "film"), *options.split()], standalone_mode=False)
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_controls_of_a_policy_that_takes_goals(root: Path) -> None:
    pictured = chosen(root, "untrained", "goal", goals="image")
    assert isinstance(pictured, WithGoals)
    assert pictured.control == "untrained"
    assert isinstance(chosen(root, "no-instruction", "goal", goals="language"), NoInstruction)
    assert isinstance(chosen(root, "mean-action", "goal"), MeanAction)
    with pytest.raises(UsageError, match=r"no-instruction takes the instruction away, and .* is told by a picture"):
        chosen(root, "no-instruction", "goal", goals="image")
