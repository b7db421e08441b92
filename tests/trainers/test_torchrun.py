"""Commands of the documents that start ranks by torchrun, through torchrun's own parser."""

import re
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

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
