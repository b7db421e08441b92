"""Standardization on tensors is the store's normalization."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from statevla.models.standardize import Standardize
from tests.models.build import normalization, standardized


@pytest.mark.parametrize(("field", "size"), [("action", 7), ("robot_state", 9)])
def test_agrees_with_the_store_and_inverts(field: str, size: int) -> None:
    values = np.random.default_rng(0).normal(size=(5, size)).astype(np.float32)
    module = Standardize(field, normalization())
    there = module(torch.from_numpy(values))
    np.testing.assert_allclose(there.numpy(), standardized(field, values), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(module.inverse(there).numpy(), values, rtol=1e-5, atol=1e-6)


def test_a_constant_dimension_comes_back_as_its_constant_whatever_a_model_says() -> None:
    moving = normalization()
    still = {name: tuple(0.1 if d == 3 else v for d, v in enumerate(getattr(moving.action, name)))
             for name in ("mean", "min", "max", "q01", "q99")}  # fmt: skip
    spread = tuple(0.0 if d == 3 else v for d, v in enumerate(moving.action.std))
    module = Standardize("action", replace(moving, action=replace(moving.action, std=spread, **still)))
    said = 10 * torch.randn(5, 7)
    assert module.inverse(said)[:, 3].tolist() == [torch.tensor(0.1).item()] * 5
    assert module(torch.full((1, 7), 0.1))[0, 3] == 0.0
    assert torch.isfinite(module(said)).all()


def test_the_gripper_is_never_normalized() -> None:
    action = torch.tensor([[0.1, -0.2, 0.3, 0.0, 0.5, -0.6, -1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    there = Standardize("action", normalization())(action)
    assert there[:, 6].tolist() == [-1.0, 1.0]
    assert not torch.isclose(there[:, :6], action[:, :6]).any()


def test_statistics_travel_in_the_state_dict() -> None:
    trained, fresh = Standardize("action", normalization()), Standardize("action", None)
    fresh.load_state_dict(trained.state_dict())
    action = torch.randn(4, 7)
    assert torch.equal(fresh(action), trained(action))
    assert not list(trained.parameters())
