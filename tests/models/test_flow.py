"""Flow matching: path, velocity, sampler, network."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import silu

from statevla.models.flow import (
    FlowPolicy,
    GatedMlp,
    euler,
    interpolate,
    sampling_times,
    sinusoid,
    velocity_target,
)
from tests.models.build import micro


def test_path_runs_from_data_to_noise() -> None:
    clean, noise = torch.randn(3, 10, 6), torch.randn(3, 10, 6)
    assert torch.equal(interpolate(clean, noise, torch.zeros(3)), clean)
    assert torch.equal(interpolate(clean, noise, torch.ones(3)), noise)


def test_velocity_takes_any_point_of_the_path_to_both_ends() -> None:
    clean, noise, sigma = torch.randn(8, 10, 6), torch.randn(8, 10, 6), torch.rand(8)
    x, velocity, level = interpolate(clean, noise, sigma), velocity_target(clean, noise), sigma[:, None, None]
    torch.testing.assert_close(x - level * velocity, clean)
    torch.testing.assert_close(x + (1 - level) * velocity, noise)


def test_velocity_is_the_paths_derivative() -> None:
    clean, noise = torch.randn(2, 10, 6).double(), torch.randn(2, 10, 6).double()
    sigma, h = torch.full((2,), 0.4).double(), 1e-6
    slope = (interpolate(clean, noise, sigma + h) - interpolate(clean, noise, sigma - h)) / (2 * h)
    torch.testing.assert_close(slope, velocity_target(clean, noise))


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_euler_on_fields_with_known_solutions(steps: int) -> None:
    noise, point = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    constant = euler(lambda x, sigma: torch.full_like(x, 0.5), noise, sampling_times(steps))
    torch.testing.assert_close(constant, noise - 0.5)
    linear = euler(lambda x, sigma: x, noise, sampling_times(steps))  # dx/dσ = x: Euler's own closed form
    torch.testing.assert_close(linear, noise * (1 - 1 / steps) ** steps)
    to_a_point = euler(lambda x, sigma: (x - point) / sigma, noise, sampling_times(steps))  # straight lines: exact
    torch.testing.assert_close(to_a_point, point, rtol=1e-5, atol=1e-5)


def test_euler_visits_the_designs_times() -> None:
    seen: list[float] = []

    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.append(float(sigma))
        return torch.zeros_like(x)

    euler(velocity, torch.zeros(1, 10, 6), sampling_times(4))
    assert seen == [1.0, 0.75, 0.5, 0.25]


def test_sinusoid_by_hand() -> None:
    sigma = np.array([0.0, 0.01, 0.25, 1.0])
    got = sinusoid(torch.tensor(sigma, dtype=torch.float32), 8).numpy()
    for row, level in enumerate(sigma):
        for i in range(4):
            period = 0.004 * 1000 ** (i / 3)
            assert got[row, i] == pytest.approx(math.sin(2 * math.pi * level / period), abs=2e-4)
            assert got[row, 4 + i] == pytest.approx(math.cos(2 * math.pi * level / period), abs=2e-4)


def test_sinusoid_tells_the_sampling_times_apart() -> None:
    """Every frequency pair moves on [0, 1], the slowest by a quarter turn."""
    width = 256
    levels = sinusoid(torch.linspace(0, 1, 1001), width)
    reach = levels.amax(0) - levels.amin(0)
    assert reach.min() > 0.99


def test_gated_mlp_by_hand() -> None:
    mlp = GatedMlp(32, 16)
    x = torch.randn(2, 3, 32)
    y = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mlp.norm.weight
    expected = x + (silu(y @ mlp.gate.weight.T) * (y @ mlp.up.weight.T)) @ mlp.down.weight.T
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize("overrides", [(), ("model.policy_mlp=16",), ("model.policy_context=z+tokens",)])
def test_velocity_depends_on_everything_but_later_actions(overrides: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    policy = FlowPolicy(micro(*overrides).model)
    noisy, sigma, z, tokens = torch.randn(2, 10, 6), torch.rand(2), torch.randn(2, 32), torch.randn(2, 11, 32)
    velocity = policy(noisy, sigma, z, tokens)
    assert velocity.shape == (2, 10, 6)
    changed = noisy.clone()
    changed[:, 5] += 1
    other = policy(changed, sigma, z, tokens)
    assert torch.equal(velocity[:, :5], other[:, :5])
    assert not torch.allclose(velocity[:, 5:], other[:, 5:])
    assert not torch.allclose(velocity, policy(noisy, sigma + 0.1, z, tokens))
    assert not torch.allclose(velocity, policy(noisy, sigma, z + 1, tokens))
    looks_at_tokens = not torch.allclose(velocity, policy(noisy, sigma, z, tokens + torch.randn(2, 11, 32)))
    assert looks_at_tokens == ("model.policy_context=z+tokens" in overrides)


def test_tokens_are_required_where_they_are_context() -> None:
    policy = FlowPolicy(micro("model.policy_context=z+tokens").model)
    with pytest.raises(ValueError, match="needs the encoder's tokens"):
        policy(torch.randn(2, 10, 6), torch.rand(2), torch.randn(2, 32))


def test_of_gaussian_data_a_line_fitted_to_the_loss_is_the_closed_form() -> None:
    """Data N(m, s²): v*(x, σ) = [σ - (1 - σ) s²] / V (x - (1 - σ) m) - m, V = (1 - σ)² s² + σ², and the loss that it
    leaves is s² / V.
    """
    mean, deviation, rows = 0.7, 1.6, 400_000
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(rows, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    clean = mean + deviation * clean
    for level in (0.1, 0.5, 0.9):
        x = interpolate(clean, noise, torch.full((rows,), level, dtype=torch.float64)).flatten()
        wanted = velocity_target(clean, noise).flatten()
        columns = torch.stack([x, torch.ones_like(x)], dim=1)
        slope, offset = torch.linalg.lstsq(columns, wanted[:, None]).solution.flatten().tolist()
        variance = (1 - level) ** 2 * deviation**2 + level**2
        closed = (level - (1 - level) * deviation**2) / variance
        assert slope == pytest.approx(closed, abs=0.01)
        assert offset == pytest.approx(-closed * (1 - level) * mean - mean, abs=0.01)
        left = (columns @ torch.tensor([slope, offset], dtype=torch.float64) - wanted).square().mean().item()
        assert left == pytest.approx(deviation**2 / variance, rel=0.02)
