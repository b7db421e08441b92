"""One command from nothing to a suite's numbers: collect, ingest, statistics, training, evaluation.

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
from statevla.sims.libero import memory, suites
from statevla.systems.find import find_policy
from statevla.systems.table import find_system
from statevla.trainers.command import TrainFlags, run_training
from stores.disk import durable
from stores.errors import StateVLAError, UsageError
from stores.progress import Progress
from stores.reader import Store

TWO_PHASES: Final = ("temporal_jepa", "flow_matching")
SETTINGS: Final = "reproduce.json"


@dataclass(frozen=True)
class Plan:
    """What makes a suite's numbers.

    tasks: ``"0-2"``; None: all. episodes, init_states: demonstrations a task, from the first so many initial states;
    trials start past them. image_size: of the pictures. noise, noise_share: of the collection. systems: what is
    trained, in order; the last one is the policy. recipe: of all of them. overrides: further keys, ``name=value``.
    trials: a task. replan, ensemble: the execution.
    """

    recipe: str
    systems: tuple[str, ...] = TWO_PHASES
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


# The recipe shifts its pictures: five demonstrations a task are enough then, and half a chunk executed.
FILM: Final = Plan("libero", ("film",), episodes=5, noise=0.3, replan=5)
VLA: Final = Plan(
    "systems",
    ("vla",),
    episodes=16,
    noise=0.3,
    replan=1,
    ensemble=0.01,
    # As the suites' figures were made; in 30 trials of libero_spatial the recipe's readout was not told apart from it.
    overrides=("training.max_steps=8000", "vla.instruction=token"),
)
PLANS: Final[Mapping[str, Mapping[str, Plan]]] = {
    "libero_object": {
        "film": FILM,
        # As in docs/results-libero.md, but 30 demonstrations of every task, and temporal ensembling at every step.
        "flow_matching": Plan("libero", replan=1, ensemble=0.01),
        "vla": VLA,
    },
    "libero_goal": {"vla": VLA, "film": FILM},
    "libero_spatial": {"vla": VLA, "film": FILM},
    "libero_10": {"vla": VLA, "film": FILM},
}
"""By suite and policy; a suite's first one is its default."""

Collect = Callable[[str, Path, Plan, int, Progress | None], Any]


def plan_of(suite: str, system: str | None = None) -> Plan:
    """The suite's plan with this policy, None: its first. Raises UsageError where there is none."""
    if suite not in PLANS:
        raise UsageError(f"reproduce {suite}: expected one of {', '.join(PLANS)}; there is no plan for others yet")
    plans = PLANS[suite]
    system = next(iter(plans)) if system is None else system
    if system not in plans:
        raise UsageError(f"reproduce {suite} --system {system}: expected one of {', '.join(plans)}")
    return plans[system]


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
        UsageError: no plan for the suite, no memory for so many workers, or ``out`` was begun with another plan.
        StateVLAError: what a step raises. The same command goes on from there.
    """
    plan = plan or plan_of(suite)
    if suite in suites.BASES:  # before hours of work, and not only at the trials
        memory.require_room(workers)
    _check_settings(out, {"suite": suite, **asdict(plan)})
    raw, store, run = out / "raw", out / "store", out / "run"
    steps = 3 + len(plan.systems)
    say(f"1 of {steps}: demonstrations in {raw}")
    (collect or _collect)(suite, raw, plan, workers, progress)
    say(f"2 of {steps}: store {store}")
    ingest(
        IngestConfig(suite=suite, source=raw, out=store, language="hashed", train_split=0.95),
        workers=0 if workers == 1 else workers, progress=progress,
    )  # fmt: skip
    _statistics(store)
    for number, system in enumerate(plan.systems, start=3):
        say(f"{number} of {steps}: {system} in {run}")
        _train(system, store, run, plan, say, progress)
    say(f"{steps} of {steps}: trials in {out / 'eval'}")
    policy = find_policy(_latest(run, plan.systems[-1]))
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
    system: str, store: Path, run: Path, plan: Plan, say: Callable[[str], None], progress: Progress | None
) -> None:
    """Starts a training, or goes on with it; one that is through says so and trains nothing."""
    latest = _latest(run, system)
    if is_checkpoint(latest):
        flags = TrainFlags(resume=latest)
    else:
        flags = TrainFlags(system=system, store=str(store), run=run, recipe=plan.recipe, overrides=plan.overrides)
    summary = run_training(flags, say, progress)
    if summary.stopped:
        raise StateVLAError(f"{run}: {system} was stopped at step {summary.steps}; the same command goes on")


def _latest(run: Path, system: str) -> Path:
    return checkpoints(run, find_system(system).folder) / LATEST


def _check_settings(out: Path, wanted: dict[str, Any]) -> None:
    file = out / SETTINGS
    wanted = {key: list(value) if isinstance(value, tuple) else value for key, value in wanted.items()}
    if not file.exists():
        durable.write_json(file, wanted)
        return
    present = json.loads(file.read_text())
    different = [f"{k} = {present.get(k)!r}, now {v!r}" for k, v in wanted.items() if present.get(k) != v]
    if different:
        raise UsageError(f"{out} was begun with {'; '.join(different)}. Name another folder with --out, or remove it")
