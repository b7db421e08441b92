"""The top level is the project's shape: nothing is added to it in passing."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_folders_at_the_top_are_those_of_the_design() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: what is tracked cannot be told from what was made here")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {line.split("/")[0] for line in listed.splitlines() if "/" in line}
    assert folders - {".ci"} == {"docs", "pipelines", "statevla", "stores", "tests"}
