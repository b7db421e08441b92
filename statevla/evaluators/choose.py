"""Which policy a command measures: a checkpoint, a control in its place, or one of the controls without any."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from statevla.evaluators.conditions import USUAL, Conditions
from statevla.evaluators.goals import with_goals
from statevla.evaluators.runner import Policy
from statevla.observation import libero_spec
from statevla.policies.checkpoint_controls import CONTROLS, MEAN_ACTION, NO_INSTRUCTION, MeanAction, NoInstruction
from statevla.policies.controls import ExpertControl, ReplayDemos, ZeroPolicy
from statevla.policies.policy import UNTRAINED
from statevla.policies.policy import Policy as TrainedPolicy
from statevla.runs.layout import RUNS, evaluation
from statevla.runs.state import read_state
from statevla.sims.suites import Suite, find_suite
from statevla.systems.find import find_policy
from stores.errors import UsageError
from stores.statistics import Normalization

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
    control: str | None = None,
) -> ChosenPolicy:
    """Load the checkpoint or build the control.

    checkpoint: its folder or a run's; None: see `find_policy`. device, precision, euler_steps, closed: as
    `Policy.load`. goals: how a policy that takes goals is told them, ``language`` or ``image``. seed: of the
    expert, and of an untrained model. demos: what ``replay-demos`` replays. conditions: of the trials, which a goal's
    picture shows too. control: which of `CONTROLS` acts in the checkpoint's place.

    Raises UsageError for an unknown kind, control or suite, for a control of a control, for Euler steps or goals of
    one that has none, for goals that the policy was not trained on, and what loading raises.
    """
    row = find_suite(suite)
    if kind not in POLICIES:
        raise UsageError(f"policy {kind!r}: expected one of {', '.join(POLICIES)}")
    if kind != "checkpoint" and euler_steps is not None:
        raise UsageError(f"euler_steps: {euler_steps} makes sense for a checkpoint only; {kind} samples nothing")
    if kind != "checkpoint" and goals is not None:
        raise UsageError(f"goals: {goals} makes sense for a checkpoint only; {kind} is told nothing")
    if kind != "checkpoint" and control is not None:
        raise UsageError(f"control: {control} stands in a checkpoint's place; {kind} is a control itself")
    if control is not None and control not in CONTROLS:
        raise UsageError(f"control {control!r}: expected one of {', '.join(CONTROLS)}")
    if control == MEAN_ACTION and (euler_steps, goals) != (None, None):
        option = "goals" if euler_steps is None else "euler_steps"
        raise UsageError(f"{option}: makes no sense with {control}, which is told nothing and samples nothing")
    if kind == "checkpoint":
        path = find_policy(checkpoint)
        fresh = seed if control == UNTRAINED else None
        trained = TrainedPolicy.load(path, device, precision, euler_steps, closed, fresh)
        name = str(path) if euler_steps is None else f"{path}, {euler_steps} Euler steps"
        told = _in_its_place(trained, path, control, goals, conditions.of(row), name)
        name = name if goals is None else f"{name}, told by {goals}"
        name = name if control is None else f"{name}, {control}"
        where = suite if control is None else f"{suite}-{control}"
        return ChosenPolicy(told, name, evaluation(path, _folder(where, told.identity)))
    made: Policy
    if kind == "expert":
        made = ExpertControl(seed)
    elif kind == "zero":
        made = ZeroPolicy(libero_spec(row.image_size))
    elif demos is not None:
        made = demos
    else:
        raise UsageError("replay-demos: no demonstrations were given")
    return ChosenPolicy(made, kind, RUNS / "controls" / kind / _folder(suite, made.identity))


def _in_its_place(
    policy: TrainedPolicy, path: Path, control: str | None, goals: str | None, suite: Suite, name: str
) -> Policy:
    """`policy`, or the control of it; where it takes goals, told them. An untrained one is loaded as such."""
    if control == MEAN_ACTION:
        return MeanAction.of(policy, Normalization.from_dict(read_state(path).statistics))
    told = with_goals(policy, goals, suite, name)
    if control != NO_INSTRUCTION:
        return told
    if told is not policy:
        raise UsageError(f"control: {control} takes the instruction away, and {name} is told by a picture")
    return NoInstruction(policy)


def _folder(suite: str, identity: str) -> str:
    return f"{suite}-{identity[:SHOWN]}"
