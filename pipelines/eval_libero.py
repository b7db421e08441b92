"""Which policy ``statevla eval libero`` measures: a checkpoint, or one of the controls."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores.errors import UsageError

POLICIES = ("checkpoint", "replay-demos", "expert", "zero")


@dataclass(frozen=True)
class ChosenPolicy:
    """policy: what `evaluate_libero` takes. name: guards resuming. out: default folder of the results.

    replan: default replanning horizon, half of a trained policy's chunk, as in the tabletop world; None: whole chunks.
    """

    policy: Any
    name: str
    out: Path
    replan: int | None = None


def choose_policy(
    kind: str,
    *,
    checkpoint: Path | None,
    euler_steps: int | None = None,
    suite: str,
    tasks: str | None,
    source: Path | None,
    seed: int,
) -> ChosenPolicy:
    """Load the checkpoint or build the control.

    Raises UsageError for an unknown kind or Euler steps of a control, and what loading raises.
    """
    if kind not in POLICIES:
        raise UsageError(f"policy {kind!r}: expected one of {', '.join(POLICIES)}")
    if kind != "checkpoint" and euler_steps is not None:
        raise UsageError(f"euler_steps: {euler_steps} makes sense for a checkpoint only; {kind} samples nothing")
    if kind == "checkpoint":
        from statevla.policies.policy import Policy
        from statevla.systems.find import find_policy

        path = find_policy(checkpoint)
        name = str(path) if euler_steps is None else f"{path}, {euler_steps} Euler steps"
        trained = Policy.load(path, euler_steps=euler_steps)
        return ChosenPolicy(trained, name, path.parents[2] / "eval", (trained.config.model.action_seq_len + 1) // 2)
    out = Path("runs") / f"libero-{kind}"
    if kind == "replay-demos":
        from pipelines.replay import replay_of_files

        folder = source if source is not None else Path("data/raw") / suite
        return ChosenPolicy(replay_of_files(folder, suite, tasks), f"{kind} {folder}", out)
    if kind == "expert":
        from statevla.evaluators.libero import ExpertControl

        return ChosenPolicy(ExpertControl(seed), f"{kind} seed {seed}", out)
    from statevla.evaluators.rollout import ZeroPolicy
    from statevla.observation import ObsSpec

    return ChosenPolicy(ZeroPolicy(ObsSpec(image_size=(128, 128))), kind, out)
