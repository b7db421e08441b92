"""The measure of mixing: a full shuffle is the limit, one lane of one segment the worst."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.bench.table import BenchOptions, run_bench
from statevla.bench.order import bench_order, losses_of_frames
from statevla.data.batch import ObservationBatch
from statevla.data.frames import make_table
from statevla.models.standardize import Standardize
from statevla.policies.noise import Draw
from statevla.systems.acting import Acted
from stores.errors import UsageError
from stores.reader import Store
from tests.stores.make_store import make_tiny_store


def test_more_lanes_and_larger_blocks_mix_more(tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "store", episodes=16, frames=33, image=16, window=8)
    result = bench_order(tmp_path / "store", batch_size=8, threads=1)
    found = result["details"]
    narrow, wide = found["1 lanes of 16 segments"], found["8 lanes of 1 segments"]
    assert (narrow["lanes_used"], wide["lanes_used"]) == (1, 8)
    assert wide["segments"] == 8 > narrow["segments"]  # a row of every lane
    assert narrow["megabytes_held"] == pytest.approx(2 * wide["megabytes_held"])
    assert found["full shuffle"]["variance_ratio"] == pytest.approx(1, abs=0.6)
    assert result["ratio"] == result["ours"] / result["limit"]
    plain = bench_order(tmp_path / "store", batch_size=8, pictures=False)["details"]
    assert plain["8 lanes of 16 segments"]["segments"] == found["8 lanes of 16 segments"]["segments"]
    assert "variance_ratio" not in plain["full shuffle"]
    assert set(found["seconds_to_first_batch"]) == {"beginning", "middle", "end"}
    with pytest.raises(UsageError, match="too few for two batches"):
        bench_order(tmp_path / "store", batch_size=4096, threads=1)


class Knowing:
    """Knows every other episode by heart, and is wrong by one standard deviation of each dimension in the rest."""

    chunk = 10
    content_hash = ""

    def __init__(self, store: Store) -> None:
        self.obs_spec = store.spec
        self.standardize_action = Standardize("action", store.stats(), store.spec)
        self.table = make_table(store, self.chunk)
        self.actions = store.numbers["action"].read(0, store.manifest.counts["frames"])

    def act_batch(self, obs: ObservationBatch, draws: Sequence[Draw]) -> Acted:
        chunks = []
        for draw in draws:
            last = self.table.episode_steps[draw.trial] - 1
            steps = np.minimum(np.arange(draw.call, draw.call + self.chunk), last)
            chunks.append(self.actions[self.table.first_frame[draw.trial] + steps])
        wrong = torch.tensor([[[draw.trial % 2]] for draw in draws])
        return Acted(torch.from_numpy(np.stack(chunks)) + wrong * self.standardize_action.scale, None)


def test_the_losses_of_a_batch_are_told_by_their_variance(tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "store", episodes=16, frames=33, image=16, window=8)
    store = Store.open(tmp_path / "store")
    policy, episodes = Knowing(store), store.episode_columns
    losses = losses_of_frames(store, policy, 8)
    for number, first, steps, split in zip(
        episodes["episode"], episodes["first_frame"], episodes["steps"], episodes["split"].astype(str), strict=True
    ):
        told = losses[first : first + steps]
        assert np.isnan(told).all() if split == "val" else told == pytest.approx(number % 2, abs=1e-5)
        assert np.isnan(losses[first + steps : first + episodes["frames"][number]]).all()
    found = bench_order(store, batch_size=8, pictures=False, policy=policy)["details"]
    neighbours, mixed = found["1 lanes of 16 segments"], found["full shuffle"]
    assert mixed["loss_variance_ratio"] == pytest.approx(1, abs=0.6)
    for each in (neighbours, mixed):
        assert each["loss_correlation"] == pytest.approx((each["loss_variance_ratio"] - 1) / 7)


def test_losses_need_a_store_with_pictures(tmp_path: Path) -> None:
    options = BenchOptions(None, None, tmp_path, 0, segments=320)
    with pytest.raises(UsageError, match="--segments makes a store without pictures"):
        run_bench("order", options)
