"""The command line as a script sees it, as a process of its own or in this one, whose imports are done."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cli import main

ROOT = Path(__file__).parents[1]
Output = tuple[str, str]
"""What a command wrote: stdout, stderr."""


def as_process(folder: Path, *arguments: object, status: int = 0, env: Mapping[str, str] | None = None) -> Output:
    """Run one command in `folder`, a process with next to no environment; fails unless it exits with `status`."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", *map(str, arguments)],
        cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def statevla(folder: Path, *arguments: object, status: int = 0, env: Mapping[str, str] | None = None) -> Output:
    """The same in this process, in a second or two less."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        patch.dict(os.environ, env or {}),
        patch.object(sys, "argv", ["statevla", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code
    assert code == status, err.getvalue()
    return out.getvalue(), err.getvalue()


def one_object(folder: Path, *arguments: object, run: Callable[..., Output] = statevla, **given: Any) -> dict[str, Any]:
    """The command's JSON; fails unless stdout is exactly one object."""
    out, _ = run(folder, *arguments, "--json", **given)
    assert out.count("\n") == 1
    return json.loads(out)  # type: ignore[no-any-return]
