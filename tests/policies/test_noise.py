"""Noise is a function of (seed, trial, call): of nothing else, and of each of them."""

import itertools

import numpy as np
import pytest
import torch

from statevla.policies.noise import Draw, normal, normal_rows
from stores.errors import UsageError

GOLDEN = (-1.7939295768737793, -0.14745622873306274, 2.251194953918457, 0.5132566094398499)


def test_equal_draws_are_equal_and_others_are_not() -> None:
    draws = [Draw(*numbers) for numbers in itertools.product((0, 1, 2**63), repeat=3)]
    rows = [normal(draw, (10, 6)) for draw in draws]
    for draw, row in zip(reversed(draws), reversed(rows), strict=True):
        np.testing.assert_array_equal(normal(draw, (10, 6)), row)
    assert len({row.tobytes() for row in rows}) == len(draws)


def test_a_row_is_the_same_in_every_batch_and_leaves_other_generators_alone() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draws = [Draw(3, trial, call) for trial in range(4) for call in range(2)]
    together = normal_rows(draws, (10, 6))
    for row, draw in enumerate(draws):
        assert torch.equal(normal_rows([draw], (10, 6))[0], together[row])
    assert torch.equal(before, torch.get_rng_state())


def test_it_is_standard_normal_and_uncorrelated_between_calls() -> None:
    rows = np.stack([normal(Draw(0, 5, call), (2000,)) for call in range(8)])
    assert rows.dtype == np.float32
    assert abs(rows.mean()) < 0.02
    assert rows.std() == pytest.approx(1, abs=0.02)
    assert np.abs(np.corrcoef(rows) - np.eye(8)).max() < 0.1


def test_the_numbers_stay_what_they_are() -> None:
    """An evaluation is repeatable only as long as these do not change."""
    np.testing.assert_allclose(normal(Draw(1, 2, 3), (4,)), GOLDEN, rtol=1e-6)


@pytest.mark.parametrize("draw", [Draw(seed=-1), Draw(trial=2**64), Draw(call=-2)])
def test_numbers_outside_64_bits_are_refused(draw: Draw) -> None:
    with pytest.raises(UsageError, match=r"draw\.(seed|trial|call): expected a whole number"):
        normal(draw, (1,))
