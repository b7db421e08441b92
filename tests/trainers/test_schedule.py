"""Learning rate, run length, monitors: closed forms."""

import math

import pytest
import torch

from statevla.config import TrainingConfig
from statevla.models.monitors import rank_me
from statevla.trainers.schedule import learning_rate, step_generator, total_steps


def test_warmup_then_constant() -> None:
    config = TrainingConfig(warmup_steps=4)
    assert [learning_rate(s, 10, 0.8, config) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_warmup_then_cosine_to_zero() -> None:
    config = TrainingConfig(warmup_steps=2, schedule="cosine")
    rates = [learning_rate(s, 12, 1.0, config) for s in (1, 2, 7, 12)]
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.0])
    assert learning_rate(4, 12, 1.0, config) == pytest.approx((1 + math.cos(math.pi * 0.2)) / 2)


@pytest.mark.parametrize(("limit", "steps"), [(None, 30), (7, 7), (50, 30)])
def test_epochs_and_max_steps_both_bound_a_run(limit: int | None, steps: int) -> None:
    assert total_steps(3, 10, limit) == steps


def test_noise_depends_on_seed_and_step_only() -> None:
    draws = {(s, t): torch.rand(3, generator=step_generator(s, t)).tolist() for s in (0, 1) for t in (0, 1, 2)}
    assert len({tuple(values) for values in draws.values()}) == 6
    assert torch.rand(3, generator=step_generator(1, 2)).tolist() == draws[1, 2]


def test_rank_counts_directions() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(40, 3))[0]
    assert rank_me(basis @ torch.linalg.qr(torch.randn(16, 3))[0].T) == pytest.approx(3, abs=0.01)
    assert rank_me(torch.ones(40, 16)) == pytest.approx(1, abs=0.01)
