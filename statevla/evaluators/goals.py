"""A policy that is told what to reach by a picture: which picture, for each trial.

The scripted expert solves the trial's own layout in a world beside the evaluation's; the picture is what the cameras
then show. So a goal is seen by the same cameras, can be reached, and is the same for every policy and interruption.
"""

from collections.abc import Sequence
from typing import Any, Final

from statevla.evaluators.trials import NUMBERS
from statevla.observation import Observation, from_simulator, square_side
from statevla.policies.identity import identity_of
from statevla.policies.noise import Draw
from statevla.policies.policy import Policy
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.suites import Suite
from statevla.sims.world import Start
from statevla.systems.acting import Acted
from stores.errors import UsageError

ATTEMPTS: Final = 5
"""Of the expert at one layout; the first does nearly always (docs/results-libero.md)."""
EXPERT: Final = "expert"
LANGUAGE: Final = "language"
KINDS: Final = (LANGUAGE, "image")


class ExpertGoals:
    """Final pictures of the suite's expert, made when a trial first asks and kept until another one does."""

    def __init__(self, suite: Suite, image_size: int) -> None:
        self.suite, self.image_size = suite, image_size
        self._last: tuple[tuple[int, int], Observation] | None = None

    def of(self, draw: Draw) -> Observation:
        """The goal of the trial that a draw belongs to.

        Raises SimulatorFailed where the expert does not solve it: then no picture says what to reach.
        """
        key = draw.seed, draw.trial
        if self._last is None or self._last[0] != key:
            self._last = key, self._solve(*key)
        return self._last[1]

    def _solve(self, seed: int, trial: int) -> Observation:
        index, start = divmod(trial, NUMBERS)
        (task,) = self.suite.tasks([index])
        self.suite.check_expert([task])
        world = self.suite.open(task, self.image_size, 1)
        try:
            if world.starting:
                world.come_up()
            for attempt in range(ATTEMPTS):
                world.begin(Start(start, seed, expert=True, attempt=attempt))
                world.receive()
                world.run_expert(self.suite.max_steps, look=True, film=0)
                seen = world.receive()
                if seen.success_step is not None:
                    return from_simulator(seen.observation, task.instruction)
        finally:
            world.close()
        raise SimulatorFailed(
            f"{self.suite.name}, {task.name} from start {start}: the expert did not solve it in {ATTEMPTS} attempts, "
            "so that there is no goal's picture; choose other --tasks or another --seed"
        )


class WithGoals:
    """`policy` with each trial's goal put before it; otherwise the same."""

    def __init__(self, policy: Policy, source: ExpertGoals) -> None:
        self.policy, self.source = policy, source
        self.identity = goals_identity(policy.identity)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def prepare(self, draw: Draw) -> None:
        """Makes the goal's picture of a trial, which an expert's whole episode takes; `act` does where nobody did.

        Raises SimulatorFailed as `ExpertGoals.of`.
        """
        self.source.of(draw)

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        """`Policy.act`; the draws say which trials the rows belong to."""
        if draws is None:
            raise UsageError("goals: expected the draw of each trial, got none")
        return self.policy.act(observations, draws, [self.source.of(draw) for draw in draws])


def goals_identity(policy: str) -> str:
    """Of a policy that is told by pictures. policy: its own identity."""
    return identity_of({"policy": policy, "goals": EXPERT})


def told_by(policy: Policy) -> tuple[str, ...]:
    """How a policy can be told what to reach."""
    known: tuple[str, ...] = getattr(policy.model, "told_by", KINDS[:1])
    return known


def told_in_words(policy: Policy, name: str) -> str | None:
    """What to say where a policy that takes goals is told by its instruction, since nothing shows it a picture; None of
    another policy. Raises UsageError for one that takes pictures alone."""
    known = told_by(policy)
    if LANGUAGE not in known:
        raise UsageError(f"{name}: it is told what to reach by a picture alone, and there is none here")
    return f"{name} is told what to reach by language here, never by a picture" if len(known) > 1 else None


def with_goals(policy: Policy, kind: str | None, suite: Suite, name: str) -> Policy | WithGoals:
    """`policy` as it is to be told: by ``language`` or ``image``; None: in its only way.

    Raises UsageError where it was not trained to be told so, or was trained on both and nothing was said.
    """
    known = told_by(policy)
    if kind is None and len(known) > 1:
        raise UsageError(f"{name}: it is told what to reach by language or by a picture; say --goals language or image")
    kind = known[0] if kind is None and known == KINDS[:1] else kind
    if kind is None:
        raise UsageError(f"{name}: it is told what to reach by a picture, and there is none; say --goals image")
    if kind not in KINDS:
        raise UsageError(f"goals: expected {' or '.join(KINDS)}, got {kind!r}")
    if kind not in known:
        raise UsageError(f"{name}: it was trained to be told by {' or '.join(known)}, not by {kind}")
    if kind == KINDS[0]:
        return policy
    return WithGoals(policy, ExpertGoals(suite, square_side(policy.obs_spec, f"{suite.name}'s")))
