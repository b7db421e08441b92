"""What may differ from a suite as it is: what the cameras see, where fixtures stand, what the policy is told."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from statevla.sims.libero import suites
from statevla.sims.libero.perturb import NONE, Perturbation
from statevla.sims.libero.row import LiberoSuite
from statevla.sims.suites import Suite
from statevla.sims.world import Task
from stores.errors import UsageError

Fixtures = Literal["fixed", "drawn"]


@dataclass(frozen=True)
class Conditions:
    """Of an evaluation; the default changes nothing.

    perturbation: of what the cameras see, each trial with directions of its own. fixtures: where cabinets, stoves and
    racks stand, which an initial state does not hold: ``fixed`` at the same place in every trial, as in our
    demonstrations, or ``drawn`` anew for each, as LIBERO does. instructions: by task name, what is told instead of the
    task's own.
    """

    perturbation: Perturbation = NONE
    fixtures: Fixtures = "fixed"
    instructions: Mapping[str, str] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """What is not as usual, JSON-ready; empty when all is."""
        found: dict[str, Any] = {}
        if self.perturbation != NONE:
            usual = asdict(NONE)
            found["perturbation"] = {k: v for k, v in asdict(self.perturbation).items() if v != usual[k]}
        if self.fixtures != "fixed":
            found["fixtures"] = self.fixtures
        if self.instructions:
            found["instructions"] = dict(self.instructions)
        return found

    def of(self, row: Suite) -> Suite:
        """The suite with these eyes and fixtures. Raises UsageError for one that cannot have them."""
        if self.perturbation == NONE and self.fixtures == "fixed":
            return row
        if not isinstance(row, LiberoSuite):
            raise UsageError(f"{row.name}: cameras, lights and fixtures can be changed in LIBERO's suites only")
        return replace(row, perturbation=self.perturbation, drawn_fixtures=self.fixtures == "drawn")

    def note_of_fixtures(self, tasks: Sequence[Task]) -> str | None:
        """Where fixtures stand; None where no scene has one, or where `told` says so.

        Raises UsageError where they shall be drawn and there are none: nothing would be different.
        """
        have = any(suites.fixtures(task) for task in tasks if isinstance(task, suites.Task))
        if self.fixtures == "drawn" and not have:
            raise UsageError(
                f"{tasks[0].suite}: no scene of these tasks has a cabinet, stove or rack, so drawing their places anew "
                "changes nothing"
            )
        if self.fixtures == "drawn" or not have:
            return None
        return "cabinets, stoves and racks stand at the same place in every trial (fixtures: fixed)"

    def tell(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks with their instructions replaced."""
        return [self._tell(task) for task in tasks]

    def _tell(self, task: Task) -> Task:
        text = self.instructions.get(task.name)
        if text is None:
            return task
        if isinstance(task, suites.Task):
            return replace(task, instruction=text)
        return Told(task.suite, task.index, task.name, text)


@dataclass(frozen=True)
class Told:
    """A task of a suite that asks no more of one than its number, with another instruction."""

    suite: str
    index: int
    name: str
    instruction: str


USUAL: Final = Conditions()
