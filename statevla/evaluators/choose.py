"""Which policy a command measures: a checkpoint, or one of the controls."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from statevla.evaluators.conditions import USUAL, Conditions
from statevla.evaluators.goals import with_goals
from statevla.evaluators.runner import Policy
from statevla.observation import libero_spec
from statevla.policies.controls import ExpertControl, ReplayDemos, ZeroPolicy
from statevla.policies.policy import Policy as TrainedPolicy
from statevla.runs.layout import RUNS, evaluation
from statevla.sims.suites import find_suite
from statevla.systems.find import find_policy
from stores.errors import UsageError

POLICIES: Final = ("checkpoint", "replay-demos", "expert", "zero")
SHOWN: Final = 8
"""Characters of an identity in a folder's name."""


@dataclass(frozen=True)
class ChosenPolicy:
    """policy: what `evaluate` takes. name: for people. out: default folder of its results in the suite.

    The folder's name has the policy's identity in it: trained on, a checkpoint at the same path is another policy, and
    its results are others.
    """

    policy: Policy
    name: str
    out: Path


def choose_policy(
    kind: str,
    suite: str,
    *,
    checkpoint: Path | None = None,
    device: str = "auto",
    precision: str = "float32",
    euler_steps: int | None = None,
    closed: bool = False,
    goals: str | None = None,
    seed: int = 0,
    demos: ReplayDemos | None = None,
    conditions: Conditions = USUAL,
) -> ChosenPolicy:
    """Load the checkpoint or build the control.

    checkpoint: its folder or a run's; None: see `find_policy`. device, precision, euler_steps, closed: as
    `Policy.load`. goals: how a policy that takes goals is told them, ``language`` or ``image``. seed: of the
    expert. demos: what ``replay-demos`` replays. conditions: of the trials, which a goal's picture shows too.
    Raises UsageError for an unknown kind or suite, for Euler steps or goals of a control, for goals that the policy
    was not trained on, and what loading raises.
    """
    row = find_suite(suite)
    if kind not in POLICIES:
        raise UsageError(f"policy {kind!r}: expected one of {', '.join(POLICIES)}")
    if kind != "checkpoint" and euler_steps is not None:
        raise UsageError(f"euler_steps: {euler_steps} makes sense for a checkpoint only; {kind} samples nothing")
    if kind != "checkpoint" and goals is not None:
        raise UsageError(f"goals: {goals} makes sense for a checkpoint only; {kind} is told nothing")
    if kind == "checkpoint":
        path = find_policy(checkpoint)
        trained = TrainedPolicy.load(path, device, precision, euler_steps, closed)
        name = str(path) if euler_steps is None else f"{path}, {euler_steps} Euler steps"
        told = with_goals(trained, goals, conditions.of(row), name)
        name = name if goals is None else f"{name}, told by {goals}"
        return ChosenPolicy(told, name, evaluation(path, _folder(suite, told.identity)))
    control: Policy
    if kind == "expert":
        control = ExpertControl(seed)
    elif kind == "zero":
        control = ZeroPolicy(libero_spec(row.image_size))
    elif demos is not None:
        control = demos
    else:
        raise UsageError("replay-demos: no demonstrations were given")
    return ChosenPolicy(control, kind, RUNS / "controls" / kind / _folder(suite, control.identity))


def _folder(suite: str, identity: str) -> str:
    return f"{suite}-{identity[:SHOWN]}"
