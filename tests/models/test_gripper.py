"""Gripper classifier."""

import pytest
import torch
from torch.nn.functional import silu

from statevla.models.gripper import GripperClassifier, command, is_closing
from tests.models.build import micro


def test_commands_and_labels_are_inverse() -> None:
    gripper = torch.tensor([[-1.0, 1.0, 1.0, -1.0]])
    assert is_closing(gripper).tolist() == [[False, True, True, False]]
    assert torch.equal(command(gripper * 3.7), gripper)
    assert command(torch.zeros(2)).tolist() == [-1.0, -1.0]


def test_logits_by_hand() -> None:
    classifier = GripperClassifier(micro().model)
    z = torch.randn(3, 32)
    w = dict(classifier.layers.named_parameters())
    hidden = silu(z @ w["0.weight"].T + w["0.bias"])
    hidden = silu(hidden @ w["2.weight"].T + w["2.bias"])
    torch.testing.assert_close(classifier(z).squeeze(-1), hidden @ w["4.weight"].T + w["4.bias"])


def test_tokens_tell_it_more_where_asked() -> None:
    classifier = GripperClassifier(micro("model.policy_context=z+tokens").model)
    z, tokens = torch.randn(2, 32), torch.randn(2, 11, 32)
    assert not torch.allclose(classifier(z, tokens), classifier(z, tokens + torch.randn(2, 11, 32)))
    with pytest.raises(ValueError, match="needs the encoder's tokens"):
        classifier(z)
