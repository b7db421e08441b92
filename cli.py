"""The `statevla` command: parse, make a config, call one library function, print its result.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 done but something was quarantined,
130 and 143 stopped by Ctrl-C or SIGTERM (training saves first). With ``--json`` a command prints
exactly one JSON object on stdout; progress and logs go to stderr. Heavy imports stay inside the commands.
"""

import sys
from typing import Annotated

import typer

from pipelines.commands import analysis, data, evaluation, keeping, machine, training
from stores.disk.trouble import describe as describe_trouble
from stores.errors import StateVLAError, UsageError
from stores.printable import shown

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Demonstrations → store → Temporal JEPA → flow-matching Mamba policy → evaluation.",
)
app.add_typer(data.app)
app.add_typer(keeping.app)
app.add_typer(training.app)
app.add_typer(evaluation.app)
app.add_typer(analysis.app)
app.add_typer(machine.app)


def main() -> None:
    """Entry point: library errors become one line on stderr and an exit status."""
    try:
        app()
    except UsageError as error:
        print(f"error: {shown(error)}", file=sys.stderr)
        sys.exit(2)
    except StateVLAError as error:
        print(f"error: {shown(error)}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {shown(describe_trouble(error))}", file=sys.stderr)
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


if __name__ == "__main__":
    main()
