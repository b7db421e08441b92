"""Loss over the validation split, always with the same noise, and the system's monitors of many rows."""

import torch
from torch import Tensor

from statevla.data.loaders import SplitReader
from statevla.systems.system import Objective
from statevla.trainers.schedule import step_generator

VALIDATION_SEED = 2**31 - 1
MONITOR_ROWS = 2048
"""Rows whose terms the monitors see."""


@torch.no_grad()
def validate(model: Objective, reader: SplitReader, device: torch.device, autocast: bool) -> dict[str, float]:
    """``loss``, its parts, each a mean weighted by what the batches average over, and the monitors."""
    model.eval()
    sums: dict[str, float] = {}
    weights, rows = 0.0, 0
    watched: list[dict[str, Tensor]] = []
    for number, batch in enumerate(reader.batches()):
        noise = model.draw(len(batch), step_generator(VALIDATION_SEED, number))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            terms = model(batch.to(device), {name: value.to(device) for name, value in noise.items()})
            loss = model.loss(terms)
        if rows < MONITOR_ROWS:
            watched.append(dict(terms))
            rows += len(batch)
        weight = float(loss.weight)
        weights += weight
        for name, value in {"loss": loss.total, **loss.parts}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * weight
    values = {name: value / weights for name, value in sums.items()}
    return {**values, **model.monitors({name: torch.cat([terms[name] for terms in watched]) for name in watched[0]})}
