"""Kept states of later frames: which they are, how a run comes by them, and what it trains on them."""

import dataclasses
import math
import os
import shutil
import signal
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statevla.config import Config, load_config
from statevla.data.batch import Batch
from statevla.data.loaders import iterate_once
from statevla.data.needs import Needs
from statevla.data.views import Held, LaterStates
from statevla.models.latent_actions import LatentActions
from statevla.policies.policy import Policy
from statevla.runs import layout
from statevla.runs.files import MODEL, read_tensors
from statevla.runs.state import read_state
from statevla.systems.chunk_policy import ChunkPolicy
from statevla.systems.stamo import StamoModel
from statevla.systems.system import Given
from statevla.systems.table import config_of, find_system, sections
from statevla.systems.world import WorldHead
from statevla.trainers import kept
from statevla.trainers.latents import latents_of_checkpoint
from statevla.trainers.trainer import train
from stores import reader
from stores.errors import UsageError
from stores.reader import Store
from tests.systems.build import SMALL
from tests.trainers.micro import SETTINGS, at_step, micro_store

FILM = ("film.world_target=motions", "film.world_horizon=4", "film.world_components=3")
FLOW = ("training.phase2.world_target=motions", "training.phase2.world_horizon=4")


def configuration(*more: str) -> Config:
    small = (text for text in SMALL if text.startswith("stamo."))
    return load_config(
        "tiny", None, (*SETTINGS, *small, "film.image_size=32", "training.max_steps=3", *more), sections()
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and the checkpoints of both encoders."""
    root = tmp_path_factory.mktemp("later")
    store = micro_store(root / "store")
    for name in ("temporal_jepa", "stamo"):
        train(name, configuration("training.max_steps=1"), store, root / name)
    return root


def latest(run: Path, system: str) -> Path:
    return layout.checkpoints(run, find_system(system).folder) / layout.LATEST


def trained(
    root: Path, run: Path, system: str, encoder: str, *more: str, resume: bool = False, progress: Any = None
) -> dict[str, torch.Tensor]:
    told = (*{"film": (*FILM, f"film.encoder={encoder}"), "flow_matching": FLOW}.get(system, ()), *more)
    source = None if resume else latest(root / encoder, encoder)
    summary = train(
        system, configuration(*told), root / "store", run, resume=resume, encoder_checkpoint=source, progress=progress
    )
    return read_tensors(summary.checkpoint, read_state(summary.checkpoint), MODEL)


def test_states_of_frames_after_each_within_its_episode() -> None:
    rng = np.random.default_rng(0)
    lengths = [4, 1, 7]
    last = np.repeat(np.cumsum(lengths) - 1, lengths)
    z = rng.normal(size=(12, 3)).astype(np.float32)
    view, rows = LaterStates(Held(z), (0, 2, 3), last), rng.permutation(12)
    with ThreadPoolExecutor(1) as pool:
        found = view.observe(rows, False, pool)
    for number, row in enumerate(rows):
        for place, offset in enumerate((0, 2, 3)):
            there = row + offset <= last[row]
            assert bool(found["states_there"][number, place]) == there
            wanted = z[row + offset] if there else z[last[row]]
            assert np.array_equal(found["states"][number, place].numpy(), wanted)


def test_what_is_far_is_brought_with_what_it_looks_at() -> None:
    class Far(Held):
        asked: list[tuple[int, int]] = []  # noqa: RUF012

        def fetch(self, start: int, stop: int) -> None:
            self.asked.append((start, stop))

    view = LaterStates(Far(np.zeros((9, 1), np.float32)), (0, 1, 3), np.array([5] * 6 + [8] * 3))
    view.fetch(0, 2)
    view.fetch(2, 6)
    assert Far.asked == [(0, 5), (2, 6)]


@pytest.mark.parametrize("frames", [(1, 2), (0, 2, 1), (0, 1, 1)])
def test_frames_of_states_rise_from_now(frames: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="expected frames of states that rise from 0"):
        Needs(states=frames)


@pytest.mark.resume
@pytest.mark.parametrize("encoder", ["stamo", "temporal_jepa"])
def test_a_run_keeps_the_states_that_its_encoder_makes_and_goes_on_to_the_bit(
    root: Path, tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Held] = []
    rows_of = kept.rows_of_latents
    monkeypatch.setattr(kept, "rows_of_latents", lambda *given: held.append(rows_of(*given)) or held[-1])
    whole = trained(root, tmp_path / "whole", "film", encoder)
    checkpoint, store = latest(tmp_path / "whole", "film"), Store.open(root / "store")
    config = config_of(read_state(checkpoint), checkpoint)
    model = find_system("film").build(config, Given(store.spec, store.stats())).eval()
    assert isinstance(model, ChunkPolicy)
    model.load_state_dict(whole)
    rows = held[0].values
    assert len(rows) == store.manifest.counts["frames"]
    first = store.episode_columns["first_frame"]
    for batch in iterate_once(store, "train", 7, 4):
        with torch.no_grad():
            wanted = model.state_of(batch.obs)
        found = rows[first[batch.episode.numpy()] + batch.frame.numpy()]
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-5)
    assert whole["world.basis"].shape == (wanted.shape[1], 3)
    assert whole["world.basis"].any()
    Policy.load(checkpoint)
    interrupt = at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trained(root, tmp_path / "part", "film", encoder, progress=interrupt)
    again = trained(root, tmp_path / "part", "film", encoder, resume=True)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_policies_on_one_encoder_share_its_states_and_the_flow_opens_no_picture(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    trained(root, tmp_path / "film", "film", "temporal_jepa")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(reader, "decode_image", refuse)
    whole = trained(
        root, tmp_path / "flow", "flow_matching", "temporal_jepa", progress=lambda e: said.append(e.message)
    )
    assert not any("encodes" in message for message in said)
    assert not torch.equal(whole["world.scale"], torch.ones_like(whole["world.scale"]))
    Policy.load(latest(tmp_path / "flow", "flow_matching"))


def test_what_is_fitted_to_kept_states_opens_no_picture(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    fit = WorldHead.fit

    def watched(head: WorldHead, batches: Iterable[Batch], state_of: Any) -> None:
        held = list(batches)
        seen.extend(len(batch.obs.images) for batch in held)
        fit(head, held, state_of)

    monkeypatch.setattr(WorldHead, "fit", watched)
    trained(root, tmp_path, "film", "stamo")
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("system", ["film", "goal", "flow_matching"])
def test_a_latent_action_is_learned_before_the_first_step_and_stays_in_the_checkpoint(
    root: Path, tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From every pair of the train split, also of episodes whose actions are hidden."""
    seen: list[int] = []
    fit = LatentActions.fit

    def watched(model: LatentActions, now: torch.Tensor, later: torch.Tensor) -> None:
        seen.append(len(now))
        fit(model, now, later, 20)

    monkeypatch.setattr(LatentActions, "fit", watched)
    section = find_system(system).section
    encoder = "temporal_jepa" if system == "flow_matching" else "stamo"
    told = [f"{section}.world_target=latent", f"{section}.world_horizon=2", f"{section}.world_components=0"]
    told += ["data.labelled_share=0.3", "data.unlabelled=keep", f"{section}.world_code=5", "goal.image_size=32"]
    told += [] if system == "flow_matching" else [f"{section}.encoder={encoder}"]
    whole = trained(root, tmp_path / "whole", system, encoder, *told)
    columns = Store.open(root / "store").episode_columns
    frames = [n for n, split in zip(columns["frames"].tolist(), columns["split"], strict=True) if str(split) == "train"]
    assert seen == [sum(n - 2 for n in frames)]
    assert whole["world.layers.4.weight"].shape[0] == 5
    interrupt = at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trained(root, tmp_path / "part", system, encoder, *told, progress=interrupt)
    again = trained(root, tmp_path / "part", system, encoder, *told, resume=True)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert len(seen) == 2, "a resumed run has what was learned"
    Policy.load(latest(tmp_path / "whole", system))


def test_the_episode_bounds_the_motions_not_the_segment(root: Path, tmp_path: Path) -> None:
    """What lies behind a segment's end (8 frames) counts, what lies behind the episode's does not."""
    seen: list[torch.Tensor] = []
    row = find_system("film")

    def watched(*given: Any) -> Any:
        model = row.build(*given)
        terms = model.terms

        def watch(batch: Any, noise: Any) -> Any:
            found = terms(batch, noise)
            seen.append(torch.cat([batch.episode[:, None], batch.frame[:, None], found["world_keep"].long()], dim=1))
            return found

        model.terms = watch  # type: ignore[method-assign]
        return model

    config = configuration(*FILM, "film.encoder=stamo")
    watching = dataclasses.replace(row, build=watched)
    train(watching, config, root / "store", tmp_path, encoder_checkpoint=latest(root / "stamo", "stamo"))
    rows, frames = torch.cat(seen), Store.open(root / "store").episode_columns["frames"]
    assert len(rows) >= 24
    for episode, frame, *keep in rows.tolist():
        assert keep == [int(frame + step < frames[episode]) for step in range(1, 5)]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("data.latents=false", r"data\.latents: false keeps no states, and the targets of film\.world_target are"),
        ("data.shuffle_instructions=true", r"data\.shuffle_instructions: kept states have their own, and the targets"),
    ],
)
def test_what_kept_states_cannot_give_is_refused(root: Path, tmp_path: Path, option: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        trained(root, tmp_path, "film", "stamo", option)


def test_shards_in_order_have_no_later_states(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    with pytest.raises(UsageError, match=r"kept states are read by frame number; data\.stream=sequential cannot give"):
        trained(root, tmp_path, "film", "stamo", "data.stream=sequential")


def test_states_of_stamo_are_kept_beforehand(root: Path, tmp_path: Path) -> None:
    """By the command, where the training that wants them looks."""
    store = Path(shutil.copytree(root / "store", tmp_path / "store", ignore=shutil.ignore_patterns("latents")))
    encoder, said = latest(root / "stamo", "stamo"), []
    config = configuration(*FILM, "film.encoder=stamo")
    size = config.training.batch_size
    summary = latents_of_checkpoint(store, encoder, batch=size, device="cpu")
    assert (summary["computed"], summary["width"]) == (True, math.prod(stamo_shape(encoder, store)))
    train(
        "film", config, store, tmp_path / "film", encoder_checkpoint=encoder, progress=lambda e: said.append(e.message)
    )
    assert f"foretells {summary['folder']}" in said
    assert not any("encodes every frame once" in message for message in said)
    with pytest.raises(UsageError, match="film is a policy; expected a state encoder: temporal_jepa or stamo"):
        latents_of_checkpoint(store, latest(tmp_path / "film", "film"), device="cpu")


def stamo_shape(checkpoint: Path, store: Path) -> tuple[int, int]:
    config = config_of(read_state(checkpoint), checkpoint)
    model = find_system("stamo").build(config, Given(Store.open(store).spec))
    assert isinstance(model, StamoModel)
    return model.state_shape
