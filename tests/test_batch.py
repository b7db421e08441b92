"""Batches on their way to the training device."""

from dataclasses import replace

import torch

from tests.models.build import batch as make_batch


def test_an_observation_that_stands_for_two_is_copied_once() -> None:
    batch = make_batch(2)
    alone = replace(batch, next_obs=batch.obs)
    meta = torch.device("meta")
    moved = alone.to(meta)
    assert moved.next_obs is moved.obs
    assert moved.obs.images[0].device == meta
    both = batch.to(meta)
    assert both.next_obs is not both.obs
    assert both.chunk.device == both.next_obs.images[0].device == meta
