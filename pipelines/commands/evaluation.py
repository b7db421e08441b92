"""`statevla eval`: a policy measured, offline and in worlds."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipelines.commands.options import (
    Checkpoint,
    Closed,
    Control,
    Device,
    Ensemble,
    EulerSteps,
    FirstInit,
    InItsPlace,
    Json,
    LatencySteps,
    MaxSteps,
    Out,
    Precision,
    Replan,
    Simulators,
    Source,
    Store,
    Tasks,
    Told,
    UnknownInstructions,
    UsualSuite,
    Videos,
    Vote,
)
from statevla.console import report, show_progress
from stores.errors import UsageError
from stores.printable import shown

app = typer.Typer()
eval_app = typer.Typer(no_args_is_help=True, help="Measure a policy: offline, in the tabletop world, in LIBERO.")
app.add_typer(eval_app, name="eval")


@eval_app.command("offline")
def eval_offline(
    checkpoint: Checkpoint = None,
    store: Store = None,
    split: Annotated[str, typer.Option(help="val or train.")] = "val",
    euler_steps: EulerSteps = None,
    device: Device = "auto",
    precision: Precision = "float32",
    seed: Annotated[int, typer.Option(help="Of the policy's noise.")] = 0,
    out: Out = None,
    allow_other_store: Annotated[
        bool, typer.Option("--allow-other-store", help="Evaluate on a store that the policy was not trained on.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare predicted chunks with the demonstrations'."""
    from statevla.evaluators.goals import told_in_words
    from statevla.evaluators.offline import evaluate_offline
    from statevla.policies.policy import Policy
    from statevla.runs.layout import evaluation
    from statevla.systems.find import find_policy, store_of
    from stores.reader import Store as OpenStore

    path = find_policy(checkpoint)
    chosen, folder = store_of(path, store), out if out is not None else evaluation(path, "offline")
    print(f"policy {path}, store {chosen}, results {folder}", file=sys.stderr)
    policy = Policy.load(path, device, precision, euler_steps)
    if (told := told_in_words(policy, str(path))) is not None:
        print(f"note: {told}", file=sys.stderr)
    with show_progress() as progress:
        results = evaluate_offline(
            policy, OpenStore.open(chosen), split=split, seed=seed,
            allow_other_store=allow_other_store, progress=progress,
        )  # fmt: skip
    results.save(folder)
    report("Offline evaluation", {"out": str(folder), **results.to_dict()}, as_json, results.to_markdown())


@eval_app.command("state")
def eval_state(
    checkpoint: Annotated[
        Path | None, typer.Option(help="A state encoder: its checkpoint or run; default: the only one of the store.")
    ] = None,
    store: Store = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of the painter's noise.")] = 0,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Another encoder of this store, probed on the same frames; may be given again."),
    ] = None,
    plan_in: Annotated[
        str | None,
        typer.Option(
            help="Also go to the state of the expert's last picture, straight and by a network, in a suite: tabletop"
        ),
    ] = None,
    num_trials: Annotated[int | None, typer.Option(min=1, help="Of each task, with --plan-in; default: 10.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Like 0-2,5, with --plan-in; default: all.")] = None,
    guidance: Annotated[
        float,
        typer.Option(min=0, help="How far to go from a picture painted without a state to the state's; 1: there."),
    ] = 1.0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """What an encoder's states are worth: probes of the actions, straightness, pictures painted from them."""
    from statevla.evaluators.state import evaluate_states
    from statevla.evaluators.state_loop import Trials
    from statevla.runs.layout import evaluation
    from statevla.runs.stores import find_store
    from statevla.systems.find import find_encoder, store_of
    from stores.reader import Store as OpenStore

    if plan_in is None and (num_trials is not None or tasks is not None):
        raise UsageError("--num-trials and --tasks say what is tried; name the suite with --plan-in")
    if checkpoint is None:
        opened = OpenStore.open(find_store(store))
        path = find_encoder(None, opened.content_hash)
    else:
        path = find_encoder(checkpoint, "")
        opened = OpenStore.open(store_of(path, store))
    folder = out if out is not None else evaluation(path, "state")
    with show_progress() as progress:
        trials = None if plan_in is None else Trials(plan_in, num_trials or 10, folder / "plan", tasks)
        results = evaluate_states(path, opened, device, seed, progress, beside or (), trials, guidance)
    results.save(folder)
    report("States", {"out": str(folder), **results.to_dict()}, as_json, results.to_markdown())


@eval_app.command("probes")
def eval_probes(
    checkpoint: Annotated[
        Path | None, typer.Option(help="A run or checkpoint with a state encoder; default: the only one of the store.")
    ] = None,
    store: Store = None,
    device: Device = "auto",
    frames: Annotated[int, typer.Option(min=64, help="Most frames of each split.")] = 4096,
    random: Annotated[bool, typer.Option("--random", help="An untrained encoder of the same sizes instead.")] = False,
    source: Annotated[
        Path | None, typer.Option(help="The store's HDF5 folder: probe where the things of the instruction are, too.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Read robot, action, progress and instruction off the state; roll the predictor out. Held-out episodes."""
    from statevla.evaluators.probes import probes_of_run, table

    places = None
    if source is not None:
        from pipelines.sources.places import places_of

        places = partial(places_of, source=source)
    found, where = probes_of_run(checkpoint, store, device=device, most=frames, random=random, out=out, places=places)
    report(f"Probes of {found['checkpoint']}", {**table(found), "out": str(where)}, as_json)


@eval_app.command("tabletop")
def eval_tabletop(
    checkpoint: Checkpoint = None,
    policy: Control = "checkpoint",
    control: InItsPlace = None,
    source: Source = None,
    tasks: Tasks = None,
    episodes: Annotated[int, typer.Option(min=1, help="Trials in all, tasks in turn.")] = 50,
    replan: Replan = None,
    ensemble: Ensemble = None,
    vote: Vote = False,
    latency_steps: LatencySteps = 0,
    euler_steps: EulerSteps = None,
    closed: Closed = False,
    unknown_instructions: UnknownInstructions = False,
    goals: Told = None,
    max_steps: MaxSteps = None,
    device: Device = "auto",
    precision: Precision = "float32",
    videos: Videos = 1,
    seed: Annotated[int, typer.Option(help="Of the layouts and of the policy's noise.")] = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Success in the tabletop world, which needs nothing but this machine."""
    from statevla.policies.execution import Execution

    _evaluate(
        "tabletop", checkpoint, policy, source, as_json, out=out, tasks=tasks, episodes=episodes,
        execution=Execution(replan, ensemble, vote, latency_steps), max_steps=max_steps, videos=videos, seed=seed,
        unknown_instructions=unknown_instructions,
        loading={"device": device, "precision": precision, "euler_steps": euler_steps, "closed": closed,
                 "goals": goals, "control": control},
    )  # fmt: skip


@eval_app.command("libero")
def eval_libero(
    suite: UsualSuite = None,
    checkpoint: Checkpoint = None,
    policy: Control = "checkpoint",
    control: InItsPlace = None,
    source: Source = None,
    tasks: Tasks = None,
    num_trials: Annotated[int, typer.Option(min=1, help="Trials a task.")] = 50,
    workers: Simulators = 1,
    first_init: FirstInit = None,
    fixtures: Annotated[
        Literal["fixed", "drawn"], typer.Option(help="Where cabinets, stoves and racks stand: as recorded, or anew.")
    ] = "fixed",
    replan: Replan = None,
    ensemble: Ensemble = None,
    vote: Vote = False,
    latency_steps: LatencySteps = 0,
    euler_steps: EulerSteps = None,
    closed: Closed = False,
    unknown_instructions: UnknownInstructions = False,
    goals: Told = None,
    max_steps: MaxSteps = None,
    device: Device = "auto",
    precision: Precision = "float32",
    videos: Videos = 0,
    seed: Annotated[int, typer.Option(help="Another seed is another sample of the policy's noise.")] = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Success in the LIBERO simulator (`make libero` installs it)."""
    from statevla.evaluators.conditions import Conditions
    from statevla.evaluators.usual_suite import usual_suite
    from statevla.policies.execution import Execution

    suite = usual_suite(policy, checkpoint) if suite is None else suite
    _evaluate(
        suite, checkpoint, policy, source, as_json, out=out, tasks=tasks, num_trials=num_trials, workers=workers,
        first_init=first_init, execution=Execution(replan, ensemble, vote, latency_steps), max_steps=max_steps,
        videos=videos, seed=seed, conditions=Conditions(fixtures=fixtures), unknown_instructions=unknown_instructions,
        loading={"device": device, "precision": precision, "euler_steps": euler_steps, "closed": closed,
                 "goals": goals, "control": control},
    )  # fmt: skip


@eval_app.command("robustness")
def eval_robustness(
    suite: UsualSuite = None,
    checkpoint: Checkpoint = None,
    policy: Control = "checkpoint",
    only: Annotated[
        str | None, typer.Option(help="Rows, such as noise,camera-shift,swap; default: all usual ones.")
    ] = None,
    tasks: Tasks = None,
    num_trials: Annotated[int, typer.Option(min=1, help="Trials a task and row.")] = 10,
    workers: Simulators = 1,
    first_init: FirstInit = None,
    replan: Replan = None,
    ensemble: Ensemble = None,
    vote: Vote = False,
    latency_steps: LatencySteps = 0,
    euler_steps: EulerSteps = None,
    closed: Closed = False,
    unknown_instructions: UnknownInstructions = False,
    goals: Told = None,
    max_steps: MaxSteps = None,
    device: Device = "auto",
    precision: Precision = "float32",
    seed: int = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """One table: success as it is, and with cameras, light, noise, fixtures or things changed (LIBERO, LIBERO-PRO)."""
    from statevla.evaluators.choose import choose_policy
    from statevla.evaluators.robustness import evaluate_robustness
    from statevla.evaluators.usual_suite import usual_suite
    from statevla.policies.execution import Execution

    suite = usual_suite(policy, checkpoint) if suite is None else suite
    chosen = choose_policy(
        policy, suite, checkpoint=checkpoint, device=device, precision=precision, euler_steps=euler_steps,
        closed=closed, goals=goals, seed=seed,
    )  # fmt: skip
    folder = out if out is not None else chosen.out.with_name(f"{chosen.out.name}-robustness")
    print(f"policy {chosen.name}, results {folder}", file=sys.stderr)
    with show_progress() as progress:
        results = evaluate_robustness(
            chosen.policy, suite, out=folder, name=chosen.name, only=None if only is None else only.split(","),
            tasks=tasks, num_trials=num_trials, workers=workers, first_init=first_init, seed=seed,
            execution=Execution(replan, ensemble, vote, latency_steps), max_steps=max_steps, progress=progress,
            unknown_instructions=unknown_instructions,
        )  # fmt: skip
    report("Robustness", {"out": str(folder), **results.to_dict()}, as_json, results.to_markdown())


@eval_app.command("language")
def eval_language(
    suite: UsualSuite = None,
    checkpoint: Checkpoint = None,
    tasks: Tasks = None,
    num_trials: Annotated[int, typer.Option(min=1, help="Trials a task and kind of instruction.")] = 10,
    workers: Simulators = 1,
    first_init: FirstInit = None,
    replan: Replan = None,
    ensemble: Ensemble = None,
    vote: Vote = False,
    latency_steps: LatencySteps = 0,
    euler_steps: EulerSteps = None,
    unknown_instructions: UnknownInstructions = False,
    max_steps: MaxSteps = None,
    device: Device = "auto",
    precision: Precision = "float32",
    seed: int = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Does a policy do what it is told? Success and actions under other instructions."""
    from statevla.evaluators.choose import choose_policy
    from statevla.evaluators.goals import LANGUAGE
    from statevla.evaluators.language import evaluate_language
    from statevla.evaluators.usual_suite import ALL, usual_suite
    from statevla.policies.execution import Execution

    suite = usual_suite("checkpoint", checkpoint, ALL) if suite is None else suite
    chosen = choose_policy(
        "checkpoint", suite, checkpoint=checkpoint, device=device, precision=precision, euler_steps=euler_steps,
        goals=LANGUAGE,
    )  # fmt: skip
    folder = out if out is not None else chosen.out.with_name(f"{chosen.out.name}-language")
    print(f"policy {chosen.name}, results {folder}", file=sys.stderr)
    with show_progress() as progress:
        results = evaluate_language(
            chosen.policy, suite, out=folder, name=chosen.name, tasks=tasks, num_trials=num_trials, workers=workers,
            first_init=first_init, seed=seed, execution=Execution(replan, ensemble, vote, latency_steps),
            max_steps=max_steps, progress=progress,
            unknown_instructions=unknown_instructions,
        )  # fmt: skip
    report("Language", {"out": str(folder), **results.to_dict()}, as_json, results.to_markdown())


def _evaluate(
    suite: str,
    checkpoint: Path | None,
    kind: str,
    source: Path | None,
    as_json: bool,
    *,
    out: Path | None,
    tasks: str | None,
    seed: int,
    loading: dict[str, Any],
    **options: Any,
) -> None:
    """What the closed-loop commands share. A replay's demonstrations are read here: evaluators know no sources."""
    from pipelines.replay import replay_of_files
    from statevla.evaluators.choose import choose_policy
    from statevla.evaluators.conditions import USUAL
    from statevla.evaluators.evaluate import evaluate

    folder = source if source is not None else Path("data/raw") / suite
    demos = replay_of_files(folder, suite, tasks) if kind == "replay-demos" else None
    seen = options.get("conditions", USUAL)
    chosen = choose_policy(kind, suite, checkpoint=checkpoint, seed=seed, demos=demos, conditions=seen, **loading)
    results_folder = out if out is not None else chosen.out
    print(f"policy {chosen.name}, results {results_folder}", file=sys.stderr)
    with show_progress() as progress:
        results = evaluate(
            chosen.policy, suite, out=results_folder, name=chosen.name, tasks=tasks, seed=seed, progress=progress,
            **options,
        )  # fmt: skip
    for note in results.notes:
        print(f"warning: {shown(note)}", file=sys.stderr)
    report(suite, {"out": str(results_folder), **results.to_dict()}, as_json, results.to_markdown())
