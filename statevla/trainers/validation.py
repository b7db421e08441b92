"""Loss over the validation split, always with the same noise, and the system's monitors of many rows.

Each rank takes every `world`-th batch whole, so that a loss's statistics over a batch are those of one process; the
batches' values meet at the end and are added in the batches' order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from statevla.data.loaders import SplitReader
from statevla.systems.system import Objective
from statevla.trainers.ranks import Ranks
from statevla.trainers.schedule import step_generator

VALIDATION_SEED = 2**31 - 1
MONITOR_ROWS = 2048
"""Rows whose terms the monitors see."""
WEIGHT = "weight"


@torch.no_grad()
def validate(
    model: Objective, reader: SplitReader, device: torch.device, autocast: bool, ranks: Ranks
) -> dict[str, float]:
    """``loss``, its parts, and the monitors; on every rank.

    Parts are means weighted by how many rows or steps they average in each batch, and the loss is the sum of its
    summands' means: so that a mean over rows does not depend on how batches are cut (statistics of a batch do).
    """
    model.eval()
    found: list[list[dict[str, float]]] = []
    watched: list[dict[str, Tensor]] = []
    most = -(-MONITOR_ROWS // reader.batch_size)
    for turn, batch in enumerate(reader.batches(ranks.rank, ranks.world)):
        number = turn * ranks.world + ranks.rank
        noise = model.draw(len(batch), step_generator(VALIDATION_SEED, number))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            terms = model(batch.to(device), {name: value.to(device) for name, value in noise.items()})
            loss = model.loss(terms)
        if number < most:
            watched.append(dict(terms))
        summands = [{WEIGHT: each.weight, "loss": each.total, **each.parts} for each in loss.summands]
        found.append([{name: float(value) for name, value in each.items()} for each in summands])
    found = ranks.in_turn(found)
    watched = ranks.tensors_in_turn(watched, device)
    means = [_means(each) for each in zip(*found, strict=True)]
    values = {name: value for each in means for name, value in each.items()} | {"loss": sum(m["loss"] for m in means)}
    return {**values, **model.monitors({name: torch.cat([terms[name] for terms in watched]) for name in watched[0]})}


def _means(batches: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of one summand; 0 where no batch has a row of it, as it is of one batch."""
    weights = max(sum(each[WEIGHT] for each in batches), 1.0)
    return {name: sum(each[name] * each[WEIGHT] for each in batches) / weights for name in batches[0] if name != WEIGHT}
