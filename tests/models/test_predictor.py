"""Temporal predictor and moving average."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statevla.models.predictor import TemporalPredictor, ema_momentum, ema_update
from tests.models.build import micro


def test_starts_as_nothing_changes() -> None:
    z = torch.randn(4, 32)
    assert torch.equal(TemporalPredictor(micro().model, 48)(z, torch.randn(4, 7)), z)


def test_moves_once_the_last_layer_has_weights() -> None:
    predictor = TemporalPredictor(micro().model, 48)
    torch.nn.init.normal_(predictor.delta.weight)
    z, action = torch.randn(4, 32), torch.randn(4, 7)
    assert not torch.allclose(predictor(z, action), predictor(z, action + 1))


def test_momentum_end_points_and_middle() -> None:
    assert ema_momentum(0, 1000) == pytest.approx(0.996, abs=1e-15)
    assert ema_momentum(500, 1000) == pytest.approx(0.998, abs=1e-15)
    assert ema_momentum(1000, 1000) == 1.0
    assert ema_momentum(1001, 1000) == 1.0
    assert ema_momentum(0, 1000, start=0.9) == pytest.approx(0.9, abs=1e-15)


@given(step=st.integers(0, 999), start=st.floats(0, 0.9999))
def test_momentum_rises_along_a_half_cosine(step: int, start: float) -> None:
    here, then = ema_momentum(step, 1000, start), ema_momentum(step + 1, 1000, start)
    assert start - 1e-12 <= here <= then <= 1
    assert here == pytest.approx(start + (1 - start) * math.sin(math.pi * step / 2000) ** 2, abs=1e-12)


def test_update_is_a_weighted_mean_of_every_parameter() -> None:
    target, online = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = [
        0.75 * a.detach() + 0.25 * b.detach() for a, b in zip(target.parameters(), online.parameters(), strict=True)
    ]
    kept = [parameter.detach().clone() for parameter in online.parameters()]
    ema_update(target, online, 0.75)
    for got, wanted in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(got.detach(), wanted)
    assert all(torch.equal(a, b) for a, b in zip(online.parameters(), kept, strict=True))


def test_update_end_points() -> None:
    target, online = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    before = target.weight.detach().clone()
    ema_update(target, online, 1.0)
    assert torch.equal(target.weight, before)
    ema_update(target, online, 0.0)
    assert torch.equal(target.weight, online.weight)
