"""One command from nothing to a suite's numbers: collect, ingest, statistics, both phases, evaluation.

Every step goes on where an interrupted call stopped, so the same command is given again until it is through: collection
and ingest skip what is there, a training goes on from its last checkpoint, an evaluation runs the trials that are
missing.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pipelines.collect.libero import collect_libero
from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from statevla.evaluators.evaluate import evaluate
from statevla.evaluators.results import Results
from statevla.policies.execution import Execution
from statevla.policies.policy import Policy
from statevla.runs.layout import LATEST, checkpoints, is_checkpoint
from statevla.systems.find import find_policy
from statevla.systems.table import find_system
from statevla.trainers.command import TrainFlags, run_training
from stores.disk import durable
from stores.errors import StateVLAError, UsageError
from stores.progress import Progress
from stores.reader import Store

PHASES: Final = (1, 2)
SETTINGS: Final = "reproduce.json"


@dataclass(frozen=True)
class Plan:
    """What makes a suite's numbers.

    tasks: ``"0-2"``; None: all. episodes, init_states: demonstrations a task, from the first so many initial states;
    trials start past them. image_size: of the pictures. noise, noise_share: of the collection. recipe: of both phases,
    with their lengths. overrides: further keys, ``name=value``. trials: a task. replan, ensemble: the execution.
    """

    recipe: str
    tasks: str | None = None
    episodes: int = 30
    init_states: int = 30
    image_size: int = 64
    noise: float = 0.0
    noise_share: float = 0.5
    overrides: tuple[str, ...] = ()
    trials: int = 20
    replan: int | None = None
    ensemble: float | None = None
    max_steps: int | None = None


PLANS: Final[Mapping[str, Plan]] = {"libero_object": Plan("libero", replan=1, ensemble=0.01)}
"""Suites with a plan. libero_object: as in docs/results-libero.md, but 30 demonstrations of every task, of 64 pixels,
and temporal ensembling at every step."""

Collect = Callable[[str, Path, Plan, int, Progress | None], Any]


def plan_of(suite: str) -> Plan:
    """The suite's plan. Raises UsageError for a suite without."""
    if suite not in PLANS:
        raise UsageError(f"reproduce {suite}: expected one of {', '.join(PLANS)}; there is no plan for others yet")
    return PLANS[suite]


def reproduce(
    suite: str,
    out: Path,
    *,
    plan: Plan | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
    collect: Collect | None = None,
) -> Results:
    """Everything below ``out``: ``raw/``, ``store/``, ``run/``, ``eval/``. collect: None: `collect_libero`.

    Raises:
        UsageError: no plan for the suite, or ``out`` was begun with another one.
        StateVLAError: what a step raises. The same command goes on from there.
    """
    plan = plan or plan_of(suite)
    _check_settings(out, {"suite": suite, **asdict(plan)})
    raw, store, run = out / "raw", out / "store", out / "run"
    say(f"1 of 5: demonstrations in {raw}")
    (collect or _collect)(suite, raw, plan, workers, progress)
    say(f"2 of 5: store {store}")
    ingest(
        IngestConfig(suite=suite, source=raw, out=store, language="hashed", train_split=0.95),
        workers=0 if workers == 1 else workers, progress=progress,
    )  # fmt: skip
    _statistics(store)
    for phase in PHASES:
        say(f"{2 + phase} of 5: phase {phase} in {run}")
        _train(phase, store, run, plan, say, progress)
    say(f"5 of 5: trials in {out / 'eval'}")
    policy = find_policy(checkpoints(run, find_system("2").folder) / LATEST)
    return evaluate(
        Policy.load(policy, "auto"), suite, out=out / "eval", name=f"{suite}, {plan.recipe}", tasks=plan.tasks,
        num_trials=plan.trials, workers=workers, execution=Execution(plan.replan, plan.ensemble),
        max_steps=plan.max_steps, progress=progress,
    )  # fmt: skip


def _collect(suite: str, raw: Path, plan: Plan, workers: int, progress: Progress | None) -> None:
    collect_libero(
        suite, raw, tasks=plan.tasks, episodes=plan.episodes, init_states=plan.init_states, workers=workers,
        image_size=plan.image_size, noise=plan.noise, noise_share=plan.noise_share, progress=progress,
    )  # fmt: skip


def _statistics(store: Path) -> None:
    try:
        Store.open(store).stats()
    except StateVLAError:  # missing, or of other content
        compute_statistics(store)


def _train(
    phase: int, store: Path, run: Path, plan: Plan, say: Callable[[str], None], progress: Progress | None
) -> None:
    """Starts a phase, or goes on with it; one that is through says so and trains nothing."""
    latest = checkpoints(run, find_system(str(phase)).folder) / LATEST
    if is_checkpoint(latest):
        flags = TrainFlags(resume=latest)
    else:
        flags = TrainFlags(phase=phase, store=str(store), run=run, recipe=plan.recipe, overrides=plan.overrides)
    summary = run_training(flags, say, progress)
    if summary.stopped:
        raise StateVLAError(f"{run}: phase {phase} was stopped at step {summary.steps}; the same command goes on")


def _check_settings(out: Path, wanted: dict[str, Any]) -> None:
    file = out / SETTINGS
    wanted = {**wanted, "overrides": list(wanted["overrides"])}
    if not file.exists():
        durable.write_json(file, wanted)
        return
    present = json.loads(file.read_text())
    different = [f"{k} = {present.get(k)!r}, now {v!r}" for k, v in wanted.items() if present.get(k) != v]
    if different:
        raise UsageError(f"{out} was begun with {'; '.join(different)}. Name another folder with --out, or remove it")
