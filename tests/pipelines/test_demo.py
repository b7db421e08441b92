"""The demo end to end at the smallest size, and when it counts as learned."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.showcase.config import MARK, OUTPUTS, DemoConfig, judge
from pipelines.showcase.looks import moving_names
from pipelines.showcase.run import run_demo
from statevla.evaluators.intervals import wilson
from statevla.evaluators.results import Results
from statevla.sims.tabletop.environment import TASKS
from stores.errors import UsageError
from stores.progress import ProgressEvent
from stores.reader import Store

SMALLEST = DemoConfig(
    episodes=12,
    image_size=32,
    train_split=0.75,
    settings=(
        "model.image_size=32", "model.embed_dim=32", "model.encoder_depth=1", "model.policy_layers=1",
        "training.phase1.temporal_predictor_hidden_dim=32", "model.gripper_width=32", "training.batch_size=64",
        "training.log_interval=1", "training.max_steps=3",
    ),
    trials=3,
    max_steps=12,
)  # fmt: skip


def outcome(successes: int, trials: int = 50) -> Results:
    rate = successes / trials if trials else None
    return Results(
        "tabletop", "p", "", rate, rate, successes, trials, wilson(successes, trials), 0, None, {}, {}, None, 0.0, 0,
        None, {}, (),
    )  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_no_demo_made_is_not_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("of the user")
    with pytest.raises(UsageError, match=rf"holds {name}, and no .demo.json that says that a demo made it"):
        run_demo(tmp_path, workers=0, config=SMALLEST)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "thesis.tex").exists()


def test_the_whole_way_leaves_a_report_and_starts_clean(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    (out / "store").mkdir(parents=True)
    (out / "store" / "left_behind").write_text("of an earlier demo")
    (out / "mine.txt").write_text("of the user")
    (out / MARK).write_text("{}")
    events: list[ProgressEvent] = []
    summary = run_demo(out, workers=0, seed=1, progress=events.append, config=SMALLEST)
    assert not summary.learned  # three steps teach nothing
    assert summary.trained.trials == summary.untrained.trials == summary.shuffled.trials == 3
    assert not (out / "store" / "left_behind").exists()
    assert (out / "mine.txt").read_text() == "of the user"
    assert {path.name for path in out.iterdir()} - {".lock", "mine.txt", MARK} == set(OUTPUTS)
    text = (out / "report.html").read_text()
    assert summary.report == str(out / "report.html")
    assert text.count('class="film"') == 2 * 3  # of the trained policy and the control, one a task
    trained = text.count('class="chart half"') - len(moving_names(Store.open(out / "store")))
    assert trained == 9  # demonstrations, each with its trace
    assert text.count("data:image/png") == len(TASKS) + trained  # one of every instruction
    assert text.count("<polyline") >= 3 * 2  # training and validation of each run
    assert "rx, ry, rz never move" in text
    assert "statevla demo --out" in text
    assert re.search(r"seed [12] goes on", text)
    written = json.loads((out / "summary.json").read_text())
    assert written["learned"] is False
    assert {"trained", "untrained", "shuffled", "mse_normalized", "verdict", "report"} <= set(written)
    assert json.loads(json.dumps(summary.to_dict())) == {k: written[k] for k in summary.to_dict()}
    assert {event.task for event in events} >= {"collect", "offline evaluation", "closed loop, trained"}


@pytest.mark.parametrize(
    ("trained", "untrained", "shuffled", "learned", "wrong"),
    [
        (45, 0, 8, True, ""),
        (40, 4, 8, True, ""),
        (39, 0, 2, False, "the trained policy"),
        (45, 5, 2, False, "the untrained one"),
        (45, 0, 40, False, "shuffled instructions"),
    ],
)
def test_what_counts_as_learned(trained: int, untrained: int, shuffled: int, learned: bool, wrong: str) -> None:
    judged, verdict = judge(outcome(trained), outcome(untrained), outcome(shuffled), DemoConfig())
    assert judged is learned
    assert f"{2 * trained} %" in verdict
    if not learned:
        assert wrong in verdict.split("In full:")[0]


def test_a_demo_in_which_the_simulator_only_crashed_did_not_learn() -> None:
    none = outcome(0, trials=0)
    assert not judge(none, none, none, DemoConfig())[0]


def test_the_control_differs_in_the_instructions_only() -> None:
    config = DemoConfig()
    control, policy = config.training("flow_matching", 7, shuffled=True), config.training("flow_matching", 7)
    assert control.data.shuffle_instructions
    assert replace(control, data=policy.data) == policy
    assert policy.training.seed == 7
