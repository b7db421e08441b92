"""What evaluations say: two runs compared, a failure traced, a result made again."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Device, Ensemble, Json, MaxSteps, Out, Replan, Store, Tasks
from statevla.console import print_json, print_table, report, show_progress
from stores.printable import shown

app = typer.Typer()


@app.command()
def diagnose(
    checkpoint: Annotated[Path, typer.Argument(help="Run or checkpoint of a policy.")],
    store: Store = None,
    suite: Annotated[str | None, typer.Option(help="Where to act; default: the store's suite.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Task numbers, such as 0-2,5; default: two of the store's.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials of the policy, a task.")] = 2,
    source: Annotated[Path | None, typer.Option(help="HDF5 folder of the store; default: data/raw/SUITE.")] = None,
    replan: Replan = None,
    ensemble: Ensemble = None,
    max_steps: MaxSteps = None,
    device: Device = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Low loss, and the robot fails: which link between data and action is broken? Exit status 1 if one is."""
    from pipelines.replay import replay_of_files
    from statevla.evaluators.diagnose import diagnose as examine
    from statevla.evaluators.diagnose import suite_of
    from statevla.evaluators.goals import told_in_words
    from statevla.policies.execution import Execution
    from statevla.policies.policy import Policy
    from statevla.runs.layout import evaluation
    from statevla.systems.find import find_policy, store_of
    from stores.reader import Store as OpenStore

    path = find_policy(checkpoint)
    chosen, folder = store_of(path, store), out if out is not None else evaluation(path, "diagnosis")
    print(f"policy {path}, store {chosen}, results {folder}", file=sys.stderr)
    opened = OpenStore.open(chosen)
    where = suite_of(opened, suite).name
    raw = source or Path("data/raw") / where
    replay = replay_of_files(raw, where, tasks) if source is not None or raw.is_dir() else None
    policy = Policy.load(path, device)
    if (told := told_in_words(policy, str(path))) is not None:
        print(f"note: {told}", file=sys.stderr)
    with show_progress() as progress:
        found = examine(
            policy, opened, name=str(path), suite=suite, tasks=tasks, trials=trials, replay=replay,
            execution=Execution(replan, ensemble), max_steps=max_steps, progress=progress,
        )  # fmt: skip
    found.save(folder)
    report("Diagnosis", {"out": str(folder), **found.to_dict()}, as_json, found.to_markdown())
    if found.broken is not None:
        raise typer.Exit(1)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Runs, or folders of evaluations; two or more.")],
    suite: Annotated[str | None, typer.Option(help="Which evaluation, where a run has several.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for compare.json, compare.md and index.html.")] = Path(
        "runs/compare"
    ),
    as_json: Json = False,
) -> None:
    """Policies on the same trials: differences with intervals, what would decide them, what each cost."""
    from statevla.evaluators import compare_results
    from statevla.evaluators.compare import compare as compare_runs

    found = compare_runs(runs, suite)
    compare_results.save(found, out)
    if as_json:
        print_json({"out": str(out), **found.to_dict()})
        return
    print_table("Policies", compare_results.POLICY_COLUMNS, compare_results.policy_rows(found))
    print_table("Pair by pair", compare_results.PAIR_COLUMNS, compare_results.pair_rows(found))
    for note in found.notes:
        print(f"note: {shown(note)}")
    print(f"page: {out / compare_results.PAGE}")


@app.command()
def reproduce(
    suite: Annotated[
        str, typer.Argument(help="Suite with a plan: libero_object, libero_goal, libero_spatial, libero_10.")
    ],
    system: Annotated[
        str | None, typer.Option(help="Policy: vla (default), film, or of libero_object flow_matching, its default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for everything; default: runs/reproduce-SUITE[-SYSTEM].")
    ] = None,
    tasks: Tasks = None,
    workers: Annotated[int, typer.Option(min=1, help="Simulator and ingest processes.")] = 1,
    as_json: Json = False,
) -> None:
    """From nothing to a suite's numbers: collect, ingest, train, evaluate. The same command goes on after a stop."""
    from dataclasses import replace

    from pipelines.reproduce import plan_of
    from pipelines.reproduce import reproduce as run_all

    folder = out if out is not None else Path("runs") / "-".join(filter(None, ("reproduce", suite, system)))
    plan = plan_of(suite, system)
    with show_progress() as progress:
        results = run_all(
            suite, folder, plan=plan if tasks is None else replace(plan, tasks=tasks), workers=workers,
            progress=progress, say=partial(print, file=sys.stderr),
        )  # fmt: skip
    report(suite, {"out": str(folder), **results.to_dict()}, as_json, results.to_markdown())
