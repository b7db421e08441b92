"""README's and quickstart's own command lines, in their order, in one folder, after the demo: each finds its way."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from pipelines.showcase.run import run_demo
from tests.pipelines.test_demo import SMALLEST
from tests.test_cli import MICRO

ROOT = Path(__file__).parents[1]


def command_lines(page: str) -> list[list[str]]:
    """`statevla` commands of a page's shell blocks, in order, as words."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.sub(r"\s#.*", "", line).split("&&"):
                words = part.split()
                if words[:1] == ["statevla"]:
                    found.append(words[1:])
    return found


def smaller(words: list[str]) -> list[str]:
    """The same command with less to do, and without a network."""
    if words[0] == "train":
        return [*words, *MICRO[2:]]  # sizes and steps win over a recipe's
    if words[0] == "ingest":
        return [*words, "--workers", "0", "--language", "hashed"]
    if words[0] == "collect":
        return [*words, "--episodes", "12"]
    if words[:2] == ["eval", "tabletop"]:
        return [*words, "--episodes", "2", "--max-steps", "4"]
    return words


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    monkeypatch.chdir(tmp_path)

    def one(words: list[str]) -> None:
        done = CliRunner().invoke(cli.app, smaller(words))
        assert done.exit_code == 0, f"statevla {' '.join(words)}: {done.output} {done.exception}"

    return one


@pytest.mark.slow
def test_every_page_in_one_folder_after_the_demo(run: Callable[[list[str]], None], tmp_path: Path) -> None:
    run_demo(Path("runs/demo"), workers=0, config=SMALLEST)
    lines = command_lines("docs/quickstart.md")
    assert [words[0] for words in lines].count("train") == 4
    tabletop, libero = ([w for w in lines if ("libero" in " ".join(w)) == wanted] for wanted in (False, True))
    for words in tabletop:
        run(words)
    assert list((tmp_path / "runs/tabletop/eval").glob("tabletop-*/results.json"))
    shutil.copytree(tmp_path / "data/raw/tabletop", tmp_path / "data/raw/libero_object")  # any demonstrations do
    for words in libero:
        if words[:2] != ["eval", "libero"]:
            run(words)
    shutil.rmtree(tmp_path / "runs/libero_object")
    for words in command_lines("README.md"):
        if words[0] == "train":
            run(words)
    assert (tmp_path / "runs/libero_object/checkpoints/phase2_flow_matching/checkpoint_latest").is_dir()
