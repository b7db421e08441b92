"""Context encoder: causal, last token, state projection."""

import pytest
import torch

from statevla.models.encoder import ContextEncoder, StateEncoder
from tests.models.build import micro, normalization, observations


@pytest.mark.parametrize("position", [0, 4, 9])
def test_a_token_changes_nothing_before_it(position: int) -> None:
    torch.manual_seed(0)
    encoder = ContextEncoder(micro().model)
    tokens = torch.randn(2, 10, 32)
    changed = tokens.clone()
    changed[:, position] += 1
    before, after = encoder(tokens), encoder(changed)
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.allclose(before[:, position], after[:, position])
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_two_final_norms_by_hand() -> None:
    encoder = ContextEncoder(micro().model)
    with torch.no_grad():
        for parameter in (encoder.final_norm.weight, encoder.output_norm.weight, encoder.output_norm.bias):
            parameter.uniform_(0.5, 1.5)
    stream = torch.randn(2, 3, 32, dtype=torch.float64)
    rms = stream / (stream.square().mean(-1, keepdim=True) + 1e-5).sqrt() * encoder.final_norm.weight
    centred = rms - rms.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = centred / deviation * encoder.output_norm.weight + encoder.output_norm.bias
    torch.testing.assert_close(encoder.finish(stream.float()).double(), expected.double(), rtol=1e-5, atol=1e-5)


def test_state_is_the_projected_last_token() -> None:
    encoder = StateEncoder(micro().model, normalization())
    obs = observations(3)
    z, tokens = encoder(obs)
    assert z.shape == (3, 32)
    assert tokens.shape == (3, 11, 32)
    torch.testing.assert_close(encoder.state_projection(tokens[:, -1]), z)
    torch.testing.assert_close(encoder.state(obs), z)


def test_every_modality_reaches_the_state() -> None:
    encoder = StateEncoder(micro().model)
    obs = observations(2)
    language, robot = obs.language.requires_grad_(), obs.robot_state.requires_grad_()
    encoder.state(obs).square().sum().backward()
    assert language.grad is not None
    assert robot.grad is not None
    assert (language.grad.abs().sum(1) > 0).all()
    assert (robot.grad.abs().sum(1) > 0).all()
    for camera in (0, 1):
        weight = encoder.tokenizer.get_parameter(f"vision.cameras.{camera}.weight")
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
