"""Standardization on tensors is the store's normalization."""

import numpy as np
import pytest
import torch

from statevla.models.standardize import Standardize
from tests.models.build import normalization


@pytest.mark.parametrize(("field", "size"), [("action", 7), ("robot_state", 9)])
def test_agrees_with_the_store_and_inverts(field: str, size: int) -> None:
    statistics = normalization()
    values = np.random.default_rng(0).normal(size=(5, size)).astype(np.float32)
    module = Standardize(field, statistics)
    there = module(torch.from_numpy(values))
    np.testing.assert_allclose(there.numpy(), statistics.normalize(field, values), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(module.inverse(there).numpy(), values, rtol=1e-5, atol=1e-6)


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
