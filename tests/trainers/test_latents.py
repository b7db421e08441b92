"""Policies train from the states of their frozen encoder: computed once, the same losses, and no picture is opened."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statevla.models.encoder import StateEncoder
from statevla.runs import layout
from statevla.runs.files import read_tensors
from statevla.runs.state import read_state as state_of
from statevla.systems.table import find_system
from statevla.trainers import kept, latents
from statevla.trainers.latents import latents_of_checkpoint
from statevla.trainers.trainer import train
from stores import reader
from stores.disk.lock import lock
from stores.errors import StaleKey, StoreCorrupt, UsageError
from stores.progress import ProgressEvent
from stores.reader import Store
from stores.verify import verify_store
from tests.stores.faults import read_tree
from tests.trainers.micro import at_step, micro_config, micro_store
from tests.trainers.test_loop import interrupt

JEPA, FLOW = "temporal_jepa", "flow_matching"
STEPS = "training.max_steps=6"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store, and the checkpoint of a state encoder."""
    folder = tmp_path_factory.mktemp("latents")
    store = micro_store(folder / "store")
    train(JEPA, micro_config("training.max_steps=3"), store, folder / "run")
    return store, encoder_of(folder / "run")


@pytest.fixture
def fresh(trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, the store without latents."""
    store = Path(shutil.copytree(trained[0], tmp_path / "store", ignore=shutil.ignore_patterns("latents")))
    return store, trained[1]


def encoder_of(run: Path) -> Path:
    return layout.checkpoints(run, find_system(JEPA).folder) / layout.LATEST


def policy(store: Path, run: Path, encoder: Path, *more: str, progress: Any = None, resume: bool = False) -> list[Any]:
    """Train one, and return its metrics without what the clock says."""
    config = micro_config(STEPS, *more)
    train(FLOW, config, store, run, resume=resume, encoder_checkpoint=None if resume else encoder, progress=progress)
    lines = layout.metrics(run, find_system(FLOW).folder).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("samples_per_s", "data_wait")} for line in lines]


def messages(found: list[str]) -> Any:
    """Those that are shown whatever else is (`ProgressEvent.said`)."""
    return lambda event: found.append(event.message) if event.said else None


class Counter:
    """Frames that a state encoder was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames = 0
        original = StateEncoder.encode_state

        def count(encoder: StateEncoder, tokens: torch.Tensor) -> torch.Tensor:
            self.frames += len(tokens)
            return original(encoder, tokens)

        monkeypatch.setattr(StateEncoder, "encode_state", count)


def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(reader, "decode_image", refuse)


def close(one: list[Any], two: list[Any]) -> bool:
    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(a[k] == b[k] or np.isclose(a[k], b[k], rtol=1e-4, atol=1e-6) for k in a)
        for a, b in zip(one, two, strict=True)
    )


def test_losses_are_those_of_encoding_at_every_step(fresh: tuple[Path, Path], tmp_path: Path) -> None:
    store, encoder = fresh
    said: list[str] = []
    kept_ones = policy(store, tmp_path / "kept", encoder, progress=messages(said))
    encoded = policy(store, tmp_path / "encoded", encoder, "data.latents=false", progress=messages(said))
    assert close(kept_ones, encoded)
    assert any("no picture is opened" in message for message in said)
    assert any("encodes every frame at every step: data.latents is off" in message for message in said)
    weights = []
    for name in ("kept", "encoded"):
        folder = layout.checkpoints(tmp_path / name, find_system(FLOW).folder) / layout.LATEST
        weights.append(read_tensors(folder, state_of(folder), "model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-5, msg=name)


WORLD = ("training.phase2.world_target=motion", "training.phase2.world_horizon=2")


@pytest.mark.resume
def test_a_world_head_learns_from_kept_states_what_it_learns_from_pictures(
    fresh: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its targets and their scale too; no picture is opened, and a stopped run goes on to the bit."""
    store, encoder = fresh
    encoded = policy(store, tmp_path / "encoded", encoder, *WORLD, "data.latents=false")
    assert close(policy(store, tmp_path / "kept", encoder, *WORLD), encoded)
    assert {"world_mse", "world_copy_mse"} <= set(encoded[0])
    no_pictures(monkeypatch)
    counted = Counter(monkeypatch)
    whole = policy(store, tmp_path / "whole", encoder, *WORLD)
    policy(store, tmp_path / "cut", encoder, *WORLD, progress=at_step(3, interrupt))
    assert policy(store, tmp_path / "cut", encoder, *WORLD, resume=True) == whole
    assert counted.frames == 0
    weights = []
    for name in ("kept", "cut"):
        folder = layout.checkpoints(tmp_path / name, find_system(FLOW).folder) / layout.LATEST
        weights.append(read_tensors(folder, state_of(folder), "model.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not torch.equal(weights[0]["world.scale"], torch.ones_like(weights[0]["world.scale"]))


def test_every_frame_is_encoded_once_and_a_second_run_encodes_none(
    fresh: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, encoder = fresh
    counted = Counter(monkeypatch)
    first = policy(store, tmp_path / "a", encoder)
    frames = Store.open(store).manifest.counts["frames"]
    assert frames <= counted.frames < frames + 8  # the last batch is filled up
    before, counted.frames = read_tree(store / "latents"), 0
    no_pictures(monkeypatch)
    assert policy(store, tmp_path / "b", encoder) == first
    assert counted.frames == 0
    assert read_tree(store / "latents") == before


@pytest.mark.resume
def test_a_stopped_run_goes_on_without_a_picture(
    fresh: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, encoder = fresh
    whole = policy(store, tmp_path / "whole", encoder)
    counted = Counter(monkeypatch)
    no_pictures(monkeypatch)
    policy(store, tmp_path / "cut", encoder, progress=at_step(3, interrupt))
    assert policy(store, tmp_path / "cut", encoder, "data.loader_threads=1", "data.cache_gib=0", resume=True) == whole
    assert counted.frames == 0


def test_an_interrupted_computation_goes_on_and_ends_in_the_same_bytes(
    fresh: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, encoder = fresh
    monkeypatch.setattr(latents, "ROWS_A_SHARD", 32)
    monkeypatch.setattr(latents, "ROWS_A_CHUNK", 16)
    other = Path(shutil.copytree(store, tmp_path / "other"))
    assert latents_of_checkpoint(other, encoder, batch=8, device="cpu")["computed"]

    def stop(event: ProgressEvent) -> None:
        if event.done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latents_of_checkpoint(store, encoder, batch=8, device="cpu", progress=stop)
    assert all("not finished" in problem.problem for problem in verify_store(store))
    (hurt,) = (store / "latents").glob("*/z/c/0/0")  # what it takes over is checked, and made anew where damaged
    data = bytearray(hurt.read_bytes())
    data[77] ^= 1
    hurt.write_bytes(data)
    counted = Counter(monkeypatch)
    summary = latents_of_checkpoint(store, encoder, batch=8, device="cpu")
    assert 0 < counted.frames <= summary["frames"] - 32 + 8
    assert read_tree(store / "latents") == read_tree(other / "latents")
    assert verify_store(store) == []
    assert not latents_of_checkpoint(store, encoder, batch=8, device="cpu")["computed"]


def test_another_writer_is_waited_for_and_its_states_are_taken(fresh: tuple[Path, Path], tmp_path: Path) -> None:
    store, encoder = fresh
    other = Path(shutil.copytree(store, tmp_path / "other"))
    latents_of_checkpoint(other, encoder, device="cpu")
    said = []
    with contextlib.ExitStack() as writer:
        writer.enter_context(lock(store, "another one"))

        def finish(event: ProgressEvent) -> None:
            said.append(event.message)
            shutil.copytree(other / "latents", store / "latents")
            writer.close()

        assert not latents_of_checkpoint(store, encoder, device="cpu", progress=finish)["computed"]
    assert len(said) == 1
    assert "is being written by another one" in said[0]
    assert verify_store(store) == []


def test_states_are_those_of_the_encoder_by_frame_number(fresh: tuple[Path, Path]) -> None:
    from statevla.data.frames import make_table
    from statevla.data.numbers import Numbers
    from statevla.data.walk import walk_observations
    from stores.derived import Derived, parse_seal

    path, encoder = fresh
    summary = latents_of_checkpoint(path, encoder, device="cpu")
    store = Store.open(path)
    fields, objects = parse_seal((path / summary["folder"] / "manifest.json").read_bytes(), "seal")
    key, folder = summary["key"], summary["folder"]
    found = Derived(store.storage, "latents", key, key, fields["made_from"], {}, objects, folder)
    z = found.sharded("z").read(0, summary["frames"])
    state = state_of(encoder)
    model = StateEncoder(micro_config().model, store.stats())
    tensors = read_tensors(encoder, state, "model.safetensors")
    model.load_state_dict({name[8:]: value for name, value in tensors.items() if name.startswith("encoder.")})
    for begin_, obs in walk_observations(store, make_table(store, 1), Numbers(store, 1), 5, 100, 9, 3):
        rows = slice(begin_, begin_ + len(obs.robot_state))
        np.testing.assert_array_equal(store.frames["robot_state"][rows], obs.robot_state.numpy())
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(z[rows]), model.state(obs), rtol=1e-4, atol=1e-5)


def test_another_encoder_has_states_of_its_own(
    fresh: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, encoder = fresh
    train(JEPA, micro_config("training.max_steps=2"), store, tmp_path / "other")
    first = latents_of_checkpoint(store, encoder, device="cpu")
    second = latents_of_checkpoint(store, encoder_of(tmp_path / "other"), device="cpu")
    assert second["computed"]
    assert first["key"] != second["key"]
    assert not latents_of_checkpoint(store, encoder, device="cpu")["computed"]
    assert verify_store(store) == []


def test_a_damaged_state_is_named(fresh: tuple[Path, Path], tmp_path: Path) -> None:
    store, encoder = fresh
    summary = latents_of_checkpoint(store, encoder, device="cpu")
    shard = store / summary["folder"] / "z/c/0/0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreCorrupt, match=rf"{summary['key']}/z/c/0/0: chunk 0: .* crc32c"):
        policy(store, tmp_path / "run", encoder)
    shard.write_bytes(data[:-1])  # of another size: nothing that one would read
    assert latents_of_checkpoint(store, encoder, device="cpu")["computed"]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("model.policy_context=z+tokens", "sees more of a frame"),
        ("data.shuffle_instructions=true", "other instructions than their own"),
    ],
)
def test_where_states_are_not_enough_frames_are_encoded_and_it_is_said(
    fresh: tuple[Path, Path], tmp_path: Path, option: str, reason: str
) -> None:
    store, encoder = fresh
    said: list[str] = []
    policy(store, tmp_path / "run", encoder, option, progress=messages(said))
    assert any(reason in message for message in said)
    assert not (store / "latents").exists()


def test_a_store_that_cannot_be_written_leaves_them_in_the_run(
    fresh: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, encoder = fresh
    for module in (kept, latents):
        monkeypatch.setattr(module, "is_writable", lambda *place: False)
    with pytest.raises(UsageError, match="cannot be written; run this on a local copy"):
        latents_of_checkpoint(store, encoder, device="cpu")
    policy(store, tmp_path / "run", encoder, progress=at_step(3, interrupt))
    assert not (store / "latents").exists()
    assert (tmp_path / "run/latents").is_dir()
    no_pictures(monkeypatch)
    policy(store, tmp_path / "run", encoder, resume=True)


def test_latents_of_the_store_that_are_somebody_elses_leave_them_in_the_run(
    fresh: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that many write to, whose ``latents`` was made by one of them."""
    store, encoder = fresh
    (store / "latents").mkdir()
    monkeypatch.setattr(latents.os, "access", lambda place, mode: Path(place) != store / "latents")
    with pytest.raises(UsageError, match="latents cannot be written; run this on a local copy"):
        latents_of_checkpoint(store, encoder, device="cpu")
    policy(store, tmp_path / "run", encoder)
    assert (tmp_path / "run/latents").is_dir()
    assert not any((store / "latents").iterdir())


def test_checkpoints_of_another_store_are_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    other = micro_store(tmp_path / "other", seed=3)
    with pytest.raises(StaleKey, match="was trained on the store with content"):
        latents_of_checkpoint(other, trained[1], device="cpu")


def test_latents_of_an_earlier_format_are_not_taken(fresh: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    store, encoder = fresh
    latents_of_checkpoint(store, encoder, device="cpu")
    monkeypatch.setattr(latents, "FORMAT", latents.FORMAT + 1)
    assert latents_of_checkpoint(store, encoder, device="cpu")["computed"]
    assert len(list((store / "latents").iterdir())) == 2
