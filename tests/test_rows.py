"""Views by frame: what is far is asked for once a segment, before it is read; what is near is not asked for at all."""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statevla.data.loaders import SegmentLoader
from statevla.data.needs import NOW
from statevla.data.views import Ints
from stores.reader import Store
from tests.stores.make_store import make_tiny_store
from tests.test_loaders import CHUNK, DATA


@dataclasses.dataclass
class Watched:
    """Frames' own numbers as states; notes what is brought near, and that nothing is read before."""

    is_far: bool
    asked: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def observe(self, rows: Ints, pin: bool, pool: Executor) -> Mapping[str, Any]:
        near = {row for start, stop in self.asked for row in range(start, stop)}
        assert not self.is_far or set(rows.tolist()) <= near
        return {"latent": torch.from_numpy(rows[:, None].astype(np.float32))}

    def fetch(self, start: int, stop: int) -> None:
        self.asked.append((start, stop))


@pytest.mark.parametrize("far", [True, False])
def test_what_is_near_is_not_asked_for(tmp_path: Path, far: bool) -> None:
    make_tiny_store(tmp_path / "store", episodes=8, frames=21, image=16, window=8, chunk=CHUNK)
    store = Store.open(tmp_path / "store")
    loader = SegmentLoader(store, "train", 8, 3, DATA, CHUNK, NOW)
    view = Watched(far)
    loader.source.view = view  # type: ignore[assignment]
    batches = loader.batches()
    seen = [next(batches)[1].obs.latent for _ in range(loader.batches_per_epoch)]
    batches.close()
    assert torch.cat(seen).unique().numel() == sum(map(len, seen))  # type: ignore[arg-type]
    assert bool(view.asked) is far
    if far:
        assert len(set(view.asked)) >= len(loader.segments)
