"""Gradients of one optimizer step: of all rows of all ranks and micro-batches as if they were one batch.

Legend: R rows of the global batch, n of this rank.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from statevla.data.batch import Batch
from statevla.data.order import Order
from statevla.models.losses import LossParts
from statevla.systems.system import Noise, Objective, Terms
from statevla.trainers.ranks import Ranks
from stores.errors import UsageError

DROPOUT: Final = 0x94D049BB133111EB


@dataclasses.dataclass(frozen=True)
class Share:
    """This rank's part of every global batch.

    rows: where its rows stand in the global batch, lanes in order. back: where each row of the global batch stands
    among the gathered rows, rank after rank.
    """

    ranks: Ranks
    rows: Tensor
    back: Tensor

    @classmethod
    def of(cls, order: Order, lanes: range, ranks: Ranks) -> "Share":
        """Lanes dealt as `statevla.data.order.rank_lanes` deals them."""
        places = torch.arange(order.batch_size).view(order.lanes, order.share)
        gathered = torch.cat([places[first :: ranks.world].flatten() for first in range(ranks.world)])
        return cls(ranks, places[lanes.start :: lanes.step].flatten(), gathered.argsort())

    def whole(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The global batch's rows, in its order."""
        if self.ranks.alone:
            return dict(terms)
        return {name: self.ranks.gather(value)[self.back.to(value.device)] for name, value in terms.items()}

    def own(self, whole: Tensor) -> Tensor:
        """This rank's rows of something that the global batch has."""
        return whole if self.ranks.alone else whole[self.rows.to(whole.device)]


def micro_batches(rows: int, number: int) -> list[slice]:
    """`rows` in `number` parts that differ by one row at most. Raises UsageError where some would be empty."""
    if number > rows:
        raise UsageError(
            f"training.accumulate: {number} micro-batches of the {rows} rows that a rank has of a batch; "
            f"use at most {rows}"
        )
    ends = [rows * part // number for part in range(number + 1)]
    return [slice(low, high) for low, high in itertools.pairwise(ends)]


def seed_dropout(seed: int, step: int, rank: int, part: int) -> None:
    """Torch's own generators: a pure function of the step as all noise is, another one for every micro-batch."""
    torch.manual_seed((seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + (rank << 20 | part) * DROPOUT) % 2**63)


def differentiate(
    model: Objective,
    batch: Batch,
    noise: Noise,
    share: Share,
    parts: list[slice],
    reseed: Callable[[int], None],
    autocast: torch.autocast,
) -> tuple[LossParts, Terms]:
    """Gradients of the global loss in the weights' ``grad``, summed over ranks; the loss and the terms of all rows.

    The loss is taken of leaves that hold the terms; its gradients there go back through the network, each row's where
    the row was computed. With several micro-batches the network runs twice: first without graph, for terms of all rows,
    then with it for one micro-batch at a time (the loss of micro-batches by themselves is another one wherever
    statistics over rows are taken). reseed: of a micro-batch's number, before each run.

    batch, noise: of this rank's rows, on the device. A loss has no weights of its own.
    """

    def run(number: int) -> Terms:
        reseed(number)
        part = parts[number]
        if len(parts) == 1:
            return model(batch, noise)  # type: ignore[no-any-return]
        found: Terms = model(
            batch.each(lambda tensor: tensor[part]), {name: value[part] for name, value in noise.items()}
        )
        return found

    with autocast:
        if len(parts) == 1:
            each = [run(0)]
            learnt = {name for name, value in each[0].items() if value.requires_grad}
        else:
            with torch.no_grad():
                each = [run(number) for number in range(len(parts))]
            learnt = {name for name, value in each[0].items() if value.is_floating_point()}
        joined = {name: torch.cat([terms[name] for terms in each]) for name in each[0]} if len(parts) > 1 else each[0]
        leaves = {name: value.detach().requires_grad_(name in learnt) for name, value in share.whole(joined).items()}
        loss = model.loss(leaves)
    loss.total.backward()  # type: ignore[no-untyped-call]
    wanted = {name: share.own(leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None}
    for number, part in enumerate(parts):
        if len(parts) == 1:
            terms: Terms = each[0]
        else:
            with autocast:
                terms = run(number)
        ends = [name for name in wanted if terms[name].requires_grad]
        torch.autograd.backward(
            [terms[name] for name in ends],
            [wanted[name] if len(parts) == 1 else wanted[name][part] for name in ends],
        )
    return loss, leaves
