"""What is done with a store that is there: look at it, check it, clear up, publish it, export it."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.commands.options import (
    Json,
    Replace,
    StoreArgument,
    require_folder,
)
from statevla.console import print_json, print_table, report, show_progress
from stores.errors import UsageError
from stores.printable import shown

app = typer.Typer()


@app.command()
def inspect(store: StoreArgument, as_json: Json = False) -> None:
    """Show what a store holds."""
    from stores.summary import for_people, inspect_store

    told = inspect_store(store)
    report(f"Store {store}", told if as_json else for_people(told), as_json)


@app.command()
def verify(store: StoreArgument, as_json: Json = False) -> None:
    """Rehash every object of a store; exit 1 and name what differs."""
    from stores.cloud.storage import open_storage
    from stores.verify import count_objects, verify_store

    storage = open_storage(store)
    with show_progress() as progress:
        problems = verify_store(storage, progress=progress)
    if as_json:
        rows = [{"object": item.object, "problem": item.problem} for item in problems]
        told = {"ok": not problems, "objects": count_objects(storage), "listed": storage.lists, "problems": rows}
        print_json(told)
    elif problems:
        print_table("Problems", ("object", "problem"), [(item.object, item.problem) for item in problems])
    else:
        unseen = "" if storage.lists else "; a web server lists nothing, so derived folders and extras are not checked"
        print(f"{count_objects(storage)} objects, all as the manifest says{unseen}")
    if problems:
        raise typer.Exit(1)


@app.command()
def clean(
    store: Annotated[Path, typer.Argument(help="Store folder.", callback=require_folder)],
    folders: Annotated[
        list[str] | None,
        typer.Argument(help="Derived folders to remove whatever their state, named as by `inspect`."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove derived folders that no reader will take (stale, damaged, unfinished), or those named; asks first."""
    from stores.kept import named_kept, remove_kept, useless

    found = named_kept(store, folders) if folders else useless(store)
    if found and not yes:
        if as_json or not sys.stdin.isatty():
            raise UsageError(f"{store}: {', '.join(item.path for item in found)} would be removed; say so with --yes")
        for item in found:
            print(f"{shown(item.path)}: {item.state}, {item.bytes:,} bytes")
        typer.confirm(f"Remove these from {store}?", abort=True)
    removed = []
    for item in remove_kept(store, found) if found else ():
        print(f"removed {shown(item.path)}", file=sys.stderr)
        removed.append(item)
    for item in found:
        if item not in removed:
            print(f"left {shown(item.path)}: it is no longer as it was listed ({item.state})", file=sys.stderr)
    rows = [{"folder": item.path, "state": item.state, "bytes": item.bytes} for item in removed]
    report("Removed", {"store": str(store), "bytes": sum(item.bytes for item in removed), "removed": rows}, as_json)


@app.command("clean-cache")
def clean_cache(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder that `statevla train` names when it reads a remote store.", callback=require_folder
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what is kept of remote stores; asks first. A run that reads them fetches it again."""
    from stores.cloud.cache import RangeCache

    cache = RangeCache(folder, 1)
    cache.require_own()
    size = cache.bytes()
    if size and not yes:
        if as_json or not sys.stdin.isatty():
            raise UsageError(f"{folder}: {size:,} bytes of remote stores would be removed; say so with --yes")
        typer.confirm(f"Remove {size:,} bytes of remote stores from {folder}?", abort=True)
    report("Removed", {"remote_cache": str(folder), "bytes": cache.clear() if size else 0}, as_json)


@app.command()
def publish(
    store: Annotated[Path, typer.Argument(help="Store folder.", callback=require_folder)],
    url: Annotated[str, typer.Argument(help="Where to, such as s3://bucket/libero_object.")],
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Copy a store to object storage, with its statistics, features and latents; of two writers one wins."""
    from stores.cloud.publish import publish_store
    from stores.cloud.publish_derived import publish_derived

    with show_progress() as progress:
        published = publish_store(store, url, progress=progress, replace=replace)
        derived = publish_derived(store, url, progress=progress, replace=replace)
    told = {"store": str(store), "url": url, "manifest": published, "derived": derived}
    report(f"Published to {url}", told, as_json)


@app.command()
def export(
    format_: Annotated[Literal["lerobot"], typer.Argument(metavar="FORMAT", help="lerobot: LeRobotDataset v3.0.")],
    store: StoreArgument,
    out: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the dataset; absent or empty.", callback=require_folder)
    ],
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Pictures bit for bit (RGB H.264), four times the size.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an export of another store.")] = False,
    as_json: Json = False,
) -> None:
    """Write a store as a dataset of another format: the same numbers, instructions and split."""
    from dataclasses import asdict

    from pipelines.export.lerobot import export_lerobot

    with show_progress() as progress:
        exported = export_lerobot(store, out, lossless, replace, progress)
    report(f"Exported as {format_}", asdict(exported), as_json)
