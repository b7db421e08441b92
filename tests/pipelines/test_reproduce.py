"""From nothing to numbers in one command, and again after a stop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.collect.tabletop import collect_tabletop
from pipelines.reproduce import TWO_PHASES, Plan, plan_of, reproduce
from statevla.runs.state import read_state
from statevla.sims.libero import memory
from statevla.systems.table import find_system, sections
from statevla.trainers.jobs import ask
from stores.errors import UsageError
from stores.progress import ProgressEvent
from tests.trainers.micro import SETTINGS

PLAN = Plan(
    "micro.yaml",
    tasks="0",
    trials=2,
    replan=5,
    max_steps=6,
    overrides=("training.max_steps=3", "training.batch_size=4"),
)


def collect(suite: str, raw: Path, plan: Plan, workers: int, progress: Any) -> None:
    if not list(raw.glob("*.hdf5")):
        collect_tabletop(raw, 8, image_size=32)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """With a recipe of small nets: it may name what one of the systems does not see, a plan's overrides may not."""
    file = tmp_path / "micro.yaml"
    tree: dict[str, Any] = {"about": "a test", "preset": "tiny"}
    for path, value in (text.split("=") for text in SETTINGS):
        *sections, key = path.split(".")
        section = tree
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = yaml.safe_load(value)
    file.write_text(yaml.safe_dump(tree))
    return replace(PLAN, recipe=str(file))


def run(out: Path, plan: Plan, progress: Any = None, told: list[str] | None = None) -> Any:
    say = (told if told is not None else []).append
    return reproduce("tabletop", out, plan=plan, collect=collect, progress=progress, say=say)


@pytest.mark.slow
@pytest.mark.parametrize("systems", [TWO_PHASES, ("film",)])
def test_the_whole_way_and_again_after_a_stop(tmp_path: Path, plan: Plan, systems: tuple[str, ...]) -> None:
    plan = replace(plan, systems=systems)
    out = tmp_path / "out"

    def stop(event: ProgressEvent) -> None:
        if event.unit == "trials" and event.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(out, plan, stop)
    weights = {file: file.stat().st_mtime_ns for file in out.rglob("model.safetensors")}
    assert len({file.parents[1].name for file in weights}) == len(systems)
    told: list[str] = []
    results = run(out, plan, told=told)
    assert results.trials == 2
    assert results.settings["replan"] == 5
    assert results.made_by == {"scripted expert": 8}
    written = (out / "eval" / "results.md").read_text()
    assert "The store it was trained on has 8 demonstrations: 8 scripted expert." in written
    assert {file: file.stat().st_mtime_ns for file in out.rglob("model.safetensors")} == weights
    assert sum("nothing was trained" in line for line in told) == len(systems)
    steps = 3 + len(systems)
    assert [line[:6] for line in told if f" of {steps}" in line] == [f"{i} of {steps}" for i in range(1, steps + 1)]
    again = run(out, plan)
    assert (again.steps_run, again.records) == (0, results.records)
    latest = next(out.glob(f"run/checkpoints/*{systems[-1]}/checkpoint_latest"))
    assert read_state(latest).step == 3
    with pytest.raises(UsageError, match="trials = 2, now 5"):
        run(out, replace(plan, trials=5))


def test_a_suite_without_a_plan() -> None:
    assert plan_of("libero_object", "flow_matching").systems == TWO_PHASES
    film = plan_of("libero_object")
    config = ask(find_system(*film.systems), None, film.recipe, None, film.overrides).config(sections())
    assert (config.training.augment_shift, config.training.max_steps, film.episodes) == (4, 6000, 5)
    assert {plan_of(suite).systems for suite in ("libero_goal", "libero_spatial", "libero_10")} == {("vla",)}
    with pytest.raises(UsageError, match=r"libero_90: expected one of libero_object, libero_goal"):
        plan_of("libero_90")
    with pytest.raises(UsageError, match=r"libero_goal --system act: expected one of vla, film"):
        plan_of("libero_goal", "act")


def test_workers_that_memory_has_no_room_for_are_refused_before_anything_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_gib", lambda: 4.0)
    asked: list[str] = []
    with pytest.raises(UsageError, match=r"--workers 2: .*4\.0 GiB are free\. --workers 1 fits"):
        reproduce("libero_goal", tmp_path / "out", workers=2, collect=lambda *_: asked.append("collect"))
    assert (asked, (tmp_path / "out").exists()) == ([], False)
