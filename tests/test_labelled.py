"""Episodes whose actions are hidden: which they are, that nothing sees them, and what still learns from them."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.config import DataConfig, load_config
from statevla.data.batch import Batch
from statevla.data.frames import make_table
from statevla.data.labelled import labelled_episodes
from statevla.data.loaders import SegmentLoader
from statevla.data.needs import NOW
from statevla.systems.act import ActPolicy
from statevla.systems.chunk_policy import ChunkPolicy
from statevla.systems.table import find_system, sections
from statevla.trainers.outcome import NonFiniteLoss
from statevla.trainers.trainer import train
from stores.errors import UsageError
from stores.reader import Store
from tests.models.build import batch
from tests.stores.make_store import make_tiny_store
from tests.systems.build import SMALL, Case, with_states, with_world
from tests.systems.test_world import FORETELLING
from tests.trainers.micro import SETTINGS, micro_store

HALF = DataConfig(lanes=2, block_segments=2, labelled_share=0.5, unlabelled="keep")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("labelled") / "store"
    make_tiny_store(root, episodes=40, frames=6, image=16, window=8)
    return Store.open(root)


def chosen(store: Store, share: float, seed: int = 0) -> np.ndarray:
    return labelled_episodes(store, make_table(store, 4), share, seed)


def test_that_share_of_every_instruction_by_the_seed_alone(store: Store) -> None:
    table = make_table(store, 4)
    train_split = np.array([str(name) == "train" for name in store.episode_columns["split"]])
    found = chosen(store, 0.4)
    assert found[~train_split].all(), "what is validated on is labelled"
    for instruction in np.unique(table.instruction[train_split]):
        mine = train_split & (table.instruction == instruction)
        assert found[mine].sum() == max(round(0.4 * mine.sum()), 1)
    assert np.array_equal(found, chosen(store, 0.4))
    assert not np.array_equal(found, chosen(store, 0.4, seed=1))
    assert (chosen(store, 0.7) >= found).all(), "more labels are the same ones and further ones"
    assert all((chosen(store, 1e-6) & train_split & (table.instruction == i)).sum() == 1
               for i in np.unique(table.instruction[train_split]))  # fmt: skip


def epoch(store: Store, data: DataConfig) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Episode, actions and padding of every row of an epoch."""
    loader = SegmentLoader(store, "train", 4, 0, data, 4, NOW)
    batches = loader.batches()
    for _, each in itertools.islice(batches, loader.batches_per_epoch):
        yield from zip(each.episode.tolist(), each.chunk, each.is_pad, strict=True)
    batches.close()


def test_hidden_actions_are_no_numbers_and_all_of_them_padding(store: Store) -> None:
    labelled = chosen(store, 0.5)
    seen = {True: 0, False: 0}
    for number, chunk, is_pad in epoch(store, HALF):
        seen[bool(labelled[number])] += 1
        assert bool(chunk.isnan().all()) == bool(chunk.isnan().any()) == (not labelled[number])
        assert bool(is_pad.all()) == (not labelled[number])
    assert min(seen.values()) > 10


def test_episodes_that_are_left_out_are_in_no_batch(store: Store) -> None:
    labelled = chosen(store, 0.5)
    found = {number for number, _, _ in epoch(store, dataclasses.replace(HALF, unlabelled="leave_out"))}
    assert all(labelled[number] for number in found)
    everything = {number for number, _, _ in epoch(store, dataclasses.replace(HALF, labelled_share=1.0))}
    assert found < everything


@pytest.mark.parametrize("cached", [True, False])
def test_labelled_steps_are_drawn_so_many_times_and_the_others_once(store: Store, cached: bool) -> None:
    labelled = chosen(store, 0.5)
    data = dataclasses.replace(HALF, labelled_times=3, cache_gib=1.0 if cached else 0.0)
    loader = SegmentLoader(store, "train", 1, 0, dataclasses.replace(data, lanes=1), 4, NOW)
    found: dict[tuple[int, tuple[float, ...]], int] = {}
    batches = loader.batches()
    for _, each in itertools.islice(batches, loader.batches_per_epoch):
        place = (int(each.episode[0]), tuple(each.obs.robot_state[0].tolist()))
        found[place] = found.get(place, 0) + 1
    batches.close()
    plain = SegmentLoader(store, "train", 1, 0, dataclasses.replace(HALF, lanes=1), 4, NOW)
    assert len(found) == plain.batches_per_epoch, "every step, and no other"
    assert all(times == (3 if labelled[episode] else 1) for (episode, _), times in found.items())


def test_labelled_times_wants_rows_without_labels_beside(store: Store) -> None:
    for share, unlabelled in ((0.5, "leave_out"), (1.0, "keep")):
        data = dataclasses.replace(HALF, labelled_share=share, unlabelled=unlabelled, labelled_times=3)
        with pytest.raises(UsageError, match=r"data\.labelled_times: 3 draws .* set data\.unlabelled=keep"):
            SegmentLoader(store, "train", 4, 0, data, 4, NOW)


@pytest.mark.parametrize("target", ["motion", "motions", "latent"])
@pytest.mark.parametrize("name", FORETELLING)
def test_rows_without_actions_teach_the_world_head_and_nothing_else(name: str, target: str) -> None:
    model = with_world(name, "stamo", target).make()
    data = with_states(model, batch(6))
    hidden = torch.tensor([False, True, False, True, True, False])
    chunk = torch.where(hidden[:, None, None], torch.nan, data.chunk)
    is_pad = data.is_pad | hidden[:, None]
    noise = model.draw(6, torch.Generator().manual_seed(0))
    found = []
    for actions in (chunk, torch.where(hidden[:, None, None], 7.0, data.chunk)):
        model.zero_grad()
        known = dataclasses.replace(data, chunk=actions, action=actions[:, 0], is_pad=is_pad)
        terms = model.terms(known, noise)
        assert terms["world_keep"].flatten().tolist() == [target != "motion", True, True, True, True, True]
        loss = model.loss(terms)
        loss.total.backward()
        found.append((loss.total.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert np.isfinite(found[0][0])
    assert found[0][0] == found[1][0], "what is hidden does not matter"
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, two)


def test_shuffled_targets_are_another_episodes_in_training_alone() -> None:
    case = with_world("film", "stamo", "motion")
    model = dataclasses.replace(case, options=(*case.options, "film.world_shuffled=true")).make()
    data = batch(6)
    terms = model.terms(data, {})
    plain = case.make()
    assert torch.equal(terms["world_wanted"], plain.terms(data, {})["world_wanted"])

    def error(wanted: torch.Tensor, keep: list[bool]) -> float:
        apart = (terms["world"] - wanted)[torch.tensor(keep)]
        return apart.square().mean().item()

    def found() -> float:
        return model.loss(terms).parts["world_mse"].item()

    assert terms["world_keep"].tolist() == [False, True, True, True, True, True]
    model.eval()
    assert found() == pytest.approx(error(terms["world_wanted"], terms["world_keep"].tolist()))
    model.train()
    others = terms["world_wanted"].roll(3, 0)
    assert found() == pytest.approx(error(others, [True, True, True, False, True, True]))
    terms = {**terms, "world_episode": torch.tensor([0, 1, 2, 3, 1, 5])}
    assert found() == pytest.approx(error(others, [True, False, True, False, False, True]))


@pytest.mark.parametrize("prior", ["standard", "learned"])
def test_acts_latent_of_a_row_without_actions_is_the_priors_and_its_divergence_counts_not(prior: str) -> None:
    """The loss of labelled rows is what it is without the others; those are seen as where the policy acts."""
    model = Case(find_system("act"), (f"act.prior={prior}",)).make()
    assert isinstance(model, ActPolicy)
    data, noise = batch(6), model.draw(6, torch.Generator().manual_seed(2))
    hidden = torch.tensor([False, True, True, False, True, True])
    is_pad = data.is_pad | hidden[:, None]
    chunk = torch.where(hidden[:, None, None], torch.nan, data.chunk)
    few = dataclasses.replace(data, is_pad=is_pad, chunk=chunk)
    rows = (~hidden).nonzero().flatten()
    alone = data.each(lambda tensor: tensor[rows])
    mine, theirs = (
        model.loss(model.terms(seen, {"latent": noise["latent"][part]}))
        for seen, part in ((few, slice(None)), (alone, rows))
    )
    assert theirs.parts["kl"] > 0
    torch.testing.assert_close(mine.total, theirs.total)
    assert [float(each.weight) for each in mine.summands] == [float(each.weight) for each in theirs.summands]
    net, known = model.net, model.known(few.obs)
    of_prior = net.told(net.read(known, net.prior(known).sample(noise["latent"]))).pose
    torch.testing.assert_close(model.terms(few, noise)["pose"][hidden], of_prior[hidden])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store and the checkpoint of an encoder."""
    root = tmp_path_factory.mktemp("arms")
    made = micro_store(root / "store")
    return made, Path(train("stamo", configuration(), made, root / "stamo").checkpoint)


def configuration(*more: str):  # type: ignore[no-untyped-def]
    small = (text for text in SMALL if text.startswith("stamo."))
    return load_config(
        "tiny", None, (*SETTINGS, *small, "film.image_size=32", "training.max_steps=2", *more), sections()
    )


FEW = ("data.labelled_share=0.3", "data.unlabelled=keep")
PSEUDO = (*FEW, "film.encoder=stamo", "film.world_target=motion", "film.world_horizon=1", "film.world_weight=1")


def test_a_run_on_few_labels_and_a_leak_that_stops_it(
    parts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, encoder = parts
    summary = train("film", configuration(*PSEUDO), made, tmp_path / "run", encoder_checkpoint=encoder)
    assert summary.steps == 2
    wanted = ChunkPolicy.wanted

    def forgets_the_mask(policy: ChunkPolicy, seen: Batch) -> dict[str, torch.Tensor]:
        return wanted(policy, dataclasses.replace(seen, is_pad=torch.zeros_like(seen.is_pad)))

    monkeypatch.setattr(ChunkPolicy, "wanted", forgets_the_mask)
    with pytest.raises(NonFiniteLoss):
        train("film", configuration(*PSEUDO), made, tmp_path / "leak", encoder_checkpoint=encoder)


def test_an_encoder_that_has_seen_hidden_actions_is_said(parts: tuple[Path, Path], tmp_path: Path) -> None:
    """Which episodes are labelled is the seed's matter, so an encoder of another seed has seen other ones."""
    made, painter = parts
    told: list[str] = []

    def policy(name: str, encoder: Path, kind: str) -> list[str]:
        told.clear()
        settings = (*PSEUDO[:2], f"film.encoder={kind}", *PSEUDO[3:])
        train("film", configuration(*settings), made, tmp_path / name, encoder_checkpoint=encoder,
              progress=lambda event: told.append(event.message))  # fmt: skip
        return [text for text in told if "hidden" in text]

    labels = {seed: chosen(Store.open(made), 0.3, seed) for seed in range(9)}
    beyond = {seed: int((found & ~labels[0]).sum()) for seed, found in labels.items()}
    seed = max(beyond, key=lambda each: beyond[each])
    assert beyond[seed] > 0
    for name, settings, said in (
        ("same", ("data.labelled_share=0.3",), 0),
        ("other", ("data.labelled_share=0.3", f"training.seed={seed}"), beyond[seed]),
        ("all", (), int((~labels[0]).sum())),
    ):
        summary = train("temporal_jepa", configuration(*settings), made, tmp_path / name)
        found = policy(f"{name}-film", Path(summary.checkpoint), "temporal_jepa")
        assert [text.split(" episodes")[0].split()[-1] for text in found] == ([str(said)] if said else [])
    assert policy("painted", painter, "stamo") == [], "which never sees an action"


def test_what_learns_nothing_from_them_or_looks_at_them_is_refused(parts: tuple[Path, Path], tmp_path: Path) -> None:
    made, encoder = parts
    for system in ("film", "temporal_jepa"):
        with pytest.raises(
            UsageError, match=rf"data.unlabelled=keep: {system} learns nothing from rows without actions"
        ):
            train(system, configuration(*FEW), made, tmp_path / system)
    with pytest.raises(
        UsageError, match=r"data.oversample_gripper: 3 looks at the actions that data.unlabelled=keep hides"
    ):
        train("film", configuration(*PSEUDO, "data.oversample_gripper=3"), made, tmp_path / "more",
              encoder_checkpoint=encoder)  # fmt: skip
