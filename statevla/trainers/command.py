"""`statevla train` as a function: flags in, a summary out, and what was chosen said on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from statevla.runs.layout import run_of
from statevla.systems.table import SYSTEMS, find_system
from statevla.trainers.jobs import TrainingJob, ask, plan_resume, plan_training
from statevla.trainers.outcome import TrainSummary
from statevla.trainers.ranks import OtherRankFailed, first_of_environment, status_of
from stores.errors import StateVLAError, UsageError
from stores.printable import word
from stores.progress import Progress


@dataclass(frozen=True)
class TrainFlags:
    """The command line, not yet looked at; None where nothing was said."""

    phase: int | None = None
    system: str | None = None
    store: str | None = None
    run: Path | None = None
    encoder: Path | None = None
    recipe: str | None = None
    preset: str | None = None
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    resume: Path | None = None
    unfinished_encoder: bool = False


def plan(flags: TrainFlags) -> TrainingJob:
    """What the flags mean. Raises UsageError."""
    named = [str(name) for name in (flags.phase, flags.system) if name is not None]
    system = find_system(named[0]) if named else None
    if len(named) > 1 and find_system(named[1]) != system:
        raise UsageError(f"--phase {flags.phase} and --system {flags.system} are not the same system; give one of them")
    if flags.resume is None:
        if system is None:
            known = ", ".join(row.name for row in SYSTEMS)
            raise UsageError(f"what to train? give --phase 1 or 2, --system NAME ({known}), or --resume RUN")
        request = ask(system, flags.preset, flags.recipe, flags.config, flags.overrides)
        return plan_training(system, request, store=flags.store, run=flags.run, encoder=flags.encoder)
    if flags.encoder is not None:
        raise UsageError("--encoder: a resumed policy has its encoder in its own checkpoint; leave it out")
    job = plan_resume(
        flags.resume,
        lambda row: ask(row, flags.preset, flags.recipe, flags.config, flags.overrides),
        system=system,
        store=flags.store,
    )
    if flags.run is not None and flags.run.resolve() != job.run.resolve():
        raise UsageError(f"--run {flags.run}: --resume {flags.resume} goes on in {job.run}; leave --run out")
    return job


def run_training(flags: TrainFlags, say: Callable[[str], None], progress: Progress | None = None) -> TrainSummary:
    """Plan and train. `say` gets one line of what was chosen, and after a stop the command that goes on.

    Raises UsageError for flags that contradict each other, what `train` raises, and OtherRankFailed on all ranks but
    the first for what all of them find.
    """
    try:
        job = plan(flags)
    except StateVLAError as error:
        if first_of_environment():
            raise
        raise OtherRankFailed(status_of(error)) from error
    say(job.text)
    summary = job.start(progress, flags.unfinished_encoder)
    if summary.stopped:
        say(f"stopped at step {summary.steps}; go on with: statevla train --resume {word(summary.checkpoint)}")
    elif job.resume is not None and summary.began == summary.steps:
        say(
            f"finished already, at step {summary.steps}; nothing was trained; "
            f"for a longer run say so, such as --set training.max_steps={2 * summary.steps}"
        )
    else:
        say(f"finished at step {summary.steps}: {run_of(Path(summary.checkpoint))}")
    return summary
