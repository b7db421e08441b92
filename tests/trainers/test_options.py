"""Options of the loop: off they change no bit, on they do what they say and resume to the bit."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from statevla.config import Config
from statevla.data.batch import Batch
from statevla.data.loaders import SegmentLoader
from statevla.data.needs import NOW
from statevla.data.oversample import changing_steps
from statevla.policies.policy import Policy
from statevla.runs import layout
from statevla.systems.table import find_system
from statevla.trainers import pictures
from statevla.trainers.outcome import NonFiniteLoss
from statevla.trainers.trainer import train
from stores.errors import UsageError
from stores.reader import Store
from tests.trainers.micro import at_step, config_of_all, micro_store
from tests.trainers.together import checkpoint, lines, weights

FILM = "film"
OFF = ("training.augment_shift=0", "training.augment_colour=0", "training.augment_affine=false",
       "training.policy_ema=0", "data.oversample_gripper=1", "training.accumulate=1")  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_store(tmp_path_factory.mktemp("micro") / "store")


def film(*more: str) -> Config:
    return config_of_all("training.max_steps=6", "training.validate_every_steps=3", *more)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_off_is_none_to_the_bit(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every option said to be off, none of their code runs, and the weights are those of a run without a word."""
    train(FILM, film(), store, tmp_path / "plain")

    def never(*given: Any) -> None:
        raise AssertionError("not off")

    monkeypatch.setattr(pictures, "draws_of_step", never)
    monkeypatch.setattr(pictures, "augmented", never)
    train(FILM, film(*OFF), store, tmp_path / "off")
    mine, theirs = weights(tmp_path / "plain", FILM), weights(tmp_path / "off", FILM)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.resume
@pytest.mark.parametrize(
    "option",
    ["training.augment_shift=4", "training.augment_colour=0.2", "training.augment_affine=true",
     "training.policy_ema=0.9", "data.oversample_gripper=4"],
)  # fmt: skip
def test_on_changes_the_run_and_resumes_to_the_bit(store: Path, tmp_path: Path, option: str) -> None:
    plain = tmp_path / "plain"
    train(FILM, film(), store, plain)
    train(FILM, film(option), store, tmp_path / "whole")
    stopped = train(FILM, film(option), store, tmp_path / "run", progress=at_step(4, interrupt))
    assert stopped.steps == 4
    train(FILM, film(option), store, tmp_path / "run", resume=True)
    mine, theirs, without = (weights(tmp_path / name, FILM) for name in ("run", "whole", "plain"))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not all(torch.equal(mine[name], without[name]) for name in mine)
    assert lines(tmp_path / "run", FILM, "val")[-1]["loss"] == lines(tmp_path / "whole", FILM, "val")[-1]["loss"]


def pictures_of(store: Path, config: Config) -> tuple[Batch, Batch]:
    needs = find_system("temporal_jepa").build
    del needs
    loader = SegmentLoader(Store.open(store), "train", 8, 0, config.data, 10, NOW)
    batches = loader.batches()
    batch = next(batches)[1]
    batches.close()
    draws = pictures.draws_of_step(config.training, 3, len(batch.obs.images))
    return batch, pictures.augmented(batch, draws)


def test_now_and_next_change_alike_and_what_stands_for_both_is_changed_once(store: Path) -> None:
    config = film("training.augment_shift=8", "training.augment_colour=0.3", "training.augment_affine=true")
    batch, changed = pictures_of(store, config)
    assert changed.next_obs is changed.obs
    assert not torch.equal(changed.obs.images[0], batch.obs.images[0])
    assert torch.equal(changed.obs.robot_state, batch.obs.robot_state)
    same = Batch(**{**vars(batch), "next_obs": type(batch.obs)(**vars(batch.obs))})  # another object, the same pictures
    again = pictures.augmented(same, pictures.draws_of_step(config.training, 3, len(batch.obs.images)))
    assert again.next_obs is not again.obs
    for now, later in zip(again.obs.images, again.next_obs.images, strict=True):
        assert torch.equal(now, later)
    cameras = changed.obs.images[0].float().mean(dim=(1, 2, 3)) / batch.obs.images[0].float().mean(dim=(1, 2, 3))
    assert cameras.unique().numel() == len(batch)  # each row its own


def test_augmentation_needs_pictures(store: Path) -> None:
    config = film("training.augment_shift=8")
    batch, _ = pictures_of(store, config)
    floats = tuple(frames.float() for frames in batch.obs.images)
    without = Batch.__new__(Batch)
    obs = type(batch.obs).__new__(type(batch.obs))
    for name, value in {**vars(batch.obs), "images": floats}.items():
        object.__setattr__(obs, name, value)
    for name, value in {**vars(batch), "obs": obs}.items():
        object.__setattr__(without, name, value)
    with pytest.raises(UsageError, match="precomputed features or latents"):
        pictures.augmented(without, pictures.draws_of_step(config.training, 0, len(floats)))


def test_the_average_is_validated_saved_and_acts_and_training_goes_on_from_its_own_weights(
    store: Path, tmp_path: Path
) -> None:
    train(FILM, film(), store, tmp_path / "plain")
    train(FILM, film("training.policy_ema=0.9"), store, tmp_path / "average")
    folder = checkpoint(tmp_path / "average", FILM)
    trained = {
        name.removesuffix("/trained"): value
        for name, value in load_file(folder / "optimizer.safetensors").items()
        if name.endswith("/trained")
    }
    plain, average = weights(tmp_path / "plain", FILM), weights(tmp_path / "average", FILM)
    assert all(torch.equal(plain[name], value) for name, value in trained.items())
    assert not all(torch.equal(average[name], value) for name, value in trained.items())
    losses = [lines(tmp_path / run, FILM, kind) for run in ("plain", "average") for kind in ("train", "val")]
    assert [line["loss"] for line in losses[0]] == [line["loss"] for line in losses[2]]
    assert losses[1][-1]["loss"] != losses[3][-1]["loss"]
    acting = Policy.load(folder).model.state_dict()
    assert all(torch.equal(acting[name], value) for name, value in average.items())


def test_stamo_has_an_average_too_and_what_has_a_target_none(store: Path, tmp_path: Path) -> None:
    more = ("stamo.image_size=16", "stamo.patch_size=4", "stamo.stages=8-16", "training.policy_ema=0.9")
    for system in ("stamo", "temporal_jepa"):
        for name, settings in (("plain", more[:-1]), ("average", more)):
            train(system, film(*settings), store, tmp_path / name)
        plain, average = weights(tmp_path / "plain", system), weights(tmp_path / "average", system)
        same = all(torch.equal(plain[name], value) for name, value in average.items())
        assert same == (system == "temporal_jepa")


def test_the_average_by_hand() -> None:
    from statevla.trainers.average import WeightAverage

    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.5)
    torch.nn.init.ones_(model.weight)
    average.follow(1)  # d = min(0.5, 2 / 11)
    average.follow(1000)  # d = 0.5
    with average.in_place():
        assert model.weight.item() == pytest.approx(1 - 2 / 11 * 0.5)
    assert model.weight.item() == 1


def test_steps_that_move_the_gripper_are_drawn_more_often(store: Path) -> None:
    opened = Store.open(store)
    chunk, times = 3, 5
    config = film(f"data.oversample_gripper={times}")
    loader = SegmentLoader(opened, "train", 8, 0, config.data, chunk, NOW)
    plain = SegmentLoader(opened, "train", 8, 0, film().data, chunk, NOW)
    drawn: dict[tuple[int, int], int] = {}
    batches = loader.batches()
    for _ in range(loader.batches_per_epoch):
        batch = next(batches)[1]
        for key in zip(batch.episode.tolist(), batch.frame.tolist(), strict=True):
            drawn[key] = drawn.get(key, 0) + 1
        binary = batch.chunk[:, :, 6] > 0
    batches.close()
    assert binary.shape == (8, chunk)
    changes = changing_steps(opened, chunk)
    assert loader.batches_per_epoch > plain.batches_per_epoch
    assert max(n for (episode, frame), n in drawn.items() if changes[episode][frame]) == times
    assert max((n for (episode, frame), n in drawn.items() if not changes[episode][frame]), default=1) == 1


def test_which_steps_change_the_gripper(store: Path) -> None:
    opened = Store.open(store)
    found, start = changing_steps(opened, 3), 0
    for number, frames in enumerate(opened.episode_columns["frames"].tolist()):
        steps = int(opened.episode_columns["steps"][number])
        closing = opened.frames["action"][start : start + steps, 6] > 0
        start += frames
        for t in range(steps):
            seen = closing[max(t - 1, 0) : t + 3]
            assert found[number][t] == (np.unique(seen).size > 1)


def test_a_row_that_is_not_finite_is_named_and_the_best_so_far_is_kept(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from statevla.systems.film import FilmPolicy

    original, calls = FilmPolicy.terms, []
    named: list[str] = []

    def broken(self: Any, batch: Any, noise: Any) -> Any:
        terms = original(self, batch, noise)
        calls.append(self.training)
        if calls.count(True) == 5 and self.training:
            terms["pose"] = terms["pose"].clone()
            terms["pose"][2] = torch.nan
            named.append(f"episode {int(batch.episode[2])} frame {int(batch.frame[2])}")
        return terms

    monkeypatch.setattr(FilmPolicy, "terms", broken)
    with pytest.raises(NonFiniteLoss) as caught:
        train(FILM, film(), store, tmp_path)
    assert f"not finite are 1 of 8 rows: {named[0]}; nothing was overwritten" in str(caught.value)
    folder = layout.checkpoints(tmp_path, FILM)
    assert [path.name for path in folder.iterdir()] == [layout.BEST]  # found at step 3, and not on the disk until now
    assert json.loads((folder / layout.BEST / "state.json").read_text())["step"] == 3


def test_out_of_memory_says_what_to_lower(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from statevla.systems.film import FilmPolicy
    from statevla.trainers.outcome import OutOfMemory

    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(FilmPolicy, "terms", full)
    for accumulate, advice in (
        (2, r"8 rows in 2 micro.*2\.00 GiB\.; the same training in less memory: --set training\.accumulate=4; another"),
        (5, r"less memory: --set training\.accumulate=8; another"),
        (8, r"2\.00 GiB\.; another training in less memory"),
    ):
        with pytest.raises(OutOfMemory, match=advice + r".*: a smaller training\.batch_size or film\.image_size"):
            train(FILM, film(f"training.accumulate={accumulate}"), store, tmp_path / "new")
    monkeypatch.undo()
    train(FILM, film("training.max_steps=1"), store, tmp_path / "old")
    monkeypatch.setattr(FilmPolicy, "terms", full)
    with pytest.raises(OutOfMemory, match=rf"--resume {tmp_path / 'old'} --set training\.accumulate=2;"):
        train(FILM, film("training.max_steps=2"), store, tmp_path / "old", resume=True)
