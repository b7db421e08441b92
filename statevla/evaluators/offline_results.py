"""What an offline evaluation returns: typed values, JSON for scripts, Markdown for people.

Legend: K chunk.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from statevla.reports.tables import markdown_table
from stores.disk import durable

MARKDOWN: Final = "offline.md"


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
    mse_normalized: mean over the continuous dimensions that move in these demonstrations, after the policy's
    normalization; binary ones (the gripper) have their own measures.
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
        return "\n\n".join(
            [
                f"# Offline evaluation, {self.split} split: {self.episodes} episodes, {self.frames} frames",
                markdown_table(("measure", "value"), self.summary_rows()),
                markdown_table(("dimension", "MSE, action units", "MSE, normalized"), self.dimension_rows()),
                markdown_table(
                    ("chunk step", "MSE, normalized"),
                    [[str(k), _number(value)] for k, value in enumerate(self.mse_normalized_by_horizon)],
                ),
            ]
        )

    def save(self, folder: Path) -> None:
        """Write ``offline.json`` and ``offline.md``."""
        durable.make_dir(folder)
        durable.write_json(folder / "offline.json", self.to_dict())
        durable.write_text(folder / MARKDOWN, self.to_markdown() + "\n")

    def dimension_rows(self) -> list[list[str]]:
        """[dimension, MSE in action units, MSE normalized] rows."""
        return [
            [name, _number(self.mse[name]), _number(self.mse_normalized_by_dimension.get(name))] for name in self.mse
        ]

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


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
