"""Checkpoints on disk: round trip, damage is named, and a killed writer leaves the one before."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from statevla.models.optim import parameter_groups
from statevla.runs import write as checkpoint
from statevla.runs.files import MODEL, OPTIMIZER, load_strict, read_tensors
from statevla.runs.migrations import FORMAT
from statevla.runs.state import read_state
from stores.errors import StoreCorrupt, StoreMissing
from tests.trainers.micro import micro_config

WRITER = """
import os, signal, sys
from pathlib import Path
import torch
from statevla.runs import write as checkpoint
from stores.disk import durable
from tests.trainers.test_checkpoint import make_snapshot

torch.set_num_threads(1)
first, second = make_snapshot(1), make_snapshot(2)
for operations in range(1000):
    folder = Path(sys.argv[1], str(operations), "c")
    checkpoint.save(folder, first)
    child = os.fork()
    if child == 0:
        left = operations

        def die(operation):
            global left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        durable.set_hook(die)
        checkpoint.save(folder, second)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def make_snapshot(step: int) -> checkpoint.Snapshot:
    model = make_model()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1, frozenset()), lr=0.01)
    for _ in range(step):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
    state = checkpoint.CheckpointState(
        format=FORMAT, system="temporal_jepa", epoch=0, step=step, loader={"epoch": 0, "batch": step}, loss=0.5,
        best=None,
        scheduler={"name": "constant"}, rng=checkpoint.rng_state(), config=micro_config().to_dict(), obs_spec={},
        statistics={}, content_hash="ab" * 32, instructions=["push"], init_states={}, made_by={}, language={},
        backbone=None, parent=None, code_version="test", files={},
    )  # fmt: skip
    tensors = checkpoint.copy_tensors(checkpoint.optimizer_tensors(optimizer))
    return checkpoint.Snapshot(state, checkpoint.copy_tensors(model.state_dict()), tensors, torch.zeros(1, 512))


def test_restoring_gives_back_weights_moments_and_generators(tmp_path: Path) -> None:
    snapshot = make_snapshot(3)
    checkpoint.save(tmp_path / "c", snapshot)
    expected = torch.rand(4)
    model = make_model()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1, frozenset()), lr=0.01)
    state = read_state(tmp_path / "c")
    checkpoint.restore(tmp_path / "c", state, model, optimizer)
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(value, snapshot.model[name]) for name, value in model.state_dict().items())
    again = checkpoint.optimizer_tensors(optimizer)
    assert again.keys() == snapshot.optimizer.keys()
    assert all(torch.equal(value, snapshot.optimizer[name]) for name, value in again.items())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "language.safetensors"])
def test_a_changed_byte_or_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    checkpoint.save(tmp_path / "c", make_snapshot(1))
    state = read_state(tmp_path / "c")
    file = tmp_path / "c" / name
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreCorrupt, match=name):
        read_tensors(tmp_path / "c", state, name)
    file.unlink()
    with pytest.raises(StoreMissing, match=name):
        read_tensors(tmp_path / "c", state, name)


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
def test_a_checkpoint_that_a_training_replaces_while_it_is_read_is_not_called_damaged(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "c"
    checkpoint.save(folder, make_snapshot(1))
    state = read_state(folder)
    checkpoint.save(folder, make_snapshot(2))
    with pytest.raises(StoreCorrupt, match=r"of step 1, was replaced .* by one of step 2; run the same command again"):
        read_tensors(folder, state, name)
    assert read_tensors(folder, read_state(folder), name)
    shutil.rmtree(folder)
    with pytest.raises(StoreMissing, match="missing from the checkpoint"):
        read_tensors(folder, state, name)


def test_state_json_must_be_whole(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="statevla train"):
        read_state(tmp_path)
    (tmp_path / "state.json").write_text(f'{{"format": {FORMAT}}}')
    with pytest.raises(StoreCorrupt, match=f"format {FORMAT} lacks the fields"):
        read_state(tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(StoreCorrupt, match="not JSON"):
        read_state(tmp_path)


def test_weights_of_another_model_are_refused() -> None:
    weights = make_model().state_dict()
    with pytest.raises(StoreCorrupt, match=r"1 missing .*0 unknown"):
        load_strict(make_model(), {n: w for n, w in weights.items() if n != "0.bias"}, "here")
    with pytest.raises(StoreCorrupt, match=r"0.bias: expected torch.float32 \[4\], got torch.float64 \[4\]"):
        load_strict(make_model(), {**weights, "0.bias": torch.zeros(4, dtype=torch.float64)}, "here")
    with pytest.raises(StoreCorrupt, match=r"got torch.float32 \[5\]"):
        load_strict(make_model(), {**weights, "0.bias": torch.zeros(5)}, "here")


def test_a_failing_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Every operation of a save fails in turn; afterwards there is step 1 or step 2, whole."""
    from stores.disk import durable

    first, second = make_snapshot(1), make_snapshot(2)
    operations = 0
    found = []
    while True:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        checkpoint.save(tmp_path / "run/c", first)
        left = operations

        def refuse(operation: durable.Operation) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(28, "No space left on device")

        durable.set_hook(refuse)
        try:
            checkpoint.save(tmp_path / "run/c", second)
            break
        except OSError:
            pass
        finally:
            durable.set_hook(None)
        state = read_state(tmp_path / "run/c")
        for name in state.files:
            read_tensors(tmp_path / "run/c", state, name)
        found.append(state.step)
        operations += 1
    assert operations > 10
    assert found == sorted(found)
    assert found[0] == 1


@pytest.mark.slow
@pytest.mark.crash
def test_kill_while_saving_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """One process a disk operation is killed (SIGKILL) just before it; the last one lives and saves step 2."""
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], check=True)
    steps = []
    for number in range(len(list(tmp_path.iterdir()))):
        state = read_state(tmp_path / str(number) / "c")
        assert all(read_tensors(tmp_path / str(number) / "c", state, name) for name in state.files)
        steps.append(state.step)
    assert len(steps) > 10
    assert steps[0] == steps[len(steps) // 2] == 1
    assert steps[-1] == 2
    assert steps == sorted(steps)
