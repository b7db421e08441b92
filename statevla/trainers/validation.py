"""Loss over the validation split, always with the same noise, and the system's monitors of many rows.

Each rank takes every `world`-th batch whole, so that a loss's statistics over a batch are those of one process; the
batches' values meet at the end and are added in the batches' order.
"""

import torch
from torch import Tensor

from statevla.data.loaders import SplitReader
from statevla.systems.system import Objective
from statevla.trainers.ranks import Ranks
from statevla.trainers.schedule import step_generator

VALIDATION_SEED = 2**31 - 1
MONITOR_ROWS = 2048
"""Rows whose terms the monitors see."""


@torch.no_grad()
def validate(
    model: Objective, reader: SplitReader, device: torch.device, autocast: bool, ranks: Ranks
) -> dict[str, float]:
    """``loss``, its parts, each a mean weighted by what the batches average over, and the monitors; on every rank."""
    model.eval()
    found: list[dict[str, float]] = []
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
        values = {"weight": loss.weight, "loss": loss.total, **loss.parts}
        found.append({name: float(value) for name, value in values.items()})
    found = ranks.in_turn(found)
    watched = ranks.tensors_in_turn(watched, device)
    weights = sum(each["weight"] for each in found)
    names = [name for name in found[0] if name != "weight"]
    means = {name: sum(each[name] * each["weight"] for each in found) / weights for name in names}
    return {**means, **model.monitors({name: torch.cat([terms[name] for terms in watched]) for name in watched[0]})}
