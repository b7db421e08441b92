"""The loop's wiring against a loop written by hand; and that a loop with one wire cut is seen.

`pytest -m mutation` cuts each wire in turn.
"""

import inspect
import json
import os
import signal
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from statevla.config import Config
from statevla.data import order
from statevla.runs import layout
from statevla.runs import write as checkpoint
from statevla.runs.state import read_state
from statevla.systems import temporal_jepa
from statevla.systems import world as world_head
from statevla.systems.table import find_system
from statevla.trainers import average, trainer, validation
from statevla.trainers import run as running
from statevla.trainers import step as stepping
from statevla.trainers.ranks import Ranks
from tests.trainers.micro import at_step, micro_config, micro_store
from tests.trainers.reference import Expected, train_by_hand

STEPS = 6
JEPA, FLOW = "temporal_jepa", "flow_matching"
FORETOLD = "flow_matching with a world head"
FORETELLING = (
    "training.phase2.world_target=motion", "training.phase2.world_horizon=3", "training.phase2.world_weight=0.5",
)  # fmt: skip


def configuration(*more: str) -> Config:
    return micro_config(
        f"training.max_steps={STEPS}", "training.validate_every_steps=1", "training.schedule=cosine",
        "training.warmup_steps=2", "training.gradient_clip=0.05", "training.weight_decay=0.3",
        "training.ema_momentum=0.5", "training.phase1.learning_rate=1e-2", "training.phase2.learning_rate=3e-2",
        "training.phase1.inverse_dynamics_weight=3", "training.phase1.inverse_dynamics_horizon=10", *more,
    )  # fmt: skip


@dataclass(frozen=True)
class World:
    """A store, and what training on it must give: found once, before anything is cut."""

    store: Path
    encoder: Path
    expected: dict[str, Expected]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("wiring")
    store = micro_store(root / "store")
    trainer.train(JEPA, configuration(), store, root / "run")
    encoder = latest(root / "run", JEPA)
    expected = {name: train_by_hand(name, configuration(), store, encoder) for name in (JEPA, FLOW)}
    expected[FORETOLD] = train_by_hand(FLOW, configuration(*FORETELLING), store, encoder)
    return World(store, encoder, expected)


def latest(run: Path, name: str) -> Path:
    return layout.checkpoints(run, find_system(name).folder) / layout.LATEST


def check_loop(world: World, run: Path, name: str, known_as: str = "", more: tuple[str, ...] = ()) -> None:
    """Weights, losses in training and validation, and the best step, all to the bit."""
    encoder = world.encoder if name == FLOW else None
    summary = trainer.train(name, configuration(*more), world.store, run, encoder_checkpoint=encoder)
    expected = world.expected[known_as or name]
    lines = [json.loads(line) for line in layout.metrics(run, find_system(name).folder).read_text().splitlines()]
    losses = {kind: {r["step"]: r["loss"] for r in lines if r["kind"] == kind} for kind in ("train", "val")}
    assert losses["train"] == expected.train
    assert losses["val"] == expected.val
    weights = load_file(latest(run, name) / "model.safetensors")
    assert weights.keys() == expected.weights.keys()
    assert [key for key, value in weights.items() if not torch.equal(value, expected.weights[key])] == []
    assert summary.best is not None
    assert summary.best == {"step": min(expected.val, key=lambda s: expected.val[s]),
                            "val_loss": min(expected.val.values())}  # fmt: skip
    assert read_state(latest(run, name).with_name(layout.BEST)).step == summary.best["step"]


def check_jepa(world: World, tmp_path: Path) -> None:
    check_loop(world, tmp_path / "run", JEPA)


def check_flow(world: World, tmp_path: Path) -> None:
    check_loop(world, tmp_path / "run", FLOW)


def check_foretold(world: World, tmp_path: Path) -> None:
    check_loop(world, tmp_path / "run", FLOW, FORETOLD, FORETELLING)


def check_precision(world: World, tmp_path: Path) -> None:
    """What the encoder's first linear layer computes in, in training and in validation."""
    for precision, wanted in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
        original = temporal_jepa.JepaModel.terms

        def watched(self: Any, *given: Any, seen: Any = seen, original: Any = original) -> Any:
            hook = self.encoder.tokenizer.language.register_forward_hook(
                lambda module, inputs, output: seen[self.training].add(output.dtype)
            )
            try:
                return original(self, *given)
            finally:
                hook.remove()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(temporal_jepa.JepaModel, "terms", watched)
            config = configuration(f"training.precision={precision}", "training.max_steps=1")
            trainer.train(JEPA, config, world.store, tmp_path / precision)
        assert seen == {True: {wanted}, False: {wanted}}


def check_lanes(world: World, tmp_path: Path) -> None:
    """Which segments share a lane changes from one epoch to the next."""
    counts = np.full(40, 16, dtype=np.int64)
    plan = order.plan_order(counts, seed=0, batch_size=8, lanes=4, block_segments=2)
    hands = {tuple(sorted(order.deal(plan, epoch)[0].tolist())) for epoch in range(5)}
    assert len(hands) == 5


AVERAGED = "training.policy_ema=0.3"  # reached in the third step; less before


def check_average(world: World, tmp_path: Path) -> None:
    """What acts is the average, by hand, of the weights after each step."""
    seen: list[dict[str, torch.Tensor]] = []
    original = running.Run.train_step

    def trained(run: Any) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}

    def watched(self: Any, batch: Any) -> Any:
        seen.extend([] if seen else [trained(self)])
        done = original(self, batch)
        seen.append(trained(self))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.Run, "train_step", watched)
        trainer.train(FLOW, configuration(AVERAGED), world.store, tmp_path / "run", encoder_checkpoint=world.encoder)
    assert len(seen) == STEPS + 1
    acting = load_file(latest(tmp_path / "run", FLOW) / "model.safetensors")
    for name, mean in seen[0].items():
        for step in range(1, STEPS + 1):
            decay = min(0.3, (1 + step) / (10 + step))
            mean = decay * mean + (1 - decay) * seen[step][name]
        assert torch.allclose(acting[name], mean, rtol=1e-5, atol=1e-7), name


def check_resumed(world: World, tmp_path: Path) -> None:
    """Stopped after 3 steps it goes on, to the bit, with its average and its optimizer's moments."""
    config = configuration(AVERAGED)
    trainer.train(FLOW, config, world.store, tmp_path / "whole", encoder_checkpoint=world.encoder)
    stop = at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer.train(FLOW, config, world.store, tmp_path / "run", encoder_checkpoint=world.encoder, progress=stop)
    assert read_state(latest(tmp_path / "run", FLOW)).step == 3
    trainer.train(FLOW, config, world.store, tmp_path / "run", resume=True)
    assert read_state(latest(tmp_path / "run", FLOW)).files == read_state(latest(tmp_path / "whole", FLOW)).files


def check_accumulated(world: World, tmp_path: Path) -> None:
    """The losses of micro-batches are those of the whole batches; what differs is rounding."""
    config = configuration("training.accumulate=2")
    trainer.train(FLOW, config, world.store, tmp_path / "run", encoder_checkpoint=world.encoder)
    lines = layout.metrics(tmp_path / "run", find_system(FLOW).folder).read_text().splitlines()
    losses = {line["step"]: line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"}
    assert losses == pytest.approx(world.expected[FLOW].train, rel=1e-4)


def check_shares(world: World, tmp_path: Path) -> None:
    """Rows of 3 ranks, gathered, stand where they stood in the global batch."""
    plan = order.plan_order(np.full(40, 16, dtype=np.int64), seed=0, batch_size=24, lanes=6, block_segments=2)
    shares = [stepping.Share.of(plan, order.rank_lanes(plan, rank, 3), Ranks(rank, 3)) for rank in range(3)]
    whole = torch.arange(24)
    rows = torch.cat([share.own(whole) for share in shares])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "gather", lambda self, mine: rows)
        for share in shares:
            assert torch.equal(share.whole({"row": share.own(whole)})["row"], whole)


Check = Callable[[World, Path], None]
CHECKS: dict[str, Check] = {
    "jepa": check_jepa, "flow": check_flow, "foretold": check_foretold, "precision": check_precision,
    "lanes": check_lanes, "average": check_average, "resumed": check_resumed, "accumulated": check_accumulated,
    "shares": check_shares,
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_the_loop_is_the_one_written_by_hand(world: World, tmp_path: Path, name: str) -> None:
    CHECKS[name](world, tmp_path)


def test_best_and_last_training_loss_are_told_apart(world: World) -> None:
    """Without this, the comparison could not see a best that is chosen by the training loss."""
    for expected in (world.expected[name] for name in (JEPA, FLOW)):
        assert min(expected.val, key=lambda s: expected.val[s]) != min(expected.train, key=lambda s: expected.train[s])


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in the source of `where` (of `module`); `check` must then fail."""

    name: str
    module: ModuleType
    where: str
    old: str
    new: str
    check: str


MUTATIONS = (
    Mutation("moving average off", temporal_jepa, "JepaModel.after_step", "self.update_target(", "(", "jepa"),
    Mutation("clipping off", running, "Run.train_step", "training.gradient_clip", "1e9", "jepa"),
    Mutation("weight decay ignored", running, "Run.__init__", "training.weight_decay", "0.0", "jepa"),
    Mutation("schedule frozen", running, "Run.train_step", "learning_rate(self.step,", "learning_rate(0,", "flow"),
    Mutation("the encoder's rate for the policy", running, "Run.train_step", "self.options.learning_rate",
             "self.config.training.phase1.learning_rate", "flow"),
    Mutation("the same noise at every step", running, "Run.train_step", "training.seed, self.step)",
             "training.seed, 0)", "flow"),
    Mutation("validation noise differs every time", validation, "validate", "VALIDATION_SEED, number",
             "int(torch.seed()) % 2**31, number", "flow"),
    Mutation("autocast never on in training", running, "Run.train_step", "enabled=self.autocast", "enabled=False",
             "precision"),
    Mutation("autocast never on in validation", validation, "validate", "enabled=autocast", "enabled=False",
             "precision"),
    Mutation("padding mask of the inverse dynamics dropped", temporal_jepa, "JepaModel.terms",
             "& ~batch.is_pad[:, :horizon]", "& torch.ones_like(batch.is_pad[:, :horizon])", "jepa"),
    Mutation("lanes dealt alike every epoch", order, "deal", "order.seed, epoch, DEAL", "order.seed, 0, DEAL", "lanes"),
    Mutation("best by the training loss", running, "Run.validate", 'values["loss"] < self.best["val_loss"]',
             'self.last_loss < self.__dict__.setdefault("low", self.last_loss) and not self.__dict__.update('
             "low=self.last_loss)", "flow"),
    Mutation("the world head's targets not fitted", trainer, "train", "run.step == 0", "run.step == 1", "foretold"),
    Mutation("the world head's weight ignored", world_head, "Foretelling.world_loss", "options.world_weight * ", "",
             "foretold"),
    Mutation("the average keeps what it should take", average, "WeightAverage.follow", "1 - decay", "decay", "average"),
    Mutation("a resumed run trains on from its average", average, "WeightAverage.restore", "self._put(", "(",
             "resumed"),
    Mutation("a resumed run reads its epoch again", running, "Run.resume", 'int(state.loader["batch"])', "0",
             "resumed"),
    Mutation("a resumed run loses its optimizer's moments", checkpoint, "restore", "restore_optimizer(", "(",
             "resumed"),
    Mutation("each micro-batch with the first one's gradients", stepping, "differentiate", "wanted[name][part]",
             "wanted[name][parts[0]]", "accumulated"),
    Mutation("gathered rows left in the ranks' order", stepping, "Share.whole", "[self.back.to(value.device)]", "",
             "shares"),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.mutation
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_cut_wire_is_seen(world: World, tmp_path: Path, mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    *owner, name = mutation.where.split(".")
    holder: Any = getattr(mutation.module, owner[0]) if owner else mutation.module
    source = textwrap.dedent(inspect.getsource(getattr(holder, name)))
    assert source.count(mutation.old) == 1, "the mutation no longer fits the source"
    found: dict[str, Any] = {}
    exec(compile(source.replace(mutation.old, mutation.new), "mutated", "exec"), mutation.module.__dict__, found)  # noqa: S102
    monkeypatch.setattr(holder, name, found[name])
    if not owner and hasattr(running, name):  # which imported it by its name
        monkeypatch.setattr(running, name, found[name])
    with pytest.raises(AssertionError):
        CHECKS[mutation.check](world, tmp_path)
