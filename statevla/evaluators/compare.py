"""Finished evaluations side by side: paired by trial, with what each policy cost.

An evaluation is its folder, or a run that has one. Two are comparable when they tried the same trials of one suite with
one seed and one limit of steps; how a chunk was executed may differ, and is told.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from statevla.evaluators.costs import Costs, costs_of, run_of_evaluation
from statevla.evaluators.intervals import wilson
from statevla.evaluators.offline_results import MARKDOWN as OFFLINE
from statevla.evaluators.paired import MOST_TIMES, Paired, difference, trials_to_decide
from statevla.evaluators.results import JSON
from statevla.evaluators.trials import RUN, Record, load_records
from statevla.runs.names import apart
from stores.errors import StoreCorrupt, StoreMissing, UsageError
from stores.printable import word

SAME: Final = ("suite", "seed", "max_steps", "settle_steps")
"""Of ``run.json``: what makes a trial the same trial."""
OWN: Final = (*SAME, "policy", "control")
SHOWN: Final = 3


@dataclass(frozen=True)
class Evaluation:
    """One policy's trials. name: short, for tables, with that of a control in its place. description: its ``run.json``.
    records: by (task, start).
    """

    folder: Path
    name: str
    description: dict[str, Any]
    records: dict[tuple[str, int], Record]
    costs: Costs

    @property
    def finished(self) -> dict[tuple[str, int], bool]:
        """Success of the trials that did not end in a simulator's error."""
        return {key: r.outcome == "success" for key, r in self.records.items() if r.outcome != "error"}


@dataclass(frozen=True)
class Pair:
    """Two policies on the trials that both finished. difference: first minus second, and its 95% interval."""

    first: str
    second: str
    counts: Paired
    difference: float
    interval: tuple[float, float]
    more_trials: int | None

    @property
    def verdict(self) -> str:
        """What it says, in words."""
        if self.more_trials == 0:
            better, worse = (self.first, self.second) if self.difference > 0 else (self.second, self.first)
            return f"{better} is better than {worse}"
        if self.counts.first == self.counts.second:  # which proves nothing: how large one may be is the interval's
            most = 100 * max(map(abs, self.interval))
            return f"no difference seen; the interval leaves room for one of {most:.0f} %"
        if self.more_trials is None:
            return f"undecided; {MOST_TIMES} times as many trials would not decide it"
        return f"undecided; about {self.more_trials} more trials would decide it"


@dataclass(frozen=True)
class Comparison:
    """evaluations in the order they were named; pairs of all of them; notes: what must be known to read it."""

    evaluations: tuple[Evaluation, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "suite": self.evaluations[0].description["suite"],
            "seed": self.evaluations[0].description["seed"],
            "policies": [_told(each) for each in self.evaluations],
            "pairs": [
                {
                    "first": pair.first,
                    "second": pair.second,
                    "both": pair.counts.both,
                    "first_only": pair.counts.first,
                    "second_only": pair.counts.second,
                    "neither": pair.counts.neither,
                    "difference": pair.difference,
                    "interval": list(pair.interval),
                    "more_trials_to_decide": pair.more_trials,
                    "verdict": pair.verdict,
                }
                for pair in self.pairs
            ],
            "notes": list(self.notes),
        }


def compare(runs: Sequence[Path], suite: str | None = None) -> Comparison:
    """Read and pair the evaluations of `runs`; suite: which one, where a run has several.

    Raises UsageError for fewer than two, the same one twice, or evaluations that are not of the same trials, naming
    what differs; StoreMissing where there is none or it is not finished; StoreCorrupt.
    """
    if len(runs) < 2:
        raise UsageError(f"compare: expected two runs or more, got {len(runs)}")
    folders = [find_evaluation(run, suite) for run in runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError(f"compare: one evaluation is named twice: {', '.join(map(str, folders))}")
    read = [read_evaluation(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    for other in read[1:]:
        _require_same(read[0], other)
    pairs = tuple(itertools.starmap(_pair, itertools.combinations(read, 2)))
    return Comparison(tuple(read), pairs, tuple(_notes(read, len(pairs))))


def find_evaluation(path: Path, suite: str | None = None) -> Path:
    """`path` itself where it holds an evaluation, else the only one of the run there (of `suite`, where given): of its
    policy, not of a control in its place, unless there is nothing else.
    """
    if (path / RUN).is_file():
        return path
    found = sorted(file.parent for pattern in (f"eval/{RUN}", f"eval/*/{RUN}") for file in path.glob(pattern))
    if suite is not None:
        found = [folder for folder in found if _json(folder / RUN).get("suite") == suite]
    found = [folder for folder in found if _control(folder) is None] or found
    if not path.is_dir():
        raise StoreMissing(f"{path}: no such folder; expected a run's, which `statevla runs` lists, or an evaluation's")
    offline = path / "eval" / "offline" / OFFLINE
    if not found and suite is None and offline.is_file():  # a robot that no suite has is measured offline only
        raise StoreMissing(
            f"{path}: no evaluation in a simulator here, and only trials of one are compared; of what was measured "
            f"offline, read {offline} beside that of the other runs"
        )
    if not found:
        what = "no evaluation" if suite is None else f"no evaluation in {suite}"
        command = "eval tabletop" if suite in (None, "tabletop") else f"eval libero --suite {suite}"
        raise StoreMissing(f"{path}: {what} here; run `statevla {command} --checkpoint {word(path)}`")
    if len(found) > 1:
        or_suite = ", or --suite" if suite is None else ""
        raise UsageError(f"{path}: several evaluations: {', '.join(map(str, found))}; name one{or_suite}")
    return found[0]


def read_evaluation(folder: Path, name: str) -> Evaluation:
    """Raises StoreMissing where its trials were not all run yet."""
    if not (folder / JSON).is_file():
        raise StoreMissing(f"{folder}: this evaluation is not finished; run its command again, it goes on")
    results, description = _json(folder / JSON), _json(folder / RUN)
    costs = costs_of(
        folder, str(results.get("policy", "")), (results.get("latency") or {}).get("p50_ms"),
        str(description.get("policy")), results.get("trained_steps"), description.get("control"),
    )  # fmt: skip
    tried = {(str(r["task"]), int(r["start"])) for r in results.get("records", ())}
    records = load_records(folder)
    return Evaluation(folder, name, description, {key: r for key, r in records.items() if key in tried}, costs)


def _require_same(one: Evaluation, other: Evaluation) -> None:
    different = [
        f"{key} {one.description.get(key)!r} and {other.description.get(key)!r}"
        for key in SAME
        if one.description.get(key) != other.description.get(key)
    ]
    mine, theirs = set(one.records), set(other.records)
    for here, there, where in ((mine, theirs, one), (theirs, mine, other)):
        only = sorted(here - there)
        if only:
            shown = ", ".join(f"{task} from start {start}" for task, start in only[:SHOWN])
            more = f" and {len(only) - SHOWN} more" if len(only) > SHOWN else ""
            different.append(f"trials that only {where.folder} has: {shown}{more}")
    if different:
        raise UsageError(
            f"{one.folder} and {other.folder} are not the same trials: {'; '.join(different)}. "
            "Evaluate both with the same suite, tasks, trials, --max-steps and --seed"
        )


def _pair(one: Evaluation, other: Evaluation) -> Pair:
    mine, theirs = one.finished, other.finished
    counts = Paired.of([(mine[key], theirs[key]) for key in mine if key in theirs])
    found = difference(counts)
    if found is None:
        raise UsageError(f"{one.folder} and {other.folder}: no trial that both finished without a simulator's error")
    return Pair(one.name, other.name, counts, found[0], found[1], trials_to_decide(counts))


def _notes(read: Sequence[Evaluation], pairs: int) -> list[str]:
    notes = []
    for other in read[1:]:
        mine, theirs = read[0].description, other.description
        changed = [key for key in sorted({*mine, *theirs}) if key not in OWN and mine.get(key) != theirs.get(key)]
        if changed:
            said = "; ".join(f"{key} {mine.get(key)!r} and {theirs.get(key)!r}" for key in changed)
            notes.append(f"{read[0].name} and {other.name} were run differently: {said}")
        told = [key for key, r in other.records.items() if r.instruction != read[0].records[key].instruction]
        if told:
            notes.append(f"{other.name} was told another instruction than {read[0].name} in {len(told)} trials")
    notes += [f"{each.name}: {each.costs.note}" for each in read if each.costs.note]
    for each in read:
        errors = len(each.records) - len(each.finished)
        if errors:
            notes.append(f"{each.name}: {errors} trials ended in a simulator's error and are left out of its pairs")
    if pairs > 1:
        notes.append(
            f"{pairs} pairs, each with a 95% interval: of pairs that do not differ, one in 20 looks as if it did"
        )
    return notes


def _names(folders: Sequence[Path]) -> list[str]:
    """Of the run, or of the evaluation's folder where it lies elsewhere; both, or the part of the paths in which they
    differ, where not distinct. A control's has its name behind."""
    runs = [run_of_evaluation(folder.resolve()).name for folder in folders]
    both = [run if run == folder.name else f"{run} {folder.name}" for run, folder in zip(runs, folders, strict=True)]
    ends = ["" if (control := _control(folder)) is None else f", {control}" for folder in folders]
    found = [[name + end for name, end in zip(names, ends, strict=True)] for names in (runs, both, apart(folders))]
    return next((names for names in found if len(set(names)) == len(names)), found[-1])


def _control(evaluation: Path) -> str | None:
    """Which one stands in the checkpoint's place; None in evaluations from before there were any, too."""
    control: str | None = _json(evaluation / RUN).get("control")
    return control


def _told(each: Evaluation) -> dict[str, Any]:
    outcomes = list(each.finished.values())
    wins = [r.steps for r in each.records.values() if r.outcome == "success"]
    return {
        "name": each.name,
        "evaluation": str(each.folder),
        "control": each.description.get("control"),
        "system": each.costs.system,
        "success": sum(outcomes) / len(outcomes) if outcomes else None,
        "successes": sum(outcomes),
        "trials": len(outcomes),
        "interval": list(wilson(sum(outcomes), len(outcomes))),
        "steps_to_success": sum(wins) / len(wins) if wins else None,
        "parameters": each.costs.parameters,
        "training_minutes": each.costs.minutes,
        "ms_a_call": each.costs.milliseconds,
    }


def _json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_bytes())
    except ValueError as error:
        raise StoreCorrupt(f"{file}: not JSON ({error}); remove {file.parent} and evaluate anew") from error
    if not isinstance(tree, dict):
        raise StoreCorrupt(f"{file}: expected an object, got {type(tree).__name__}; remove {file.parent}")
    return tree
