"""The demo as data: its knobs, its folders, what it hands back, and when it counts as learned."""

from dataclasses import dataclass
from typing import Any, Final

from statevla.config import Config
from statevla.evaluators.intervals import disjoint
from statevla.evaluators.offline_results import OfflineResults
from statevla.evaluators.results import Results
from statevla.reports.tables import percent
from statevla.systems.table import find_system, sections
from statevla.trainers.jobs import ask

ENCODER, POLICY = "temporal_jepa", "flow_matching"
"""The systems that the demo trains."""

RAW, STORE, TRAIN, TRAIN_SHUFFLED, EVAL = "raw", "store", "train", "train_shuffled", "eval"
PHASE1: Final = ("phase1", "phase1_second_seed")
REPORT, SUMMARY = "report.html", "summary.json"
MARK: Final = ".demo.json"
"""Says that what has the outputs' names in this folder is the demo's."""
OUTPUTS: Final = (RAW, STORE, *PHASE1, TRAIN, TRAIN_SHUFFLED, EVAL, REPORT, SUMMARY)
"""Everything below the demo's folder that the demo writes, and removes before it starts."""


@dataclass(frozen=True)
class DemoConfig:
    """Every knob of the demo.

    episodes: demonstrations. recipe, settings: the model and its training, as for ``statevla train``'s ``--recipe`` and
    ``--set``. checkpoint: of the policy, ``latest`` or ``best``. trials, replan, max_steps: of the closed loop, for
    each policy. videos: rollouts of each task shown of the trained policy and of the control with shuffled
    instructions. min_trained, max_untrained: success rates below or from which the demo counts as failed.
    """

    episodes: int = 2000
    image_size: int = 64
    train_split: float = 0.975
    recipe: str = "tabletop"
    settings: tuple[str, ...] = ()
    checkpoint: str = "latest"
    trials: int = 50
    replan: int | None = None
    max_steps: int | None = None
    videos: int = 1
    min_trained: float = 0.8
    max_untrained: float = 0.1

    def training(self, system: str, seed: int, shuffled: bool = False) -> Config:
        """The configuration of one training run."""
        control = ("data.shuffle_instructions=true",) if shuffled else ()
        common = (f"training.seed={seed}", "training.torch_threads=1")
        row = find_system(system)
        return ask(row, recipe=self.recipe, overrides=(*common, *self.settings, *control)).config(sections())


@dataclass(frozen=True)
class DemoSummary:
    """What came out. learned: all three conditions hold; verdict says so in words."""

    learned: bool
    verdict: str
    report: str
    seconds: float
    offline: OfflineResults
    trained: Results
    untrained: Results
    shuffled: Results

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form: success and interval of each policy, the offline errors, and where the report is."""
        return {
            "learned": self.learned,
            "verdict": self.verdict,
            "report": self.report,
            "seconds": round(self.seconds, 1),
            "mse_normalized": self.offline.mse_normalized,
            "baseline_mean_action_mse_normalized": self.offline.baseline_mean_action_mse_normalized,
            "gripper_accuracy": self.offline.gripper_accuracy,
            **{
                name: {
                    "success": results.success,
                    "trials": results.trials,
                    "interval": list(results.interval),
                    "errors": results.errors,
                }
                for name, results in self.policies.items()
            },
        }

    @property
    def policies(self) -> dict[str, Results]:
        """Closed-loop results by name."""
        return {"trained": self.trained, "untrained": self.untrained, "shuffled": self.shuffled}


def judge(trained: Results, untrained: Results, shuffled: Results, config: DemoConfig) -> tuple[bool, str]:
    """Whether the demo learned, and the sentence that says why. *Clearly worse*: the 95 % intervals do not overlap."""
    conditions = (
        (
            trained.success is not None and trained.success >= config.min_trained,
            f"the trained policy succeeds in {percent(trained.success)} ({percent(config.min_trained)} or more wanted)",
        ),
        (
            untrained.success is not None and untrained.success < config.max_untrained,
            f"the untrained one in {percent(untrained.success)} (less than {percent(config.max_untrained)} wanted)",
        ),
        (
            disjoint(shuffled.interval, trained.interval),
            f"the one trained with shuffled instructions in {percent(shuffled.success)} (clearly worse wanted)",
        ),
    )
    learned = all(holds for holds, _ in conditions)
    failed = [text for holds, text in conditions if not holds]
    told = "; ".join(text for _, text in conditions)
    return learned, f"Learned: {told}." if learned else f"Not learned. Wrong: {'; '.join(failed)}. In full: {told}."
