"""What a system takes from the train split once, before its first step (`Objective.fit`), by the views that it is
trained from; where it takes kept states (`Needs.states`), these alone.
"""

import itertools
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

import torch

from statevla.data.loaders import SplitReader
from statevla.data.sequential import SequentialLoader
from statevla.data.views import Ints

if TYPE_CHECKING:
    from statevla.trainers.run import Run


class Unseen:
    """The view of those who take kept states alone: no picture is opened for them."""

    def observe(self, rows: Ints, pin: bool, pool: Executor) -> dict[str, Any]:
        return {}


def fit_to_data(run: "Run") -> None:
    """Every rank sees the same rows, from all over the split."""
    rows = run.model.fit_rows
    if not rows:
        return
    training, model = run.config.training, run.model
    run.say(f"sees up to {rows} transitions of the train split, for the scale of what it foretells")
    reader = SplitReader(
        run.store, "train", training.batch_size, run.config.model.action_seq_len, run.config.data,
        needs=model.needs, seed=training.seed, mixed=True,
    )  # fmt: skip
    if not isinstance(run.loader, SequentialLoader):
        reader.source.view = Unseen() if model.needs.states else run.loader.source.view
        reader.source.beside = run.loader.source.beside
    batches = itertools.islice(reader.batches(), -(-rows // training.batch_size))
    with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.autocast):
        model.fit(batch.to(run.device) for batch in batches)
