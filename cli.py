"""The `statevla` command: parse, make a config, call one library function, print its result.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 done but something was quarantined,
130 and 143 stopped by Ctrl-C or SIGTERM (training saves first). With ``--json`` a command prints
exactly one JSON object on stdout; progress and logs go to stderr. Heavy imports stay inside the commands.
"""

import shutil
import signal
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from statevla.console import print_json, print_table, report, show_progress
from stores.disk.trouble import describe as describe_trouble
from stores.errors import StateVLAError, UsageError

QUARANTINED = 3
SIGNALLED = 128

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Demonstrations → store → Temporal JEPA → flow-matching Mamba policy → evaluation.",
)
eval_app = typer.Typer(no_args_is_help=True, help="Measure a policy: offline, in the tabletop world, in LIBERO.")
app.add_typer(eval_app, name="eval")

Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
Workers = Annotated[int, typer.Option(min=0, help="Dask worker processes on this machine; 0 runs serially.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a running Dask scheduler, tcp://HOST:PORT.")]
Store = Annotated[str | None, typer.Option(help="Store folder or URL; default: the only one under data/stores/.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace whatever store is at the URL now.")]
StoreArgument = Annotated[str, typer.Argument(help="Store folder (or, to read, any fsspec URL).")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Policy: a run or checkpoint folder; default: the latest phase-2 run's best.")
]
Control = Annotated[str, typer.Option(help="checkpoint, or a control: replay-demos, expert, zero.")]
Source = Annotated[Path | None, typer.Option(help="HDF5 folder of replay-demos; default: data/raw/SUITE.")]
Tasks = Annotated[str | None, typer.Option(help="Task numbers, such as 0-2,5; default: all.")]
Replan = Annotated[int | None, typer.Option(min=1, help="Actions executed of each chunk; default: half.")]
Ensemble = Annotated[float | None, typer.Option(min=0, help="Temporal ensembling weight; default: off.")]
Vote = Annotated[bool, typer.Option("--vote", help="Average the chunks that agree with the newest.")]
LatencySteps = Annotated[int, typer.Option(min=0, help="Steps until a chunk can be used; older ones go on.")]
Closed = Annotated[
    bool, typer.Option("--closed", help="An instruction that was not trained on is an error, instead of embedded.")
]
EulerSteps = Annotated[int | None, typer.Option(min=1, help="Sampling steps; default: as in training.")]
Told = Annotated[
    str | None, typer.Option("--goals", help="A policy that takes goals is told them by language, or by an image.")
]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="Default: the suite's usual limit.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="float32 or bfloat16, of the large matrix products.")]
Videos = Annotated[int, typer.Option(min=0, help="Trials a task drawn as animated GIFs.")]
Preset = Annotated[str | None, typer.Option("--preset", help="base (the default), original, small or tiny.")]
Recipe = Annotated[str | None, typer.Option(help="tabletop, libero, documents, or a YAML file.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with the same keys as --set.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one key: training.batch_size=32.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results; default: beside the checkpoint's run.")]


def main() -> None:
    """Entry point: library errors become one line on stderr and an exit status."""
    try:
        app()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except StateVLAError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {describe_trouble(error)}", file=sys.stderr)
        sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        from statevla.version import __version__

        print(f"statevla {__version__}")
        raise typer.Exit


@app.callback()
def _statevla(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Demonstrations → store → Temporal JEPA → flow-matching Mamba policy → evaluation."""


@app.command()
def collect(
    suite: Annotated[str, typer.Argument(help="tabletop, or a LIBERO suite such as libero_object.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes: in all (tabletop), a task (LIBERO).")] = 100,
    out: Annotated[Path | None, typer.Option(help="Folder; default: data/raw/SUITE.")] = None,
    seed: int = 0,
    tasks: Annotated[
        str | None, typer.Option(help="LIBERO task numbers, such as 0-2,5; default: all with an expert.")
    ] = None,
    first_init: Annotated[int, typer.Option(min=0, help="First LIBERO initial state used.")] = 0,
    init_states: Annotated[
        int | None, typer.Option(min=1, help="LIBERO initial states used; default: to the last.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: 1 (tabletop), what memory and cores allow (LIBERO).")
    ] = None,
    align: Annotated[
        Literal["after", "before"], typer.Option(help="Store observations 'after' (as LIBERO) or 'before' the action.")
    ] = "after",
    image_size: Annotated[int, typer.Option(min=16, help="LIBERO: pixels a side.")] = 128,
    noise: Annotated[
        float, typer.Option(min=0, max=1, help="LIBERO: push the hand off its way; what is recorded leads back (DART).")
    ] = 0.0,
    noise_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the attempts that have the noise.")] = 1.0,
    from_policy: Annotated[
        Path | None, typer.Option(help="LIBERO: a run that drives first; what is recorded is the expert taking over.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="LIBERO: try the expert, draw and write nothing.")] = False,
    append: Annotated[bool, typer.Option("--append", help="Add to recordings that are there (tabletop).")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite recordings that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Record demonstrations of the scripted expert as LIBERO-layout HDF5."""

    folder = out if out is not None else Path("data/raw") / suite
    if append and replace:
        raise UsageError("--append and --replace: expected one of them")
    if append and suite != "tabletop":
        raise UsageError(f"--append: for tabletop only; collect more of {suite} into another --out, with --first-init")
    if from_policy is not None and (suite == "tabletop" or dry_run):
        raise UsageError("--from-policy: for recordings in LIBERO; leave it out with tabletop and --dry-run")
    with show_progress() as progress:
        if suite == "tabletop":
            from pipelines.collect.tabletop import collect_tabletop

            summary = collect_tabletop(
                folder, episodes, seed=seed, align=align, workers=workers or 1, progress=progress,
                existing="append" if append else "replace" if replace else "refuse",
            )  # fmt: skip
        elif dry_run:
            from pipelines.collect.libero_trial import try_expert

            trials = try_expert(
                suite, tasks=tasks, episodes=episodes, workers=workers, seed=seed, first_init=first_init, noise=noise,
                progress=progress,
            )  # fmt: skip
        else:
            from pipelines.collect.libero import collect_libero
            from statevla.policies.policy import Policy
            from statevla.systems.find import find_policy

            driver = None if from_policy is None else Policy.load(find_policy(from_policy))
            summary = collect_libero(
                suite, folder, tasks=tasks, episodes=episodes, workers=workers, seed=seed, first_init=first_init,
                init_states=init_states, align=align, image_size=image_size, noise=noise, noise_share=noise_share,
                from_policy=driver, progress=progress, replace=replace,
            )  # fmt: skip
    if suite != "tabletop" and dry_run:
        report("Expert", trials.to_dict(), as_json, trials.to_markdown())
        return
    report("Collected", summary.to_dict(), as_json)


@app.command()
def ingest(
    suite: Annotated[str, typer.Argument(help="Name of the suite, such as libero_object or tabletop.")],
    source: Annotated[Path | None, typer.Option(help="Folder of HDF5 files; default: data/raw/SUITE.")] = None,
    out: Annotated[Path | None, typer.Option(help="Store folder; default: data/stores/SUITE.")] = None,
    store: Annotated[
        str | None, typer.Option(help="Store: a folder (as --out), or s3://bucket/name, by way of --out.")
    ] = None,
    replace: Replace = False,
    language: Annotated[
        str, typer.Option(help="clip, minilm (offline, extra 'text'), or hashed (no semantics).")
    ] = "clip",
    language_model: Annotated[
        str | None, typer.Option(help="Name or folder of the CLIP text model; default: openai/clip-vit-base-patch32.")
    ] = None,
    codec: Annotated[str, typer.Option(help="jpeg (quality 95, 4:4:4) or png (lossless).")] = "jpeg",
    alignment: Annotated[
        str, typer.Option(help="detect, or insist on 'after'/'before' where a file cannot tell.")
    ] = "detect",
    format_: Annotated[
        str | None, typer.Option("--format", help="Format of the files; default: what they look like.")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help="YAML file that says what the files hold: cameras, robot state, action, rate.")
    ] = None,
    gripper: Annotated[
        Literal["detect", "high-closes", "high-opens"],
        typer.Option(help="What the higher gripper command does, where the fingers do not show it."),
    ] = "detect",
    image_convention: Annotated[
        Literal["detect", "opengl", "opencv", "upright"],
        typer.Option(help="How pictures are stored, where the files say nothing or a wrong thing."),
    ] = "detect",
    masks: Annotated[
        Literal["ask", "use", "ignore"],
        typer.Option(help="Filter masks train and valid: the split, or nothing; ask: refuse other masks."),
    ] = "ask",
    hash_sources: Annotated[bool, typer.Option("--hash-sources", help="Record each source's sha256 too.")] = False,
    train_split: Annotated[float, typer.Option(help="Share of episodes to train on.")] = 0.9,
    split_seed: int = 0,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the predicted size only.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where a demonstration cannot be used.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Drop episodes whose source file is gone.")] = False,
    as_json: Json = False,
) -> None:
    """Turn HDF5 demonstrations into a store: shards, frame arrays, tables, language embeddings, manifest."""
    from pipelines.ingest.config import IngestConfig
    from pipelines.ingest.driver import ingest as run_ingest
    from pipelines.ingest.remote import ingest_to_url, place
    from statevla.observation import read_spec

    folder, url = place(suite, out, store)
    config = IngestConfig(
        suite=suite, source=source or Path("data/raw") / suite, out=folder, language=language,
        language_model=language_model, codec=codec, alignment=alignment, gripper=gripper,
        image_convention=image_convention, masks=masks, hash_sources=hash_sources,
        train_split=train_split, split_seed=split_seed, format=format_, spec=None if spec is None else read_spec(spec),
    )  # fmt: skip
    run = run_ingest if url is None else partial(ingest_to_url, url=url, replace=replace)
    with show_progress() as progress:
        summary = run(
            config, workers=workers, scheduler=scheduler, dry_run=dry_run, progress=progress, strict=strict, prune=prune
        )
    for note in () if as_json else summary.notes:
        print(f"note: {note}", file=sys.stderr)
    report("Plan" if dry_run else "Ingested", summary.to_dict(), as_json)
    if summary.quarantined:
        raise typer.Exit(QUARANTINED)


@app.command()
def inspect(store: StoreArgument, as_json: Json = False) -> None:
    """Show what a store holds."""
    from stores.summary import inspect_store

    report(f"Store {store}", inspect_store(store), as_json)


@app.command()
def verify(store: StoreArgument, as_json: Json = False) -> None:
    """Rehash every object of a store; exit 1 and name what differs."""
    from stores.verify import count_objects, verify_store

    with show_progress() as progress:
        problems = verify_store(store, progress=progress)
    if as_json:
        listed = [{"object": item.object, "problem": item.problem} for item in problems]
        print_json({"ok": not problems, "objects": count_objects(store), "problems": listed})
    elif problems:
        print_table("Problems", ("object", "problem"), [(item.object, item.problem) for item in problems])
    else:
        print(f"{count_objects(store)} objects, all as the manifest says")
    if problems:
        raise typer.Exit(1)


@app.command()
def clean(
    store: Annotated[Path, typer.Argument(help="Store folder.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove derived folders that no reader will take any more: stale, damaged or unfinished ones; asks first."""
    from stores.kept import remove_kept, useless

    found = useless(store)
    rows = [{"folder": item.path, "state": item.state, "bytes": item.bytes} for item in found]
    if found and not yes:
        if as_json or not sys.stdin.isatty():
            raise UsageError(f"{store}: {', '.join(item.path for item in found)} would be removed; say so with --yes")
        for item in found:
            print(f"{item.path}: {item.state}, {item.bytes:,} bytes")
        typer.confirm(f"Remove these from {store}?", abort=True)
    for item in remove_kept(store, found) if found else ():
        print(f"removed {item.path}", file=sys.stderr)
    report("Removed", {"store": str(store), "bytes": sum(item.bytes for item in found), "removed": rows}, as_json)


@app.command()
def publish(
    store: Annotated[Path, typer.Argument(help="Store folder.")],
    url: Annotated[str, typer.Argument(help="Where to, such as s3://bucket/libero_object.")],
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Copy a store to object storage: every object conditionally, the manifest last; of two writers one wins."""
    from stores.cloud.publish import publish_store

    with show_progress() as progress:
        published = publish_store(store, url, progress=progress, replace=replace)
    report(f"Published to {url}", {"store": str(store), "url": url, "manifest": published}, as_json)


@app.command()
def stats(store: Store = None, as_json: Json = False) -> None:
    """Compute the train split's action and robot-state statistics and keep them in the store."""
    from pipelines.derive.stats import compute_statistics
    from statevla.runs.stores import find_store
    from stores.reader import Store as OpenStore

    path = find_store(store)
    with show_progress() as progress:
        result = compute_statistics(path, progress=progress)
    if as_json:
        print_json(result)
        return
    columns = ("mean", "std", "min", "max", "q01", "q99")
    still = {}
    spec = OpenStore.open(path).spec
    for name, labels in (("action", spec.action_names), ("robot_state", spec.state_names)):
        rows = [(label, *(result[name][column][i] for column in columns)) for i, label in enumerate(labels)]
        print_table(f"{name} ({result[name]['count']:,} rows)", (name, *columns), rows)
        still[name] = [str(label) for label, std in zip(labels, result[name]["std"], strict=True) if std == 0.0]
    for name, constant in still.items():
        if constant:
            what = "never move; a policy returns their constant" if name == "action" else "never move"
            print(f"{name}: {', '.join(constant)} {what} (std 0)")


@app.command()
def features(
    store: StoreArgument,
    encoder: Annotated[str, typer.Option(help="siglip, dinov2, or a model of one: a hub name or a folder.")],
    dtype: Annotated[Literal["float16", "int8"], typer.Option(help="int8: in units of each patch's largest.")] = (
        "float16"
    ),
    pool: Annotated[int, typer.Option(help="1, 2 or 4: patches averaged over squares of this side.")] = 1,
    device: Device = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Frames at a time.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="Threads that decode, a worker.")] = 2,
    name: Annotated[str | None, typer.Option(help="Folder below features/; default: from the other options.")] = None,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the size only.")] = False,
    as_json: Json = False,
) -> None:
    """Keep a frozen vision tower's patch features of every frame in the store; goes on where it was interrupted."""
    from pipelines.derive.features import FeatureConfig, make_features

    config = FeatureConfig(store, encoder, dtype, pool, device, batch, threads, name)
    with show_progress() as progress:
        result = make_features(config, workers=workers, scheduler=scheduler, dry_run=dry_run, progress=progress)
    report(f"Features of {store}", result, as_json)


@app.command()
def latents(
    store: StoreArgument,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="State encoder: a run or checkpoint folder; default: this store's only one."),
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="That of the training to come: training.precision.")
    ] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Frames at a time.")] = 64,
    threads: Annotated[int, typer.Option(min=1, help="Threads that decode.")] = 2,
    as_json: Json = False,
) -> None:
    """Keep a frozen encoder's state of every frame in the store, for training policies without opening a picture."""
    from statevla.trainers.latents import latents_of_checkpoint

    with show_progress() as progress:
        result = latents_of_checkpoint(
            store, checkpoint, device=device, precision=precision, batch=batch, threads=threads, progress=progress
        )
    report(f"Latents of {store}", result, as_json)


@app.command()
def describe(
    system: Annotated[str | None, typer.Option(help="One system by name; default: the two phases together.")] = None,
    preset: Preset = None,
    recipe: Recipe = None,
    config: ConfigFile = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Print the parameter count of every part of the model."""
    from statevla.systems.describe import describe as describe_model
    from statevla.systems.describe import describe_system
    from statevla.systems.table import find_system, sections
    from statevla.trainers.jobs import ask

    row = None if system is None else find_system(system)
    wanted = ask(row, preset, recipe, config, tuple(set_ or ())).config(sections())
    title = recipe or f"Preset {preset or 'base'}"
    if row is not None:
        alone = describe_system(row, wanted)
        rows = [*alone["parts"].items(), ("trainable", alone["trainable"]), ("frozen", alone["frozen"])]
        print_json(alone) if as_json else print_table(f"{row.title}, {title}", ("part", "parameters"), rows)
        return
    result = describe_model(wanted)
    if as_json:
        print_json(result)
    else:
        rows = [*result["parts"].items(), ("trainable", result["trainable"]), ("total, with EMA", result["total"])]
        print_table(title, ("part", "parameters"), rows)


@app.command()
def train(
    phase: Annotated[int | None, typer.Option(min=1, max=2, help="1: temporal_jepa. 2: flow_matching.")] = None,
    system: Annotated[str | None, typer.Option(help="What to train, by name.")] = None,
    store: Store = None,
    run: Annotated[Path | None, typer.Option(help="Run folder; default: runs/STORE.")] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="Checkpoint or run of the state encoder; default: the only one of this store.")
    ] = None,
    recipe: Recipe = None,
    preset: Preset = None,
    config: ConfigFile = None,
    set_: Set = None,
    resume: Annotated[Path | None, typer.Option(help="Run or checkpoint to go on from; needs no other option.")] = None,
    unfinished_encoder: Annotated[
        bool, typer.Option("--unfinished-encoder", help="Take an encoder whose training was stopped.")
    ] = False,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks on this machine, a GPU each; or use torchrun.")] = 1,
    as_json: Json = False,
) -> None:
    """Train a state encoder or a policy from a store, or go on with a run."""
    if nproc > 1:
        from statevla.trainers.launch import launch, without_nproc

        raise typer.Exit(launch(nproc, without_nproc(sys.argv[1:]), say=_to_stderr))
    from statevla.trainers.command import TrainFlags, run_training
    from statevla.trainers.ranks import OtherRankFailed, first_of_environment

    flags = TrainFlags(phase, system, store, run, encoder, recipe, preset, config, tuple(set_ or ()), resume,
                       unfinished_encoder)  # fmt: skip
    speaks = first_of_environment()
    try:
        with show_progress() if speaks else nullcontext() as progress:
            summary = run_training(flags, say=_to_stderr if speaks else _unsaid, progress=progress)
    except KeyboardInterrupt:
        raise typer.Exit(SIGNALLED + signal.SIGINT) from None
    except OtherRankFailed as error:
        raise typer.Exit(error.status) from None
    if speaks:
        report(f"Trained {summary.system}", summary.to_dict(), as_json)
    if summary.signal is not None:
        raise typer.Exit(SIGNALLED + summary.signal)


@app.command("runs")
def list_training_runs(
    root: Annotated[Path, typer.Argument(help="Folder of the runs.")] = Path("runs"), as_json: Json = False
) -> None:
    """List training runs: system, store, step, best validation loss, state, size."""
    from statevla.console import size_text
    from statevla.runs.listing import list_runs

    rows = list_runs(root)
    if as_json:
        print_json({"runs": [row.to_dict() for row in rows]})
        return
    header = ("run", "system", "store", "step", "of", "best", "state", "size")
    print_table(f"Runs below {root}/", header, [
        (row.run, row.system, row.store, row.step, row.steps, row.best, row.state, size_text(row.bytes)) for row in rows
    ])  # fmt: skip


@app.command("report")
def report_runs(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, shown side by side.")],
    out: Annotated[Path | None, typer.Option(help="HTML file; default: report.html in the first run.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Serve the page on loopback, made anew each time.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --follow; 0 takes a free one.")] = 0,
    as_json: Json = False,
) -> None:
    """One page of training runs: losses, monitors, warnings, probes, states, several runs side by side."""
    from statevla.reports.runs_page import serve_runs, write_runs_page

    if not follow:
        written = write_runs_page(runs, out or runs[0] / "report.html")
        report("Report", {"page": str(written)}, as_json)
        return
    server = serve_runs(runs, port)
    _to_stderr(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        raise typer.Exit(SIGNALLED + signal.SIGINT) from None
    finally:
        server.server_close()


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def _unsaid(text: str) -> None:
    """Of a rank that is not the first."""


@app.command("config")
def show_config(
    preset: Preset = None,
    recipe: Recipe = None,
    config: ConfigFile = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Print every configuration key: its value, its range, and what it is."""
    from statevla.systems.describe import key_lines, list_keys
    from statevla.systems.table import sections
    from statevla.trainers.jobs import ask

    rows = list_keys(ask(None, preset, recipe, config, tuple(set_ or ())).config(sections()))
    if as_json:
        print_json({row.key: {"value": row.value, "range": row.range, "help": row.help} for row in rows})
    else:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("\n".join(key_lines(rows, columns)))


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
    from statevla.evaluators.offline import evaluate_offline
    from statevla.policies.policy import Policy
    from statevla.runs.layout import evaluation
    from statevla.runs.stores import find_store
    from statevla.systems.find import find_policy
    from stores.reader import Store as OpenStore

    path = find_policy(checkpoint)
    chosen, folder = find_store(store), out if out is not None else evaluation(path, "offline")
    print(f"policy {path}, store {chosen}, results {folder}", file=sys.stderr)
    with show_progress() as progress:
        results = evaluate_offline(
            Policy.load(path, device, precision, euler_steps), OpenStore.open(chosen), split=split, seed=seed,
            allow_other_store=allow_other_store, progress=progress,
        )  # fmt: skip
    results.save(folder)
    report("Offline evaluation", {"out": str(folder), **results.to_dict()}, as_json, results.to_markdown())


@eval_app.command("state")
def eval_state(
    checkpoint: Annotated[Path, typer.Option(help="A state encoder: its checkpoint or run.")],
    store: Store = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of the painter's noise.")] = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """What an encoder's states are worth: probes of the actions, straightness, pictures painted from them."""
    from statevla.evaluators.state import evaluate_states
    from statevla.runs.layout import evaluation
    from statevla.runs.stores import find_store
    from statevla.systems.find import resolve
    from statevla.systems.table import SYSTEMS
    from stores.reader import Store as OpenStore

    path, chosen = resolve(checkpoint, [row for row in SYSTEMS if row.kind == "encoder"]), find_store(store)
    folder = out if out is not None else evaluation(path, "state")
    with show_progress() as progress:
        results = evaluate_states(path, OpenStore.open(chosen), device, seed, progress)
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
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Read robot, action, progress and instruction off the state; roll the predictor out. Held-out episodes."""
    from statevla.evaluators.probes import probes_of_run, table

    found, where = probes_of_run(checkpoint, store, device=device, most=frames, random=random, out=out)
    report(f"Probes of {found['checkpoint']}", {**table(found), "out": str(where)}, as_json)


@eval_app.command("tabletop")
def eval_tabletop(
    checkpoint: Checkpoint = None,
    policy: Control = "checkpoint",
    source: Source = None,
    tasks: Tasks = None,
    episodes: Annotated[int, typer.Option(min=1, help="Trials in all, tasks in turn.")] = 50,
    replan: Replan = None,
    ensemble: Ensemble = None,
    vote: Vote = False,
    latency_steps: LatencySteps = 0,
    euler_steps: EulerSteps = None,
    closed: Closed = False,
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
        loading={"device": device, "precision": precision, "euler_steps": euler_steps, "closed": closed,
                 "goals": goals},
    )  # fmt: skip


@eval_app.command("libero")
def eval_libero(
    suite: Annotated[str, typer.Option(help="Such as libero_object.")] = "libero_object",
    checkpoint: Checkpoint = None,
    policy: Control = "checkpoint",
    source: Source = None,
    tasks: Tasks = None,
    num_trials: Annotated[int, typer.Option(min=1, help="Trials a task.")] = 50,
    workers: Annotated[int, typer.Option(min=1, help="Simulator processes, up to 2.4 GiB each.")] = 1,
    first_init: Annotated[
        int | None, typer.Option(min=0, help="First initial state; default: past those of the demonstrations.")
    ] = None,
    fixtures: Annotated[
        Literal["fixed", "drawn"], typer.Option(help="Where cabinets, stoves and racks stand: as recorded, or anew.")
    ] = "fixed",
    replan: Replan = None,
    ensemble: Ensemble = None,
    vote: Vote = False,
    latency_steps: LatencySteps = 0,
    euler_steps: EulerSteps = None,
    closed: Closed = False,
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
    from statevla.policies.execution import Execution

    _evaluate(
        suite, checkpoint, policy, source, as_json, out=out, tasks=tasks, num_trials=num_trials, workers=workers,
        first_init=first_init, execution=Execution(replan, ensemble, vote, latency_steps), max_steps=max_steps,
        videos=videos, seed=seed, conditions=Conditions(fixtures=fixtures),
        loading={"device": device, "precision": precision, "euler_steps": euler_steps, "closed": closed,
                 "goals": goals},
    )  # fmt: skip


@eval_app.command("robustness")
def eval_robustness(
    suite: Annotated[str, typer.Option(help="Such as libero_object.")] = "libero_object",
    checkpoint: Checkpoint = None,
    policy: Control = "checkpoint",
    only: Annotated[
        str | None, typer.Option(help="Rows, such as noise,camera-shift,swap; default: all usual ones.")
    ] = None,
    tasks: Tasks = None,
    num_trials: Annotated[int, typer.Option(min=1, help="Trials a task and row.")] = 10,
    workers: Annotated[int, typer.Option(min=1, help="Simulator processes, up to 2.4 GiB each.")] = 1,
    first_init: Annotated[
        int | None, typer.Option(min=0, help="First initial state; default: past those of the demonstrations.")
    ] = None,
    replan: Replan = None,
    ensemble: Ensemble = None,
    vote: Vote = False,
    latency_steps: LatencySteps = 0,
    euler_steps: EulerSteps = None,
    closed: Closed = False,
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
    from statevla.policies.execution import Execution

    chosen = choose_policy(
        policy, suite, checkpoint=checkpoint, device=device, precision=precision, euler_steps=euler_steps,
        closed=closed, seed=seed,
    )  # fmt: skip
    folder = out if out is not None else chosen.out.with_name(f"{chosen.out.name}-robustness")
    print(f"policy {chosen.name}, results {folder}", file=sys.stderr)
    with show_progress() as progress:
        results = evaluate_robustness(
            chosen.policy, suite, out=folder, name=chosen.name, only=None if only is None else only.split(","),
            tasks=tasks, num_trials=num_trials, workers=workers, first_init=first_init, seed=seed,
            execution=Execution(replan, ensemble, vote, latency_steps), max_steps=max_steps, progress=progress,
        )  # fmt: skip
    report("Robustness", {"out": str(folder), **results.to_dict()}, as_json, results.to_markdown())


@eval_app.command("language")
def eval_language(
    suite: Annotated[str, typer.Option(help="tabletop, or a LIBERO suite such as libero_object.")] = "libero_object",
    checkpoint: Checkpoint = None,
    tasks: Tasks = None,
    num_trials: Annotated[int, typer.Option(min=1, help="Trials a task and kind of instruction.")] = 10,
    workers: Annotated[int, typer.Option(min=1, help="Simulator processes, up to 2.4 GiB each.")] = 1,
    first_init: Annotated[
        int | None, typer.Option(min=0, help="First initial state; default: past those of the demonstrations.")
    ] = None,
    replan: Replan = None,
    ensemble: Ensemble = None,
    vote: Vote = False,
    latency_steps: LatencySteps = 0,
    euler_steps: EulerSteps = None,
    max_steps: MaxSteps = None,
    device: Device = "auto",
    precision: Precision = "float32",
    seed: int = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Does a policy do what it is told? Success and actions under other instructions."""
    from statevla.evaluators.choose import choose_policy
    from statevla.evaluators.language import evaluate_language
    from statevla.policies.execution import Execution

    chosen = choose_policy(
        "checkpoint", suite, checkpoint=checkpoint, device=device, precision=precision, euler_steps=euler_steps
    )
    folder = out if out is not None else chosen.out.with_name(f"{chosen.out.name}-language")
    print(f"policy {chosen.name}, results {folder}", file=sys.stderr)
    with show_progress() as progress:
        results = evaluate_language(
            chosen.policy, suite, out=folder, name=chosen.name, tasks=tasks, num_trials=num_trials, workers=workers,
            first_init=first_init, seed=seed, execution=Execution(replan, ensemble, vote, latency_steps),
            max_steps=max_steps, progress=progress,
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
    from statevla.evaluators.evaluate import evaluate

    folder = source if source is not None else Path("data/raw") / suite
    demos = replay_of_files(folder, suite, tasks) if kind == "replay-demos" else None
    chosen = choose_policy(kind, suite, checkpoint=checkpoint, seed=seed, demos=demos, **loading)
    results_folder = out if out is not None else chosen.out
    print(f"policy {chosen.name}, results {results_folder}", file=sys.stderr)
    with show_progress() as progress:
        results = evaluate(
            chosen.policy, suite, out=results_folder, name=chosen.name, tasks=tasks, seed=seed, progress=progress,
            **options,
        )  # fmt: skip
    for note in results.notes:
        print(f"warning: {note}", file=sys.stderr)
    report(suite, {"out": str(results_folder), **results.to_dict()}, as_json, results.to_markdown())


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
    from statevla.policies.execution import Execution
    from statevla.policies.policy import Policy
    from statevla.runs.layout import evaluation
    from statevla.runs.stores import find_store
    from statevla.systems.find import find_policy
    from stores.reader import Store as OpenStore

    path = find_policy(checkpoint)
    chosen, folder = find_store(store), out if out is not None else evaluation(path, "diagnosis")
    print(f"policy {path}, store {chosen}, results {folder}", file=sys.stderr)
    opened = OpenStore.open(chosen)
    where = suite or opened.manifest.suite
    raw = source or Path("data/raw") / where
    replay = replay_of_files(raw, where, tasks) if source is not None or raw.is_dir() else None
    with show_progress() as progress:
        found = examine(
            Policy.load(path, device), opened, name=str(path), suite=suite, tasks=tasks, trials=trials, replay=replay,
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
        print(f"note: {note}")
    print(f"page: {out / compare_results.PAGE}")


@app.command()
def doctor(store: Store = None, as_json: Json = False) -> None:
    """Check this machine: packages, device, Mamba kernels, codec, simulator, rendering, disk, memory, a store."""
    from dataclasses import asdict

    from statevla.doctor import doctor as examine
    from statevla.doctor import healthy

    checks = examine(store)
    if as_json:
        print_json({"ok": healthy(checks), "checks": [asdict(check) for check in checks]})
    else:
        rows = [(check.name, check.status, check.value, check.advice) for check in checks]
        print_table("Doctor", ("check", "status", "found", "what to do"), rows)
    if not healthy(checks):
        raise typer.Exit(1)


@app.command()
def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="stream, features, latents, step, ingest, ingest-large, verify, index, mamba, latency or libero."
        ),
    ],
    store: Store = None,
    source: Annotated[Path | None, typer.Option(help="HDF5 folder for 'ingest'.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Policy for 'latency'; default: the base preset with random weights.")
    ] = None,
    vision: Annotated[str | None, typer.Option(help="conv or siglip, for 'latency'; default: both.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16, for 'latency'; default: both.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for 'latency'.")] = "cpu",
    segments: Annotated[int | None, typer.Option(help="Size of the synthetic store, for 'index'.")] = None,
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """Measure speed as a fraction of a physical limit, in one run on this machine."""
    from pipelines.bench.table import BenchOptions, run_bench

    options = BenchOptions(store, source, checkpoint, workers, vision, dtype, device, segments)
    result = run_bench(name, options)
    report(f"bench {name}", result, as_json)


@app.command()
def reproduce(
    suite: Annotated[str, typer.Argument(help="Suite with a measured plan: libero_object.")],
    out: Annotated[Path | None, typer.Option(help="Folder for everything; default: runs/reproduce-SUITE.")] = None,
    tasks: Tasks = None,
    workers: Annotated[int, typer.Option(min=1, help="Simulator and ingest processes.")] = 1,
    as_json: Json = False,
) -> None:
    """From nothing to a suite's numbers: collect, ingest, train, evaluate. The same command goes on after a stop."""
    from dataclasses import replace

    from pipelines.reproduce import plan_of
    from pipelines.reproduce import reproduce as run_all

    folder = out if out is not None else Path("runs") / f"reproduce-{suite}"
    plan = plan_of(suite)
    with show_progress() as progress:
        results = run_all(
            suite, folder, plan=plan if tasks is None else replace(plan, tasks=tasks), workers=workers,
            progress=progress, say=partial(print, file=sys.stderr),
        )  # fmt: skip
    report(suite, {"out": str(folder), **results.to_dict()}, as_json, results.to_markdown())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    workers: Workers = 2,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """The whole way on the tabletop suite: collect, ingest, train both phases, evaluate, report."""
    from pipelines.showcase.run import run_demo

    with show_progress() as progress:
        summary = run_demo(out, workers=workers, seed=seed, progress=progress)
    report("Demo", summary.to_dict(), as_json)
    if not summary.learned:
        print(f"error: the policy did not learn: {summary.verdict}", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
