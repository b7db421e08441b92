"""Loss terms against plain NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statevla.models.losses import VARIANCE_EPS, masked_bce, masked_mse, mean_std, sigreg, variance_covariance


def vicreg(z: np.ndarray) -> tuple[float, float]:
    """Bardes et al. 2022 by loops, float64."""
    rows, width = z.shape
    mean = [sum(z[b, i] for b in range(rows)) / rows for i in range(width)]
    variance, covariance = 0.0, 0.0
    for i in range(width):
        for j in range(width):
            c = sum((z[b, i] - mean[i]) * (z[b, j] - mean[j]) for b in range(rows)) / (rows - 1)
            if i == j:
                variance += max(0.0, 1 - np.sqrt(c + VARIANCE_EPS)) / width
            else:
                covariance += c**2 / width
    return variance, covariance


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 8), width=st.integers(1, 5), scale=st.floats(0.01, 3), seed=st.integers(0, 99))
def test_variance_and_covariance_over_kept_rows(rows: int, width: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(2, scale, (rows + 3, width)).astype(np.float32)
    keep = np.array([True] * rows + [False] * 3)
    order = rng.permutation(rows + 3)
    z, keep = z[order], keep[order]
    variance, covariance = variance_covariance(torch.from_numpy(z), torch.from_numpy(keep))
    expected = vicreg(z[keep].astype(np.float64))
    assert float(variance) == pytest.approx(expected[0], rel=1e-4, abs=1e-5)
    assert float(covariance) == pytest.approx(expected[1], rel=1e-3, abs=1e-5)
    spread = z[keep].astype(np.float64).std(axis=0, ddof=1).mean()
    assert float(mean_std(torch.from_numpy(z), torch.from_numpy(keep))) == pytest.approx(spread, rel=1e-4)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_have_no_deviation(rows: int) -> None:
    z = torch.randn(4, 3, requires_grad=True)
    variance, covariance = variance_covariance(z, torch.arange(4) < rows)
    (variance + covariance).backward()
    assert variance.item() == covariance.item() == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_collapsed_states_still_have_a_finite_gradient() -> None:
    z = torch.ones(4, 3, requires_grad=True)
    variance, _ = variance_covariance(z, torch.ones(4, dtype=torch.bool))
    variance.backward()
    assert variance.item() == pytest.approx(1 - VARIANCE_EPS**0.5)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_terms_stay_in_float32_under_autocast() -> None:
    z = torch.randn(64, 16)
    keep = torch.ones(64, dtype=torch.bool)
    plain = variance_covariance(z, keep)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = variance_covariance(z, keep)
        assert masked_mse(z.bfloat16(), z, keep).dtype == torch.float32
    assert torch.equal(plain[0], inside[0])
    assert torch.equal(plain[1], inside[1])


def test_masked_means_by_numpy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
    keep = rng.random((4, 5)) > 0.4
    got = masked_mse(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(keep))
    assert float(got) == pytest.approx(float(((a - b)[keep] ** 2).mean()), rel=1e-5)
    logits, wanted = a[..., 0], b[..., 0] > 0
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -np.log(np.where(wanted, probability, 1 - probability))[keep].mean()
    bce = masked_bce(torch.from_numpy(logits), torch.from_numpy(wanted), torch.from_numpy(keep))
    assert float(bce) == pytest.approx(expected, rel=1e-5)


def test_nothing_kept_gives_zero_not_nan() -> None:
    values = torch.randn(3, 2)
    nothing = torch.zeros(3, dtype=torch.bool)
    assert float(masked_mse(values, values + 1, nothing)) == 0
    assert float(masked_bce(values[:, 0], nothing, nothing)) == 0


def epps_pulley(z: np.ndarray, directions: np.ndarray) -> float:
    """SIGReg by its definition: complex characteristic functions, and NumPy's own trapezoid rule."""
    t, found = np.linspace(-5, 5, 17), []
    for axis in directions:
        along = z @ (axis / np.linalg.norm(axis))
        empirical = np.array([np.exp(1j * point * along).mean() for point in t])
        found.append(len(z) * np.trapezoid(np.abs(empirical - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2), t))
    return float(np.mean(found))


def test_sigreg_by_its_definition_over_kept_rows() -> None:
    rng = np.random.default_rng(3)
    z, directions = rng.normal(0.5, 2, (12, 5)), rng.normal(size=(7, 5))
    keep = rng.permutation(12) < 9
    found = sigreg(torch.from_numpy(z), torch.from_numpy(keep), torch.from_numpy(directions))
    assert float(found) == pytest.approx(epps_pulley(z[keep], directions), rel=1e-4)
    assert float(sigreg(torch.from_numpy(z), torch.zeros(12, dtype=torch.bool), torch.from_numpy(directions))) == 0


def test_sigreg_is_least_for_normal_states() -> None:
    torch.manual_seed(0)
    keep, directions = torch.ones(256, dtype=torch.bool), torch.randn(64, 8)
    normal = torch.randn(256, 8)
    others = (normal * 0.1, normal + 2, torch.zeros(256, 8), (normal > 0).float() * 4 - 2, normal[:, :1].expand(256, 8))
    least = float(sigreg(normal, keep, directions))
    assert all(float(sigreg(z, keep, directions)) > 3 * least for z in others)
