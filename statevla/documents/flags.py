"""How one of the documents' commands becomes a call of ours: a table of flags, and the words they stand for."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from statevla.__main__ import main
from stores.errors import StateVLAError, UsageError


@dataclass(frozen=True)
class Flag:
    """name: as the documents write it, without dashes. words: our own, in which ``{}`` is the value; none: looked at
    before the call."""

    name: str
    help: str
    words: tuple[str, ...] = ()
    required: bool = False
    choices: tuple[str, ...] | None = None


def parse(program: str, about: str, flags: Sequence[Flag], argv: Sequence[str] | None = None) -> dict[str, str]:
    """The flags that were given, by name. Exits with 2 and the usage on a wrong one."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=about, allow_abbrev=False)
    for flag in flags:
        parser.add_argument(f"--{flag.name}", help=flag.help, required=flag.required, choices=flag.choices)
    return {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}


def words(flags: Sequence[Flag], given: dict[str, str]) -> list[str]:
    """Our words for the flags that were given."""
    return [word.format(given[flag.name]) for flag in flags if flag.name in given for word in flag.words]


def call(arguments: Sequence[str]) -> None:
    """Run the `statevla` command, which exits. What it is called with goes to stderr first."""
    print("statevla", *arguments, file=sys.stderr)
    sys.argv = ["statevla", *arguments]
    main()


def fail(error: StateVLAError) -> NoReturn:
    """One line on stderr and our exit status."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2 if isinstance(error, UsageError) else 1)
