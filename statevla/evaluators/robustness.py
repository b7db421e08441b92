"""What is left of a success rate when one thing is different: cameras, light, noise, fixtures, and LIBERO-PRO's suites.

The policy, its execution, seed and initial states' numbers are the same in every row. A perturbation keeps the initial
states, so its trials are paired with the base's; a suite of LIBERO-PRO has states of its own.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from statevla.evaluators.conditions import USUAL, Conditions
from statevla.evaluators.evaluate import evaluate
from statevla.evaluators.goals import ExpertGoals, WithGoals
from statevla.evaluators.intervals import wilson
from statevla.evaluators.language import points_lost
from statevla.evaluators.results import Results
from statevla.evaluators.runner import Policy
from statevla.policies.controls import ReplayDemos
from statevla.reports.tables import markdown_table, percent
from statevla.sims.libero import pro, suites
from statevla.sims.libero.perturb import Perturbation
from statevla.sims.suites import find_suite
from stores.disk import durable
from stores.errors import StateVLAError, UsageError
from stores.progress import Progress

BASE: Final = "base"
PERTURBATIONS: Final = {
    "camera-shift": ("the scene's camera 3 cm away", Conditions(Perturbation(camera_shift=0.03))),
    "camera-turn": ("the scene's camera turned by 3 degrees", Conditions(Perturbation(camera_turn=3.0))),
    "dark": ("all lights at 60 %", Conditions(Perturbation(light=0.6))),
    "bright": ("all lights at 140 %", Conditions(Perturbation(light=1.4))),
    "lamps": ("lamps moved by half a metre", Conditions(Perturbation(light_shift=0.5))),
    "noise": ("noise of 10 of 255 on every pixel", Conditions(Perturbation(noise=10.0))),
    "fixtures": ("cabinets, stoves and racks drawn anew in every trial", Conditions(fixtures="drawn")),
}
"""Name of a row -> what is changed, and how."""
VARIANTS: Final = ("swap", "object", "lan", "task", "temp_x0.1", "temp_y0.1")
"""Kinds of LIBERO-PRO's suites that are measured unless others are named."""


@dataclass(frozen=True)
class Row:
    """One line. lost: base's success minus this one's, and its 95 % interval. error: why there is no result."""

    name: str
    what: str
    results: Results | None
    lost: tuple[float, tuple[float, float]] | None = None
    error: str = ""


@dataclass(frozen=True)
class Robustness:
    """The table; the base is its first row."""

    suite: str
    policy: str
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"suite": self.suite, "policy": self.policy, "rows": [_plain(row) for row in self.rows]}

    def to_markdown(self) -> str:
        """One table."""
        columns = ("changed", "what", "success", "95 % interval", "successes / trials", "points lost", "errors")
        table = markdown_table(columns, [_cells(row) for row in self.rows])
        note = (
            "Points lost: the base's success minus this row's, with its 95 % interval; trials are paired where the "
            "initial states are the base's, and independent in LIBERO-PRO's suites."
        )
        return "\n\n".join([f"# {self.suite}, one thing different: {self.policy}", table, note])

    def save(self, out: Path) -> None:
        """Writes ``robustness.json`` and ``robustness.md``."""
        durable.write_json(out / "robustness.json", self.to_dict())
        durable.write_text(out / "robustness.md", self.to_markdown() + "\n")


def evaluate_robustness(
    policy: Policy,
    suite: str,
    *,
    out: Path,
    name: str,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Robustness:
    """The base and every row of `only` (None: all perturbations, and LIBERO-PRO's usual suites); resumable.

    only: names of `PERTURBATIONS`, and what follows the suite's name in LIBERO-PRO's. options: of `evaluate`. A row
    that cannot be measured (files that are not there, an instruction that the policy does not take) says why.

    Raises:
        UsageError: no such row, a suite that is not LIBERO's own; and what `evaluate` raises of the base.
    """
    if suite not in suites.BASES:
        raise UsageError(f"robustness: expected one of {', '.join(suites.BASES)}, got {suite!r}")
    if isinstance(policy, ReplayDemos):
        raise UsageError("robustness: recorded actions do not look; measure a checkpoint or the expert")
    wanted = [*PERTURBATIONS, *VARIANTS] if only is None else list(dict.fromkeys(only))
    _require_rows(suite, wanted)
    base = evaluate(policy, suite, out=out / BASE, name=name, progress=progress, label=BASE, **options)
    rows = [Row(BASE, "nothing", base)]
    for row in wanted:
        what, conditions = PERTURBATIONS.get(row, (what_of(row), USUAL))
        where = suite if row in PERTURBATIONS else f"{suite}_{row}"
        try:
            results = evaluate(
                at(policy, where, conditions), where, out=out / row, name=f"{name}, {row}", conditions=conditions,
                progress=progress, label=row, **(options | {"unknown_instructions": True}),
            )  # fmt: skip
        except StateVLAError as error:
            rows.append(Row(row, what, None, error=str(error).splitlines()[0]))
            continue
        lost = points_lost(base, results) if row in PERTURBATIONS else _apart(base, results)
        rows.append(Row(row, what, results, lost))
    found = Robustness(suite, name, tuple(rows))
    found.save(out)
    return found


def _require_rows(suite: str, rows: Sequence[str]) -> None:
    """Raises UsageError for a row that there cannot be, or that LIBERO-PRO's files, where they are, do not have: said
    before the base's trials and not after them. Its usual rows say in the table what is not there."""
    here = None if pro.folder() is None else pro.suite_names(suites.BASES)
    for row in rows:
        name = f"{suite}_{row}"
        possible = pro.split(name, suites.BASES) is not None and (row in VARIANTS or here is None or name in here)
        if row not in PERTURBATIONS and not possible:
            kinds = ", ".join([*PERTURBATIONS, *VARIANTS])
            there = [other.removeprefix(f"{suite}_") for other in here or () if suites.base_of(other) == suite]
            others = ", ".join(kind for kind in there if kind not in VARIANTS) or f"{suite}_*"
            raise UsageError(f"robustness: no row {row!r}. Rows: {kinds}; others of LIBERO-PRO's: {others}")


def at(policy: Policy, suite: str, conditions: Conditions) -> Policy:
    """`policy`; one that is told by pictures gets those of the trials that are tried."""
    if not isinstance(policy, WithGoals):
        return policy
    return WithGoals(policy.policy, ExpertGoals(conditions.of(find_suite(suite)), policy.source.image_size))


def what_of(kind: str) -> str:
    """What a kind of LIBERO-PRO's suites changes."""
    if (offset := re.fullmatch(r"temp_([xy])(0\.\d)", kind)) is not None:
        return f"the target stands {100 * pro.OFFSET * float(offset[2]):.0f} cm elsewhere along {offset[1]}"
    return next((what for pattern, what in pro.KINDS.items() if re.fullmatch(pattern, kind)), kind)


def _apart(base: Results, other: Results) -> tuple[float, tuple[float, float]] | None:
    """Difference of two rates of different trials, and its interval (Newcombe, Statistics in Medicine 17, 1998,
    873-890, method 10)."""
    if base.success is None or other.success is None:
        return None
    (p, (p_low, p_high)), (q, (q_low, q_high)) = (
        (r.success or 0.0, wilson(r.successes, r.trials)) for r in (base, other)
    )
    return p - q, (p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low))


def _plain(row: Row) -> dict[str, Any]:
    results = row.results
    return {
        "changed": row.name,
        "what": row.what,
        "success": results.success if results else None,
        "successes": results.successes if results else None,
        "trials": results.trials if results else None,
        "errors": results.errors if results else None,
        "interval": list(results.interval) if results else None,
        "lost": None if row.lost is None else {"points": row.lost[0], "interval": list(row.lost[1])},
        "error": row.error,
    }


def _cells(row: Row) -> list[str]:
    results = row.results
    if results is None:
        return [row.name, row.what, "-", "-", row.error, "-", "-"]
    low, high = results.interval
    lost = "-"
    if row.lost is not None:
        points, (few, many) = row.lost
        lost = f"{100 * points:z.0f} ({100 * few:z.0f} to {100 * many:z.0f})"
    counts = f"{results.successes} / {results.trials}"
    return [
        row.name, row.what, percent(results.success), f"{percent(low)} to {percent(high)}", counts, lost,
        str(results.errors),
    ]  # fmt: skip
