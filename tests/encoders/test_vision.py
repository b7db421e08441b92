"""The backbone that a configuration asks for."""

import torch

from statevla.encoders.vision import load_backbone
from tests.models.build import micro


def test_conv_needs_no_backbone() -> None:
    assert load_backbone(micro().model, torch.device("cpu")) is None
