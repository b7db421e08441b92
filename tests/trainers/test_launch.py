"""`--nproc`: ranks are started, told of signals, and answered for by one exit status."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from statevla.runs import layout
from statevla.runs.state import read_state
from statevla.systems.table import find_system
from statevla.trainers.launch import launch, without_nproc
from stores.errors import UsageError
from tests.trainers.micro import SETTINGS, micro_store
from tests.trainers.together import REPOSITORY, checkpoint

JEPA = "temporal_jepa"
SIGNALS_ITS_LAUNCHER = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
if os.environ["RANK"] == "1":
    os.kill(os.getppid(), signal.SIGINT)
sys.exit(143 if signal.sigtimedwait({signal.SIGTERM}, 30) else 1)
"""


def test_launching_ends_with_the_first_status_and_names_a_rank_that_was_killed() -> None:
    def ended(program: str) -> tuple[int, list[str]]:
        said: list[str] = []
        return launch(2, [program], said.append, (sys.executable, "-c")), said

    assert ended("import os; assert os.environ['WORLD_SIZE'] == '2'") == (0, [])
    assert ended("import os, sys; sys.exit(3 * int(os.environ['RANK']))") == (3, [])
    status, said = ended("import os; os.environ['RANK'] == '1' and os.kill(os.getpid(), 9)")
    assert (status, said) == (137, ["rank 1 of 2 was ended by signal 9 (SIGKILL)"])


def test_ranks_get_the_command_without_nproc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_nproc(["train", "--nproc", "2", "--phase", "1"]) == ["train", "--phase", "1"]
    assert without_nproc(["train", "--nproc=2", "--json"]) == ["train", "--json"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="under torchrun leave it out"):
        launch(2, [], print)


def test_an_interrupt_of_the_launcher_alone_stops_every_rank() -> None:
    said: list[str] = []
    assert launch(2, [SIGNALS_ITS_LAUNCHER], said.append, (sys.executable, "-c")) == 130
    assert said == []


@pytest.mark.ddp
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["launcher alone", "Ctrl-C"])
def test_an_interrupt_leaves_a_checkpoint(tmp_path: Path, send: Callable[[int, int], None]) -> None:
    store, run = micro_store(tmp_path / "store"), tmp_path / "run"
    settings = [word for each in (*SETTINGS, "training.max_steps=1000000") for word in ("--set", each)]
    process = subprocess.Popen(
        [sys.executable, "-m", "statevla", "train", "--phase", "1", "--preset", "tiny", "--nproc", "2",
         "--store", str(store), "--run", str(run), *settings],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    metrics = layout.metrics(run, find_system(JEPA).folder)
    try:
        while not (metrics.is_file() and metrics.stat().st_size):
            assert process.poll() is None, process.stderr.read()
        send(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, said
    assert 0 < read_state(checkpoint(run, JEPA)).step < 1_000_000
    assert "KeyboardInterrupt" not in said


@pytest.mark.ddp
def test_damage_that_every_rank_meets_is_said_once(tmp_path: Path) -> None:
    """All pictures are damaged: each rank finds another one in its first batch."""
    store = micro_store(tmp_path / "store")
    for shard in (store / "shards").iterdir():
        data = bytearray(shard.read_bytes())
        data[1000:-2000:500] = bytes(255 - byte for byte in data[1000:-2000:500])
        shard.write_bytes(data)
    settings = [word for each in (*SETTINGS, "training.max_steps=4") for word in ("--set", each)]
    done = subprocess.run(
        [sys.executable, "-m", "statevla", "train", "--phase", "1", "--preset", "tiny", "--nproc", "2",
         "--store", str(store), "--run", str(tmp_path / "run"), *settings],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    (told,) = (line for line in done.stderr.splitlines() if "rror" in line)
    assert told.startswith(f"error: {store}: shards/"), done.stderr
    assert "expected crc32" in told
    assert done.returncode == 1
