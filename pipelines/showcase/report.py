"""What the demo's page says: gathers pictures, curves, facts and versions into a `Report`."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Final

import torch
import yaml

from pipelines.showcase.config import (
    ENCODER,
    EVAL,
    PHASE1,
    POLICY,
    STORE,
    TRAIN,
    TRAIN_SHUFFLED,
    DemoConfig,
    DemoSummary,
)
from pipelines.showcase.looks import demonstrations, moving_names, states, traces
from statevla.evaluators.offline_results import OfflineResults
from statevla.evaluators.results import Results
from statevla.policies.policy import Policy
from statevla.reports.charts import Series
from statevla.reports.films import frames_of_gif, png_bytes
from statevla.reports.page import Curves, OfflineRows, Picture, PolicyRow, Report, ReportStep, Video
from statevla.runs.layout import metrics
from statevla.runs.metrics import read_metrics
from statevla.systems.table import find_system
from statevla.version import __version__
from stores.reader import Store

PACKAGES: Final = ("torch", "numpy", "zarr", "dask", "pyarrow", "h5py")
WHAT: Final = {
    "trained": "both phases on all demonstrations",
    "untrained": "the same model with random weights",
    "shuffled": "phase 2 on the same demonstrations, each with another task's instruction",
}
ABOUT: Final = (
    "A small world of our own: a gripper, two blocks and two bowls. The instruction names one block and one bowl, "
    "and without it the task cannot be solved. A scripted expert shows how, a temporal JEPA learns a state from what "
    "the cameras see, and a flow-matching policy learns to act on that state. Every policy below acts in the same "
    "fresh episodes, which no demonstration was recorded in."
)


def build_report(
    out: Path, store: Store, summary: DemoSummary, steps: tuple[ReportStep, ...], config: DemoConfig, seed: int,
    policy: Policy,
) -> Report:  # fmt: skip
    """Everything for the page, read from ``out`` where it is not at hand. policy: the trained one."""
    replan = config.replan or max(policy.chunk // 2, 1)
    return Report(
        title="StateVLA demo: the tabletop suite",
        about=ABOUT,
        ok=summary.learned,
        verdict=summary.verdict,
        steps=steps,
        pictures=_pictures(store),
        store=_store_facts(store),
        curves=(
            *(
                _curves(title, out / run, ENCODER, ("jepa_mse", "inverse"))
                for title, run in zip(("Phase 1: temporal JEPA", "Phase 1, another seed"), PHASE1, strict=True)
            ),
            _curves("Phase 2: flow policy", out / TRAIN, POLICY, ("pos_rot_loss", "gripper_loss")),
            _curves("Phase 2 with shuffled instructions", out / TRAIN_SHUFFLED, POLICY, ("pos_rot_loss",)),
        ),
        offline=_offline(summary.offline),
        policies=tuple(_policy(name, results) for name, results in summary.policies.items()),
        videos=tuple(video for name, results in summary.policies.items() for video in _videos(out, name, results)),
        configuration=_configuration(config, seed),
        machine=_machine(),
        commands=_commands(out, seed, config),
        traces=traces(policy, store, replan),
        demonstrations=demonstrations(store),
        moving=moving_names(store),
        states=states(policy, store),
    )


def _commands(out: Path, seed: int, config: DemoConfig) -> tuple[str, ...]:
    """What to type to get this page again, and to look at its parts."""
    chosen = out / TRAIN
    return (
        f"statevla demo --out {out} --seed {seed}",
        f"statevla verify {out / STORE}",
        f"statevla eval offline --checkpoint {chosen} --store {out / STORE}",
        f"statevla eval tabletop --checkpoint {chosen} --episodes {config.trials}",
    )


def _pictures(store: Store) -> tuple[Picture, ...]:
    """The first observation of the first episode of every instruction."""
    pictures = []
    columns = store.episode_columns
    for instruction in store.manifest.instructions:
        episode = next(i for i, text in enumerate(columns["instruction"]) if text == instruction)
        segment = store.read_segment(int(columns["first_segment"][episode]))
        pictures.append(Picture(png_bytes([frames[0] for frames in segment.decode()]), instruction))
    return tuple(pictures)


def _store_facts(store: Store) -> tuple[tuple[str, str], ...]:
    manifest = store.manifest
    facts = {**manifest.counts, **{f"{name} episodes": count for name, count in manifest.splits.items()}}
    return (
        ("content hash", store.content_hash),
        ("schema version", str(manifest.schema_version)),
        *((name, f"{value:,}") for name, value in facts.items()),
        *((f"ingest: {name}", str(value)) for name, value in sorted(manifest.config.items())),
    )


def _curves(title: str, run: Path, system: str, parts: tuple[str, ...]) -> Curves:
    """Training and validation of the total loss, and the named parts in training."""
    records = read_metrics(metrics(run, find_system(system).folder))

    def line(name: str, kind: str, key: str) -> Series:
        points = [(float(r["step"]), float(r[key])) for r in records if r["kind"] == kind and key in r]
        return Series(name, tuple(step for step, _ in points), tuple(value for _, value in points))

    series = (
        line("training", "train", "loss"),
        line("validation", "val", "loss"),
        *(line(f"{part}, training", "train", part) for part in parts),
    )
    validation = series[1].values
    note = "Lower is better; where validation rises while training falls, demonstrations are learnt by heart. " + (
        f"Lowest validation loss {min(validation):.4g}." if validation else "No validation episodes."
    )
    return Curves(title, tuple(item for item in series if item.values), note)


def _policy(name: str, results: Results) -> PolicyRow:
    latency = results.latency
    return PolicyRow(
        name=name,
        what=WHAT[name],
        success=results.success,
        interval=results.interval,
        successes=results.successes,
        trials=results.trials,
        errors=results.errors,
        steps=results.steps,
        latency=None if latency is None else (latency.p50_ms, latency.p95_ms),
        tasks={
            results.instructions[task]: (r.successes, r.trials, *r.interval) for task, r in results.per_task.items()
        },
    )


def _offline(results: OfflineResults) -> OfflineRows:
    horizon = [(float(k), value) for k, value in enumerate(results.mse_normalized_by_horizon) if value is not None]
    steps = tuple(step for step, _ in horizon)
    mean = (results.baseline_mean_action_mse_normalized,) * len(steps)
    return OfflineRows(
        lead=f"{results.split} split: {results.episodes} episodes, {results.frames} frames.",
        summary=tuple((name, value) for name, value in results.summary_rows()),
        dimensions=tuple((name, raw, normalized) for name, raw, normalized in results.dimension_rows()),
        horizon=(Series("policy", steps, tuple(value for _, value in horizon)), Series("mean action", steps, mean)),
    )


def _videos(out: Path, name: str, results: Results) -> tuple[Video, ...]:
    return tuple(
        Video(*frames_of_gif((out / EVAL / name / r.video).read_bytes()), f"{name}: {r.instruction}", r.outcome)
        for r in results.records
        if r.video
    )


def _configuration(config: DemoConfig, seed: int) -> str:
    """The demo's knobs, and the configuration of phase 2 in full, as YAML."""
    knobs = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
    phase1, phase2 = config.training(ENCODER, seed).to_dict(), config.training(POLICY, seed).to_dict()
    tree = {"demo": {"seed": seed, **knobs}, "phase 1, training": phase1["training"], "phase 2": phase2}
    return str(yaml.safe_dump(tree, sort_keys=False))


def _machine() -> tuple[tuple[str, str], ...]:
    return (
        ("processor", f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"),
        ("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        ("statevla", __version__),
        *((name, importlib.metadata.version(name)) for name in PACKAGES),
    )


def _processor() -> str:
    """The model name that Linux gives; elsewhere what Python knows."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
