"""Training, and what a configuration says."""

import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import (
    SIGNALLED,
    ConfigFile,
    Json,
    Preset,
    Recipe,
    Set,
    Store,
)
from statevla.console import print_json, print_table, report, show_progress
from stores.errors import UsageError
from stores.printable import shown

app = typer.Typer()


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
    from statevla.trainers.said import require_used

    row = None if system is None else find_system(system)
    request = ask(row, preset, recipe, config, tuple(set_ or ()))
    wanted = request.config(sections())
    title = recipe or f"Preset {preset or 'base'}"
    if row is not None:
        require_used(row, wanted, request)
        title = recipe or row.shown_as(preset or "base")
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
    header = ("run", "system", "store", "step", "best", "state", "size")
    print_table(f"Runs below {root}/", header, [
        (_lines(Path(row.run), root), row.system, row.store and row.store.rstrip("/").rsplit("/")[-1],
         row.progress, row.best and f"{row.best:.3g}", row.state, size_text(row.bytes)) for row in rows
    ])  # fmt: skip


def _lines(run: Path, root: Path) -> str:
    """A run's path below `root`, a folder a line, so that a narrow terminal breaks no name."""
    return "/\n".join(run.relative_to(root).parts or (run.name or str(run),))


@app.command("report")
def report_runs(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, shown side by side.")],
    out: Annotated[Path | None, typer.Option(help="HTML file; default: report.html in the first run.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Serve the page on loopback, made anew each time.")] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Of --follow; default: 0, which takes a free one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One page of training runs: losses, monitors, warnings, probes, states, several runs side by side."""
    from statevla.reports.runs_page import serve_runs, write_runs_page

    if not follow and port is not None:
        raise UsageError("report --port: it is of --follow; without it nothing is served")
    if follow and (out is not None or as_json):
        raise UsageError("report --follow serves the page and writes nothing: leave out --out and --json")
    if not follow:
        written = write_runs_page(runs, out or runs[0] / "report.html")
        report("Report", {"page": str(written)}, as_json)
        return
    server = serve_runs(runs, port or 0)
    _to_stderr(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        raise typer.Exit(SIGNALLED + signal.SIGINT) from None
    finally:
        server.server_close()


def _to_stderr(text: str) -> None:
    print(shown(text), file=sys.stderr)


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
