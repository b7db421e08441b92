"""The whole way on the tabletop suite: collect, ingest, statistics, both phases, evaluation, one page about it.

Three policies are measured in the same fresh episodes: the trained one, the same model with random weights, and one
whose phase 2 saw every episode with another task's instruction. The demo learns only if the first succeeds, the second
does not, and the third is clearly worse: then it was training, and the instruction, that did it.

Phase 1 is trained with two seeds and the one with the lower validation loss goes on: in so few steps, some seeds learn
the demonstrations by heart before they learn what the instruction names. Two trainings at once, one thread each, take
hardly longer than one with two threads: a model this small gains little from the second.
"""

import math
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipelines.collect.tabletop import CollectSummary, collect_tabletop
from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import IngestSummary, ingest
from pipelines.showcase.config import (
    ENCODER,
    EVAL,
    MARK,
    OUTPUTS,
    PHASE1,
    POLICY,
    RAW,
    REPORT,
    STORE,
    SUMMARY,
    TRAIN,
    TRAIN_SHUFFLED,
    DemoConfig,
    DemoSummary,
    judge,
)
from pipelines.showcase.report import build_report
from statevla.config import Config
from statevla.evaluators.evaluate import evaluate
from statevla.evaluators.offline import evaluate_offline
from statevla.evaluators.results import Results
from statevla.policies.execution import Execution
from statevla.policies.policy import Policy
from statevla.reports.page import ReportStep, write_report
from statevla.trainers.outcome import TrainSummary
from statevla.trainers.trainer import train
from stores.disk import durable
from stores.disk.lock import lock
from stores.errors import UsageError
from stores.progress import Progress
from stores.reader import Store

T = TypeVar("T")


@dataclass
class Stages:
    """Runs stages one after the other, times them and keeps what the report says of each."""

    done: list[ReportStep] = field(default_factory=list)

    def run(self, name: str, work: Callable[[], T], describe: Callable[[T], str]) -> T:
        began = time.perf_counter()
        result = work()
        self.done.append(ReportStep(name, time.perf_counter() - began, describe(result)))
        return result


def run_demo(
    out: Path = Path("runs/demo"),
    workers: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
    config: DemoConfig | None = None,
) -> DemoSummary:
    """Do everything anew below ``out`` and write ``report.html`` and ``summary.json`` there.

    Only the demo's own earlier outputs are removed. A demo that does not learn returns too, with ``learned`` false.

    Raises what its stages raise; UsageError where `out` holds outputs that are not a demo's; StoreLocked when another
    demo runs in the same folder.
    """
    config = config or DemoConfig()
    require_own(out)
    durable.make_dir(out)
    with lock(out, "demo"):
        durable.write_json(out / MARK, {"outputs": list(OUTPUTS)})
        for name in OUTPUTS:
            durable.remove(out / name)
        stages = Stages()
        policies = _make_policies(out, workers, seed, config, stages, progress)
        store = Store.open(out / STORE)
        offline = stages.run(
            "evaluate offline",
            lambda: evaluate_offline(policies["trained"], store, seed=seed, progress=progress),
            lambda r: f"normalized MSE {r.mse_normalized:.3g}, mean action {r.baseline_mean_action_mse_normalized:.3g}",
        )
        offline.save(out / EVAL)
        results = {name: _close_loop(out, name, policies[name], seed, config, stages, progress) for name in policies}
        learned, verdict = judge(results["trained"], results["untrained"], results["shuffled"], config)
        summary = DemoSummary(
            learned=learned,
            verdict=verdict,
            report=str(out / REPORT),
            seconds=sum(stage.seconds for stage in stages.done),
            offline=offline,
            **results,
        )
        report = build_report(out, store, summary, tuple(stages.done), config, seed, policies["trained"])
        write_report(out / REPORT, report)
        durable.write_json(out / SUMMARY, {**summary.to_dict(), "config": asdict(config), "seed": seed})
    return summary


def require_own(out: Path) -> None:
    """Raise UsageError where `out` holds something under the name of an output, and no demo was made there."""
    there = [name for name in OUTPUTS if os.path.lexists(out / name)]
    if there and not (out / MARK).is_file():
        raise UsageError(
            f"{out}: holds {', '.join(there)}, and no {MARK} that says that a demo made it (demos of before 2026-11-28 "
            "did not write one); remove it yourself, or name another --out. Nothing was changed"
        )


def _make_policies(
    out: Path, workers: int, seed: int, config: DemoConfig, stages: Stages, progress: Progress | None
) -> dict[str, Policy]:
    """Everything up to the three policies."""
    stages.run("collect", lambda: _collect(out, workers, seed, config, progress), _describe_collection)
    plan = IngestConfig(
        suite="tabletop",
        source=out / RAW,
        out=out / STORE,
        chunk=config.training(POLICY, seed).model.action_seq_len,
        language="hashed",
        train_split=config.train_split,
        split_seed=seed,
    )
    stages.run("ingest", lambda: ingest(plan, workers=workers, progress=progress), _describe_ingest)
    stages.run(
        "statistics",
        lambda: compute_statistics(out / STORE),
        lambda r: f"{r['action']['count']} actions, {r['robot_state']['count']} robot states of the train split",
    )
    candidates = stages.run(
        "phase 1, temporal JEPA, two seeds",
        lambda: _side_by_side(
            Training(ENCODER, config.training(ENCODER, seed), out / PHASE1[0]),
            Training(ENCODER, config.training(ENCODER, seed + 1), out / PHASE1[1]),
            store=out / STORE,
            progress=progress,
        ),
        lambda both: _describe_seeds(both, seed),
    )
    encoder = Path(min(candidates, key=_validation_loss).checkpoint)
    trained, shuffled = stages.run(
        "phase 2, flow policy and control",
        lambda: _side_by_side(
            Training(POLICY, config.training(POLICY, seed), out / TRAIN, encoder),
            Training(POLICY, config.training(POLICY, seed, shuffled=True), out / TRAIN_SHUFFLED, encoder),
            store=out / STORE,
            progress=progress,
        ),
        lambda both: f"{_describe_training(both[0])}; with shuffled instructions {_describe_training(both[1])}",
    )

    def load(summary: TrainSummary) -> Policy:
        return Policy.load(Path(summary.checkpoint).with_name(f"checkpoint_{config.checkpoint}"))

    return {
        "trained": load(trained),
        "untrained": Policy.untrained(config.training(POLICY, seed), Store.open(out / STORE), seed=seed),
        "shuffled": load(shuffled),
    }


class Training(NamedTuple):
    """One run: system, configuration, its folder, and for the policy the checkpoint of the encoder."""

    system: str
    config: Config
    run: Path
    encoder: Path | None = None

    def start(self, store: Path, progress: Progress | None = None) -> TrainSummary:
        return train(self.system, self.config, store, self.run, encoder_checkpoint=self.encoder, progress=progress)


def _side_by_side(
    first: Training, second: Training, store: Path, progress: Progress | None
) -> tuple[TrainSummary, TrainSummary]:
    """Two trainings at once, the second in a process of its own; only the first tells its progress."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        beside = pool.submit(second.start, store)
        return first.start(store, progress), beside.result()


def _validation_loss(summary: TrainSummary) -> float:
    return math.inf if summary.best is None else float(summary.best["val_loss"])


def _close_loop(
    out: Path,
    name: str,
    policy: Policy,
    seed: int,
    config: DemoConfig,
    stages: Stages,
    progress: Progress | None,
) -> Results:
    return stages.run(
        f"closed loop, {name}",
        lambda: evaluate(
            policy,
            "tabletop",
            out=out / EVAL / name,
            name=name,
            episodes=config.trials,
            seed=seed,
            execution=Execution(replan=config.replan),
            max_steps=config.max_steps,
            videos=0 if name == "untrained" else config.videos,
            progress=progress,
            label=f"closed loop, {name}",
        ),
        lambda r: f"{r.successes} of {r.trials} succeed, {r.errors} simulator errors",
    )


def _collect(out: Path, workers: int, seed: int, config: DemoConfig, progress: Progress | None) -> CollectSummary:
    return collect_tabletop(
        out / RAW,
        config.episodes,
        seed=seed,
        image_size=config.image_size,
        workers=max(workers, 1),
        progress=progress,
        existing="replace",
    )


def _describe_collection(summary: CollectSummary) -> str:
    return (
        f"{summary.episodes} demonstrations, {summary.steps} steps, {len(summary.files)} files, "
        f"{summary.failures} attempts of the expert failed"
    )


def _describe_ingest(summary: IngestSummary) -> str:
    return (
        f"{summary.episodes} episodes, {summary.frames} frames, {summary.bytes / 1e6:.1f} MB, "
        f"{summary.quarantined} quarantined"
    )


def _describe_seeds(both: tuple[TrainSummary, TrainSummary], seed: int) -> str:
    """Both trainings, and which of them goes on: the one with the lower validation loss, the first where equal."""
    taken = seed + (_validation_loss(both[1]) < _validation_loss(both[0]))
    each = "; ".join(f"seed {seed + n}: {_describe_training(summary)}" for n, summary in enumerate(both))
    return f"{each}; seed {taken} goes on"


def _describe_training(summary: TrainSummary) -> str:
    best = "" if summary.best is None else f", best validation loss {summary.best['val_loss']:.4g}"
    return f"{summary.steps} steps{best}"
