"""The record of a run's starts: one line each, with the command, the revision and what it went on from."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from statevla.runs import layout
from statevla.runs.starts import revision
from statevla.trainers.trainer import train
from statevla.version import __version__
from tests.trainers.micro import micro_config, micro_store


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e@x")
    done = subprocess.run(["git", "-C", str(root), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_every_start_leaves_a_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/statevla", "train", "--phase", "1"])
    store, run = micro_store(tmp_path / "store"), tmp_path / "run"
    train("temporal_jepa", micro_config("training.max_steps=2"), store, run)
    monkeypatch.setattr(sys, "argv", ["statevla", "train", "--resume", "run"])
    train("temporal_jepa", micro_config("training.max_steps=3"), store, run, resume=True)
    lines = [json.loads(line) for line in layout.starts(run, "phase1_temporal_jepa").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2]
    assert lines[0]["command"] == ["statevla", "train", "--phase", "1"]
    assert lines[1]["command"] == ["statevla", "train", "--resume", "run"]
    for line in lines:
        assert (line["statevla"], line["device"], line["ranks"]) == (__version__, "cpu", 1)
        assert line["packages"]["torch"] == metadata.version("torch")
        assert line["revision"] == revision()


def test_the_revision_is_the_checkouts_own(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert revision(tmp_path) == commit
    (tmp_path / "notes.txt").write_text("untracked\n")
    assert revision(tmp_path) == commit
    (tmp_path / "code.py").write_text("2\n")
    assert revision(tmp_path) == f"{commit}+changes"
    (tmp_path / "site").mkdir()
    assert revision(tmp_path / "site") is None  # installed inside somebody's repository
