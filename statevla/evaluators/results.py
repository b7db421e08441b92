"""What evaluations return, as typed values, as JSON for scripts and as Markdown for people.

Legend: K chunk.
"""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from statevla.reports.films import Clip, write_gif
from stores.disk import durable


@dataclass(frozen=True)
class Smoothness:
    """How steadily commands change; units are action units (normalized space plays no part).

    jerk: RMS over x, y, z of the second difference of commands within a chunk. Commands are displacements, so that this
    is the third difference of position. seam: RMS over x, y, z of the step from the last executed action of a chunk to
    the first one of the chunk that follows it. None where the episodes are too short to have any. x, y, z: the action's
    field ``position``; of an action without one, all continuous dimensions.
    """

    policy_jerk: float | None
    demo_jerk: float | None
    policy_seam: float | None
    demo_seam: float | None


@dataclass(frozen=True)
class OfflineResults:
    """Predicted against demonstrated chunks. Steps past an episode's end (padding) count nowhere.

    mse: per action dimension, action units, over all chunk steps.
    mse_normalized: mean over the continuous dimensions after the policy's normalization; binary ones (the gripper) have
    their own measures.
    mse_normalized_by_horizon: the same, for chunk steps 0 ... K-1; None where every episode is shorter.
    baseline_mean_action_mse_normalized: the same, for a predictor of the train split's mean action.
    gripper_accuracy: share of chunk steps with the right sign, of the binary dimensions on average; None without any.
    gripper_transition_f1: of the places in a chunk where a binary command changes; None when there are none.
    gripper_ece: expected calibration error of their probabilities; None when the policy tells none.
    """

    split: str
    episodes: int
    frames: int
    mse: dict[str, float]
    mse_normalized: float
    mse_normalized_by_dimension: dict[str, float]
    mse_normalized_by_horizon: list[float | None]
    baseline_mean_action_mse_normalized: float
    gripper_accuracy: float | None
    gripper_transition_f1: float | None
    gripper_ece: float | None
    smoothness: Smoothness

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Tables for a report or a commit message."""
        dimensions = [
            [name, _number(self.mse[name]), _number(self.mse_normalized_by_dimension.get(name))] for name in self.mse
        ]
        return "\n\n".join(
            [
                f"# Offline evaluation, {self.split} split: {self.episodes} episodes, {self.frames} frames",
                markdown_table(("measure", "value"), self.summary_rows()),
                markdown_table(("dimension", "MSE, action units", "MSE, normalized"), dimensions),
                markdown_table(
                    ("chunk step", "MSE, normalized"),
                    [[str(k), _number(value)] for k, value in enumerate(self.mse_normalized_by_horizon)],
                ),
            ]
        )

    def save(self, folder: Path) -> None:
        """Write ``offline.json`` and ``offline.md``."""
        _save(self, folder, "offline")

    def summary_rows(self) -> list[list[str]]:
        """[measure, value] rows of the whole evaluation."""
        smooth = self.smoothness
        return [
            ["MSE, normalized", _number(self.mse_normalized)],
            ["MSE of the mean action, normalized", _number(self.baseline_mean_action_mse_normalized)],
            ["gripper accuracy", _number(self.gripper_accuracy)],
            ["gripper transition F1", _number(self.gripper_transition_f1)],
            ["gripper calibration error", _number(self.gripper_ece)],
            ["jerk, policy / demonstrations", f"{_number(smooth.policy_jerk)} / {_number(smooth.demo_jerk)}"],
            ["chunk seam, policy / demonstrations", f"{_number(smooth.policy_seam)} / {_number(smooth.demo_seam)}"],
        ]


@dataclass(frozen=True)
class TaskResult:
    """Closed-loop outcomes of one task. ``success`` is ``successes / trials``; errors are no trials."""

    success: float | None
    successes: int
    trials: int
    errors: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class Latency:
    """Wall-clock milliseconds of one policy call, which plans for up to ``batch`` worlds at once."""

    p50_ms: float
    p95_ms: float
    calls: int
    batch: int


@dataclass(frozen=True)
class EpisodeOutcome:
    """One rollout. outcome: ``success``, ``failure`` (out of steps) or ``error`` (the simulator raised)."""

    task: str
    seed: int
    outcome: str
    steps: int
    message: str = ""


@dataclass(frozen=True)
class RolloutResults:
    """Closed-loop outcomes.

    success: share of ``trials``; None without trials. trials: rollouts that ended in success or failure.
    interval: Wilson's, 95 %. errors: rollouts that the simulator ended with an exception: no fault of the policy.
    steps: mean length of the successful rollouts; None without any. clips: the rollouts that were recorded.
    """

    success: float | None
    successes: int
    trials: int
    interval: tuple[float, float]
    errors: int
    steps: float | None
    per_task: dict[str, TaskResult]
    latency: Latency | None
    episodes: tuple[EpisodeOutcome, ...]
    clips: tuple[Clip, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, without the clips."""
        plain: dict[str, Any] = asdict(replace(self, clips=()))
        del plain["clips"]
        plain["interval"] = list(self.interval)
        plain["episodes"] = list(plain["episodes"])
        for task in plain["per_task"].values():
            task["interval"] = list(task["interval"])
        return plain

    def to_markdown(self) -> str:
        """Tables for a report or a commit message."""
        rows = [[name, *_outcome_cells(task)] for name, task in self.per_task.items()]
        rows.append(["all", *_outcome_cells(self)])
        table = markdown_table(("task", "success", "95 % interval", "successes / trials", "errors"), rows)
        lines = ["# Closed-loop evaluation, tabletop", table]
        if self.latency is not None:
            lines.append(
                f"Policy call: p50 {self.latency.p50_ms:.1f} ms, p95 {self.latency.p95_ms:.1f} ms, "
                f"{self.latency.calls} calls, up to {self.latency.batch} worlds a call."
            )
        return "\n\n".join(lines)

    def save(self, folder: Path) -> None:
        """Write ``tabletop.json``, ``tabletop.md`` and the clips as GIFs below ``videos/`` (older ones go)."""
        _save(self, folder, "tabletop")
        durable.remove(folder / "videos")
        if self.clips:
            durable.make_dir(folder / "videos")
        for number, clip in enumerate(self.clips):
            name = f"{number:02d}-{_file_name(clip.observations[0].instruction)}-{clip.outcome}.gif"
            write_gif(folder / "videos" / name, clip)


def _file_name(instruction: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", instruction).strip("_")[:80]


def percent(rate: float | None) -> str:
    """``0.84`` -> ``84 %``; a dash for no rate."""
    return "-" if rate is None else f"{100 * rate:.0f} %"


def markdown_table(headers: tuple[str, ...], rows: list[list[str]]) -> str:
    """A Markdown table; pipes in cells are escaped."""
    lines = [headers, ("---",) * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _save(results: "OfflineResults | RolloutResults", folder: Path, name: str) -> None:
    durable.make_dir(folder)
    durable.write_json(folder / f"{name}.json", results.to_dict())
    durable.write_text(folder / f"{name}.md", results.to_markdown() + "\n")


def _outcome_cells(result: TaskResult | RolloutResults) -> list[str]:
    low, high = result.interval
    return [
        percent(result.success),
        f"{percent(low)} to {percent(high)}",
        f"{result.successes} / {result.trials}",
        str(result.errors),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
