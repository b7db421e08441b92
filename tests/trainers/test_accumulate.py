"""Micro-batches give the gradients of the whole batch, for every objective of the table."""

from pathlib import Path
from typing import Any

import pytest
import torch

from statevla.data.loaders import SegmentLoader
from statevla.systems.system import Given, Objective
from statevla.systems.table import SYSTEMS, find_system
from statevla.trainers.ranks import Ranks
from statevla.trainers.schedule import step_generator
from statevla.trainers.step import Share, differentiate, micro_batches, seed_dropout
from stores.errors import UsageError
from stores.reader import Store
from tests.systems.build import with_states
from tests.trainers.micro import config_of_all, micro_store

CONFIG = config_of_all(
    "training.phase1.inverse_dynamics_weight=1", "training.phase1.inverse_dynamics_horizon=10",
    "training.phase1.regularize=both", "training.phase1.gap=3", "training.phase1.sigreg_weight=0.1", "act.dropout=0.2",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(micro_store(tmp_path_factory.mktemp("micro") / "store"))


def gradients(model: Objective, batch: Any, loader: SegmentLoader, parts: int, rows: int = 8) -> dict[str, Any]:
    model.zero_grad(set_to_none=True)
    model.train()
    noise = model.draw(8, step_generator(0, 0))
    loss, terms = differentiate(
        model, batch, noise, Share.of(loader.order, loader.lanes, Ranks()), micro_batches(rows, parts),
        lambda part: seed_dropout(0, 0, 0, part), torch.autocast("cpu", enabled=False),
    )  # fmt: skip
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.total.item(), "gradients": found, "rows": {len(value) for value in terms.values()}}


WORLD = ("film.world_target=motion", "film.world_horizon=3", "film.encoder=stamo")
FLOW_WORLD = ("training.phase2.world_target=motion", "training.phase2.world_horizon=3")
CASES = [
    *(pytest.param(row, (), id=row.name) for row in SYSTEMS),
    pytest.param(find_system("film"), WORLD, id="film with a world head"),
    pytest.param(find_system("film"), (*WORLD, "film.world_shuffled=true"), id="film with a shuffled one"),
    pytest.param(find_system("flow_matching"), FLOW_WORLD, id="flow with a world head"),
    pytest.param(
        find_system("film"),
        ("film.world_target=motions", "film.encoder=stamo", "film.world_components=5"),
        id="film with a head of motions",
    ),
    pytest.param(find_system("stamo"), ("stamo.decoder=vae", "stamo.patch_size=1"), id="stamo's autoencoder"),
]


@pytest.mark.parametrize(("row", "options"), CASES)
def test_gradients_of_micro_batches_are_those_of_the_batch(store: Store, row: Any, options: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = row.build(config_of_all(*options) if options else CONFIG, Given(store.spec, store.stats()))
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)  # past layers that start at zero
    loader = SegmentLoader(store, "train", 8, 0, CONFIG.data, CONFIG.model.action_seq_len, model.needs)
    batches = loader.batches()
    batch = with_states(model, next(batches)[1])
    batches.close()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.MultiheadAttention):
            setattr(module, "p" if isinstance(module, torch.nn.Dropout) else "dropout", 0.0)
    whole = gradients(model, batch, loader, 1)
    for parts in (2, 3, 8):
        found = gradients(model, batch, loader, parts)
        assert found["rows"] == {8}
        assert found["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert found["gradients"].keys() == whole["gradients"].keys()
        size = sum(float(g.square().sum()) for g in whole["gradients"].values()) ** 0.5
        assert size > 1e-3
        for name, gradient in whole["gradients"].items():
            assert float((found["gradients"][name] - gradient).norm()) < 1e-4 * max(float(gradient.norm()), 0.01 * size)


def test_the_mean_over_micro_batches_by_themselves_is_another_gradient(store: Store) -> None:
    """What accumulation does elsewhere; VICReg's terms show it."""
    row = SYSTEMS[0]
    torch.manual_seed(0)
    model = row.build(CONFIG, Given(store.spec, store.stats()))
    torch.nn.init.normal_(model.predictor.delta.weight, std=0.1)
    loader = SegmentLoader(store, "train", 8, 0, CONFIG.data, CONFIG.model.action_seq_len, model.needs)
    batches = loader.batches()
    batch = next(batches)[1]
    batches.close()
    whole, noise = gradients(model, batch, loader, 1)["gradients"], model.draw(8, step_generator(0, 0))
    model.zero_grad(set_to_none=True)
    for part in micro_batches(8, 4):
        some = {name: value[part] for name, value in noise.items()}
        (model.loss(model.terms(batch.each(lambda rows, part=part: rows[part]), some)).total / 4).backward()
    apart = max(float((p.grad.double() - whole[n]).norm()) for n, p in model.named_parameters() if n in whole)
    assert apart > 0.01 * max(float(g.norm()) for g in whole.values())


def test_dropout_of_the_second_pass_is_that_of_the_first(store: Store) -> None:
    row = next(row for row in SYSTEMS if row.name == "act")
    torch.manual_seed(0)
    model = row.build(CONFIG, Given(store.spec, store.stats()))
    loader = SegmentLoader(store, "train", 8, 0, CONFIG.data, CONFIG.model.action_seq_len, model.needs)
    batches = loader.batches()
    batch = next(batches)[1]
    batches.close()
    seen: list[torch.Tensor] = []
    original = model.terms

    def watched(*given: Any) -> Any:
        found = original(*given)
        seen.append(found["pose"].detach().clone())
        return found

    model.terms = watched  # type: ignore[method-assign]
    gradients(model, batch, loader, 2)
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])


def test_micro_batches_differ_by_a_row_at_most_and_none_is_empty() -> None:
    assert [part.stop - part.start for part in micro_batches(8, 3)] == [2, 3, 3]
    with pytest.raises(UsageError, match=r"training\.accumulate: 9 micro-batches of the 8 rows .*use at most 8"):
        micro_batches(8, 9)


def test_a_batch_is_cut_with_what_it_shares(store: Store, tmp_path: Path) -> None:
    row = next(row for row in SYSTEMS if row.name == "film")
    model = row.build(CONFIG, Given(store.spec, store.stats()))
    loader = SegmentLoader(store, "train", 8, 0, CONFIG.data, CONFIG.model.action_seq_len, model.needs)
    batches = loader.batches()
    batch = next(batches)[1]
    batches.close()
    part = batch.each(lambda rows: rows[2:5])
    assert len(part) == 3
    assert part.next_obs is part.obs
    assert torch.equal(part.obs.images[1], batch.obs.images[1][2:5])
    assert torch.equal(part.frame, batch.frame[2:5])
