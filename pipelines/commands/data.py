"""Demonstrations to stores, and what stores derive from them: statistics, features, latents."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.collect.stop import clean_on_terminate
from pipelines.commands.options import (
    QUARANTINED,
    Device,
    Ensemble,
    Json,
    Replace,
    Replan,
    Scheduler,
    Store,
    StoreArgument,
    Workers,
    require_folder,
)
from statevla.console import print_json, print_table, report, show_progress
from stores.errors import UsageError
from stores.printable import shown

app = typer.Typer()


@app.command()
def collect(
    suite: Annotated[str, typer.Argument(help="tabletop, or a LIBERO suite such as libero_object.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes: in all (tabletop), a task (LIBERO).")] = 100,
    out: Annotated[Path | None, typer.Option(help="Folder; default: data/raw/SUITE.", callback=require_folder)] = None,
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
    scatter: Annotated[
        float, typer.Option(min=0, max=1, help="libero_object: share of the attempts with things at random places.")
    ] = 0.0,
    from_policy: Annotated[
        Path | None, typer.Option(help="LIBERO: a run that drives first; what is recorded is the expert taking over.")
    ] = None,
    replan: Replan = None,
    ensemble: Ensemble = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="LIBERO: try the expert, draw and write nothing.")] = False,
    append: Annotated[bool, typer.Option("--append", help="Add to recordings that are there (tabletop).")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite recordings that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Record demonstrations of the scripted expert as LIBERO-layout HDF5."""
    from statevla.sims.suites import find_suite

    find_suite(suite)  # names all there are, LIBERO's and the tabletop
    folder = out if out is not None else Path("data/raw") / suite
    if append and replace:
        raise UsageError("--append and --replace: expected one of them")
    if append and suite != "tabletop":
        raise UsageError(f"--append: for tabletop only; collect more of {suite} into another --out, with --first-init")
    of_libero = {
        "--tasks": tasks, "--first-init": first_init, "--init-states": init_states, "--noise": noise,
        "--noise-share": noise_share != 1, "--scatter": scatter, "--from-policy": from_policy, "--dry-run": dry_run,
        "--image-size": image_size != 128,
    }  # fmt: skip
    given = [name for name, value in of_libero.items() if value]
    if suite == "tabletop" and given:
        raise UsageError(f"{', '.join(given)}: for LIBERO; leave out with tabletop")
    if from_policy is not None and dry_run:
        raise UsageError("--from-policy: records, and --dry-run does not; leave one of them out")
    if from_policy is None and (replan is not None or ensemble is not None):
        raise UsageError(
            "--replan, --ensemble: how a policy's chunks are executed; give --from-policy, or leave them out"
        )
    unseen = {
        "--init-states": init_states, "--noise-share": noise_share != 1, "--align": align != "after",
        "--image-size": image_size != 128,
    }  # fmt: skip
    if dry_run and any(unseen.values()):
        given = [name for name, value in unseen.items() if value]
        raise UsageError(f"{', '.join(given)}: not seen by --dry-run; leave out, or record")
    with clean_on_terminate(), show_progress() as progress:
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
                scatter=scatter, progress=progress,
            )  # fmt: skip
        else:
            from pipelines.collect.libero import collect_libero
            from statevla.policies.execution import Execution
            from statevla.policies.policy import Policy
            from statevla.systems.find import find_policy

            driver = None if from_policy is None else Policy.load(find_policy(from_policy))
            summary = collect_libero(
                suite, folder, tasks=tasks, episodes=episodes, workers=workers, seed=seed, first_init=first_init,
                init_states=init_states, align=align, image_size=image_size, noise=noise, noise_share=noise_share,
                scatter=scatter, from_policy=driver, execution=Execution(replan, ensemble),
                progress=progress, replace=replace,
            )  # fmt: skip
    if suite != "tabletop" and dry_run:
        report("Expert", trials.to_dict(), as_json, trials.to_markdown())
        return
    report("Collected", summary.to_dict(), as_json)


@app.command()
def ingest(
    suite: Annotated[str, typer.Argument(help="Name of the suite, such as libero_object or tabletop.")],
    source: Annotated[
        Path | None,
        typer.Option(help="Folder of HDF5 files, one such file, or a LeRobot dataset; default: data/raw/SUITE."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Store folder; default: data/stores/SUITE.", callback=require_folder)
    ] = None,
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
    codec: Annotated[
        str, typer.Option(help="jpeg (quality 95, 4:4:4), jpeg-420 (colours at half the size) or png (lossless).")
    ] = "jpeg",
    window: Annotated[
        int | None, typer.Option(min=1, max=99, help="Steps of a segment, which is read at a time; default: 16.")
    ] = None,
    alignment: Annotated[
        str, typer.Option(help="detect, or insist on 'after'/'before' where a file cannot tell.")
    ] = "detect",
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="libero, robomimic or lerobot; default: the suite's name, or what files look like."
        ),
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(help="YAML file that says which entries are cameras, robot state, action; and the rate."),
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
        typer.Option(help="The source's own split (masks, splits): kept, or nothing; ask: refuse other masks."),
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
    """Turn demonstrations (LIBERO, robomimic, LeRobot) into a store: shards, frames, tables, language, manifest."""
    from pipelines.ingest.config import IngestConfig
    from pipelines.ingest.driver import ingest as run_ingest
    from pipelines.ingest.remote import ingest_to_url, place
    from pipelines.sources.fields import Fields, read_fields
    from stores.schema import SEGMENT_FRAMES
    from stores.summary import spec_lines

    folder, url = place(suite, out, store)
    named = None if spec is None else read_fields(spec)
    config = IngestConfig(
        suite=suite, source=source or Path("data/raw") / suite, out=folder, language=language,
        language_model=language_model, window=window or SEGMENT_FRAMES, codec=codec, alignment=alignment,
        gripper=gripper, image_convention=image_convention, masks=masks, hash_sources=hash_sources,
        train_split=train_split, split_seed=split_seed, format=format_,
        spec=None if isinstance(named, Fields) else named, fields=named if isinstance(named, Fields) else None,
    )  # fmt: skip
    run = run_ingest if url is None else partial(ingest_to_url, url=url, replace=replace)
    with show_progress() as progress:
        summary = run(
            config, workers=workers, scheduler=scheduler, dry_run=dry_run, progress=progress, strict=strict, prune=prune
        )
    for note in () if as_json else summary.notes:
        print(f"note: {shown(note)}", file=sys.stderr)
    told = summary.to_dict()
    if not as_json:
        del told["notes"]  # they stand above, a line each
        if "obs_spec" in told:
            told["obs_spec"] = spec_lines(told["obs_spec"])
    report("Plan" if dry_run else "Ingested", told, as_json)
    if summary.quarantined:
        raise typer.Exit(QUARANTINED)


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
            print(f"{name}: {shown(', '.join(constant))} {what} (std 0)")


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
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace features of that name that were made another way.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Keep a frozen vision tower's patch features of every frame in the store; goes on where it was interrupted."""
    from pipelines.derive.features import FeatureConfig, make_features

    config = FeatureConfig(store, encoder, dtype, pool, device, batch, threads, name)
    with show_progress() as progress:
        result = make_features(
            config, workers=workers, scheduler=scheduler, dry_run=dry_run, replace=replace, progress=progress
        )
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
