"""This machine: is it set up, how fast is it, and the demo."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Json, Store, Workers
from statevla.console import print_json, print_table, report, show_progress
from stores.printable import shown

app = typer.Typer()


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
        rows = [(check.name, check.status, check.value) for check in checks]
        print_table("Doctor", ("check", "status", "found"), rows)
        for check in checks:
            if check.advice:  # lines of their own: a command that a column breaks cannot be copied
                print(shown(f"{check.name}: {check.advice}"))
    if not healthy(checks):
        raise typer.Exit(1)


@app.command()
def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="stream, order, scaling, features, latents, step, ingest, ingest-large, verify, index, mamba, latency "
            "or libero."
        ),
    ],
    store: Store = None,
    source: Annotated[Path | None, typer.Option(help="HDF5 folder for 'ingest'.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Policy for 'latency' (default: the base preset, untrained) and 'order' (its losses)."),
    ] = None,
    vision: Annotated[str | None, typer.Option(help="conv or siglip, for 'latency'; default: both.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16, for 'latency'; default: both.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for 'latency'.")] = "cpu",
    segments: Annotated[int | None, typer.Option(help="Size of the synthetic store, for 'index', 'order'.")] = None,
    remote: Annotated[bool, typer.Option("--remote", help="'stream' from servers 50 ms away.")] = False,
    copies: Annotated[
        int | None,
        typer.Option(
            min=1, help="Times that 'ingest' takes each demonstration; 25 of two make a file as LIBERO's are."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes; of 'stream' threads. 0: of 'stream' the cores, else one.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Measure speed as a fraction of a physical limit, in one run on this machine."""
    from pipelines.bench.table import BenchOptions, run_bench

    options = BenchOptions(store, source, checkpoint, workers, vision, dtype, device, segments, remote, copies)
    result = run_bench(name, options)
    report(f"bench {name}", result, as_json)


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
