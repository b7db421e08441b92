"""What a system takes from the train split once, before its first step (`Objective.fit`), by the views that it is
trained from.
"""

import itertools
from typing import TYPE_CHECKING

import torch

from statevla.data.loaders import SplitReader
from statevla.data.sequential import SequentialLoader

if TYPE_CHECKING:
    from statevla.trainers.trainer import Run


def fit_to_data(run: "Run") -> None:
    """Every rank sees the same rows, from all over the split; then all have what the first has found."""
    rows = run.model.fit_rows
    if not rows:
        return
    training, model = run.config.training, run.model
    run.report(0, f"sees up to {rows} transitions of the train split, for the scale of what it foretells")
    reader = SplitReader(
        run.store, "train", training.batch_size, run.config.model.action_seq_len, run.config.data,
        needs=model.needs, seed=training.seed, mixed=True,
    )  # fmt: skip
    if not isinstance(run.loader, SequentialLoader):
        reader.source.view, reader.source.beside = run.loader.source.view, run.loader.source.beside
    batches = itertools.islice(reader.batches(), -(-rows // training.batch_size))
    with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.autocast):
        model.fit(batch.to(run.device) for batch in batches)
    run.ranks.copy_from_first_(model.state_dict().values())
