"""The demo as data: its knobs, its folders, what it hands back, and when it counts as learned."""

from dataclasses import dataclass
from typing import Any, Final

from statevla.config import Config, load_config
from statevla.evaluators.intervals import disjoint
from statevla.evaluators.offline_results import OfflineResults
from statevla.evaluators.results import Results
from statevla.reports.tables import percent

RAW, STORE, TRAIN, TRAIN_SHUFFLED, EVAL = "raw", "store", "train", "train_shuffled", "eval"
PHASE1: Final = ("phase1", "phase1_second_seed")
REPORT, SUMMARY = "report.html", "summary.json"
OUTPUTS: Final = (RAW, STORE, *PHASE1, TRAIN, TRAIN_SHUFFLED, EVAL, REPORT, SUMMARY)
"""Everything below the demo's folder that the demo writes, and removes before it starts."""


@dataclass(frozen=True)
class DemoConfig:
    """Every knob of the demo.

    episodes: demonstrations. preset, settings, phase1, phase2: the model and its training, as for ``statevla train``.
    checkpoint: of phase 2, ``latest`` or ``best``. trials, replan, max_steps: of the closed loop, for each
    policy. videos: rollouts of each task shown of the trained policy and of the control with shuffled instructions.
    min_trained, max_untrained: success rates below or from which the demo counts as failed.
    """

    episodes: int = 2000
    image_size: int = 64
    train_split: float = 0.975
    preset: str = "tiny"
    settings: tuple[str, ...] = (
        "training.schedule=cosine",
        "training.warmup_steps=100",
        "training.weight_decay=0.01",
        "training.log_interval=25",
        "training.validate_every_steps=500",
        "data.block_segments=256",
    )
    phase1: tuple[str, ...] = (
        "training.max_steps=4200",
        "training.phase1.learning_rate=3e-3",
        "training.phase1.inverse_dynamics_weight=10",
        "training.phase1.inverse_dynamics_horizon=10",
    )
    phase2: tuple[str, ...] = ("training.max_steps=2500", "training.phase2.learning_rate=2e-3")
    checkpoint: str = "latest"
    trials: int = 50
    replan: int | None = None
    max_steps: int | None = None
    videos: int = 1
    min_trained: float = 0.8
    max_untrained: float = 0.1

    def training(self, phase: int, seed: int, shuffled: bool = False) -> Config:
        """The configuration of one training run."""
        own = self.phase1 if phase == 1 else self.phase2
        control = ("data.shuffle_instructions=true",) if shuffled else ()
        common = (f"training.seed={seed}", "training.torch_threads=1")
        return load_config(self.preset, None, (*common, *self.settings, *own, *control))


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
