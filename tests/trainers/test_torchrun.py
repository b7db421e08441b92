"""Commands of the documents that start ranks by torchrun, through torchrun's own parser; one of them is run."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from statevla.runs import layout
from statevla.runs.state import read_state
from statevla.systems.table import find_system
from tests.trainers.micro import SETTINGS, micro_store
from tests.trainers.together import REPOSITORY, checkpoint, lines

DOCS = Path(__file__).parents[2]


def commands() -> list[str]:
    texts = [path.read_text() for path in (DOCS / "README.md", *sorted((DOCS / "docs").glob("*.md")))]
    return [line for text in texts for line in re.findall(r"^torchrun .*$", text, re.MULTILINE)]


def test_there_are_some() -> None:
    assert commands()


@pytest.mark.parametrize("command", commands())
def test_torchrun_hands_every_argument_on(command: str) -> None:
    words = shlex.split(command, comments=True)
    told = get_args_parser().parse_args(words[1:])
    handed = [told.training_script, *told.training_script_args]
    assert told.module
    assert [word for word in handed if word != "--"] == words[words.index("statevla") :]


def test_without_the_dashes_it_takes_run_for_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Why the commands have them; when this fails, they may go."""
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["--nproc_per_node=2", "-m", "statevla", "train", "--run", "r"])
    assert "ambiguous option: --run" in capsys.readouterr().err


@pytest.mark.ddp
def test_two_ranks_that_torchrun_starts_leave_one_run(tmp_path: Path) -> None:
    store, runs = micro_store(tmp_path / "store"), tmp_path / "runs"
    settings = [word for each in (*SETTINGS, "training.max_steps=2") for word in ("--set", each)]
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "--", "statevla",
         "train", "--phase", "1", "--preset", "tiny", "--store", str(store), "--run", str(runs / "two"), "--json",
         *settings],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["steps"] == 2, "one rank speaks"
    assert [path.name for path in runs.iterdir()] == ["two"]
    assert [line["step"] for line in lines(runs / "two", "temporal_jepa", "train")] == [1, 2]
    assert read_state(checkpoint(runs / "two", "temporal_jepa")).step == 2
    (start,) = layout.starts(runs / "two", find_system("temporal_jepa").folder).read_text().splitlines()
    assert json.loads(start)["ranks"] == 2
