"""The Mamba benchmark returns what every benchmark returns, and its contenders compute what they claim."""

import pytest
import torch

from statevla.bench import mamba
from statevla.models.kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.load()}")


@pytest.mark.slow
def test_quick_run_has_every_figure() -> None:
    report = mamba.bench_mamba(quick=True, peers=False)
    assert set(report) == {"name", "unit", "ours", "limit", "ratio", "peers", "machine", "details"}
    assert report["ratio"] == pytest.approx(report["limit"] / report["ours"])
    assert report["details"]["error_against_float64"]["output"] < 1e-6
    assert report["details"]["error_against_float64"]["gradients"] < 5e-6


def test_the_floor_does_all_but_the_scan() -> None:
    torch.manual_seed(0)
    floor = mamba._Floor(mamba.WIDTH)
    floor(torch.randn(1, 6, mamba.WIDTH)).sum().backward()
    untouched = {name for name, p in floor.named_parameters() if p.grad is None}
    assert untouched == {"A_log", "D"}


def test_peers_hold_as_many_parameters_as_we_do() -> None:
    ours = sum(p.numel() for p in mamba.Mamba(mamba.WIDTH).parameters())
    for make in (mamba._mambapy, mamba._transformers):
        try:
            layer = make()
        except ImportError as error:
            pytest.skip(str(error))
        assert sum(p.numel() for p in layer.parameters()) == ours
