"""The `statevla` command. A command parses its options, calls one library function, and prints what that returns.

The commands are in `pipelines/commands/`, one file for each group of them. Heavy libraries are imported inside the
commands, so that ``--help`` is quick.

Exit status: 0 done; 1 failed; 2 wrong usage; 3 done, but some demonstrations were quarantined; 130 stopped by Ctrl-C
and 143 by SIGTERM (training saves a checkpoint first). With ``--json`` a command prints exactly one JSON object on
stdout. Progress and logs go to stderr.
"""

import sys
from typing import Annotated

import typer

from pipelines.commands import analysis, data, evaluation, keeping, machine, training
from stores.disk.trouble import describe as describe_trouble
from stores.errors import StateVLAError, UsageError
from stores.printable import plain, shown

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app)
app.add_typer(keeping.app)
app.add_typer(training.app)
app.add_typer(evaluation.app)
app.add_typer(analysis.app)
app.add_typer(machine.app)


def main() -> None:
    """Run the command line. An error of the library becomes one line on stderr and an exit status."""
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
    except UnicodeEncodeError as error:  # what is written is UTF-8; the name of a file or folder need not be
        name = plain(error.object[max(0, error.start - 30) : error.end].splitlines()[-1])
        print(
            f"error: not UTF-8: {name}; rename the file or folder that is called so, or set PYTHONUTF8=1 where the "
            "locale is what is wrong",
            file=sys.stderr,
        )
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
