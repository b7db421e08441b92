"""The Mamba layer: parameters, backends that agree, causality, steps, and what a compiler may do with it."""

import logging
import math
import subprocess
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from statevla.models.kernels import backends, native, reference
from statevla.models.mamba import Mamba
from stores.errors import UsageError

needs_native = pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.load()}")
CPU = ["loop", "reference", pytest.param("cpu", marks=needs_native)]


def outputs(layer: Mamba, x: Tensor, backend: str) -> list[Tensor]:
    """Output, gradient of the input, gradients of the parameters of a fixed nonlinear function."""
    layer.backend = backend
    layer.zero_grad()
    x = x.detach().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) + y * y).sum().backward()
    gradients = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    assert x.grad is not None
    return [y.detach(), x.grad, *gradients]


def test_state_dict_is_that_of_mamba_ssm() -> None:
    """Names and shapes as `mamba_ssm.Mamba(256)` 2.2 has them: inner width 512, 16 states, rank 16."""
    expected = {
        "A_log": (512, 16),
        "D": (512,),
        "in_proj.weight": (1024, 256),
        "conv1d.weight": (512, 1, 4),
        "conv1d.bias": (512,),
        "x_proj.weight": (48, 512),
        "dt_proj.weight": (512, 16),
        "dt_proj.bias": (512,),
        "out_proj.weight": (256, 512),
    }
    layer = Mamba(256)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == expected
    theirs = {name: torch.randn(shape) for name, shape in expected.items()}
    layer.load_state_dict(theirs, strict=True)
    assert all(torch.equal(value, theirs[name]) for name, value in layer.state_dict().items())


def test_parameter_count_of_the_context_encoder() -> None:
    per_layer = sum(p.numel() for p in Mamba(256, d_state=16, d_conv=4, expand=2).parameters())
    assert 12 * (per_layer + 256) + 256 + 2 * 256 == 5_256_960  # with RMSNorm each, final RMSNorm and LayerNorm


@given(seed=st.integers(0, 2**31), states=st.integers(1, 64), width=st.integers(1, 40))
@settings(max_examples=12, deadline=None)
def test_initial_values(seed: int, states: int, width: int) -> None:
    torch.manual_seed(seed)
    layer = Mamba(width, d_state=states, dt_min=0.002, dt_max=0.05)
    dt = torch.nn.functional.softplus(layer.dt_proj.bias.double())
    assert dt.min() >= 0.002 * (1 - 1e-4)
    assert dt.max() <= 0.05 * (1 + 1e-4)
    wanted = torch.arange(1, states + 1).double().log().expand(2 * width, states)
    torch.testing.assert_close(layer.A_log.double(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(layer.D, torch.ones(2 * width))
    assert layer.dt_rank == math.ceil(width / 16)
    assert layer.dt_proj.weight.abs().max() <= layer.dt_rank**-0.5


def test_the_same_seed_draws_the_same_weights_whatever_the_backend() -> None:
    torch.manual_seed(3)
    first = Mamba(8, backend="loop").state_dict()
    torch.manual_seed(3)
    second = Mamba(8, backend="auto").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 50),
    width=st.integers(1, 24),
    states=st.sampled_from([1, 3, 16, 64]),
    taps=st.integers(1, 5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize("backend", ["loop", pytest.param("cpu", marks=needs_native)])
def test_every_backend_is_the_reference(
    backend: str,
    batch: int,
    length: int,
    width: int,
    states: int,
    taps: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    layer = Mamba(width, d_state=states, d_conv=taps).to(dtype)
    x = torch.randn(batch, length, width).to(dtype)
    ours = outputs(layer, x, backend)
    exact = outputs(layer.double(), x.double(), "reference")
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2}[dtype]
    for got, want in zip(ours, exact, strict=True):
        error = (got.double() - want).abs().max() / want.abs().max().clamp(min=0.3)
        assert error.item() <= limit


@pytest.mark.parametrize("backend", CPU)
def test_gradcheck_of_the_whole_layer(backend: str) -> None:
    torch.manual_seed(0)
    layer = Mamba(6, d_state=3, backend=backend).double()
    x = torch.randn(2, 18, 6, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("changed", [0, 7, 16, 39])
def test_an_output_depends_on_no_later_input(backend: str, changed: int) -> None:
    torch.manual_seed(0)
    layer = Mamba(10, backend=backend)
    x = torch.randn(2, 40, 10)
    other = x.clone()
    other[:, changed:] += 1.0
    before, after = layer(x), layer(other)
    torch.testing.assert_close(before[:, :changed], after[:, :changed], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(before[:, changed], after[:, changed], atol=1e-4)


@pytest.mark.parametrize("backend", CPU)
def test_no_sequence_and_no_step(backend: str) -> None:
    torch.manual_seed(0)
    layer = Mamba(6, d_state=3)
    for shape in ((0, 5, 6), (2, 0, 6)):
        y, dx, *gradients = outputs(layer, torch.randn(shape), backend)
        assert y.shape == dx.shape == shape
        assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("backend", ["loop", pytest.param("cpu", marks=needs_native)])
def test_one_step_and_inputs_apart_in_memory(backend: str) -> None:
    torch.manual_seed(0)
    layer = Mamba(6, d_state=3)
    x = torch.randn(6, 4, 2).permute(2, 1, 0)
    for part in (x[:, :1], x[:, ::2], x):
        exact = outputs(layer, part.contiguous(), "reference")
        for got, want in zip(outputs(layer, part, backend), exact, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["loop", pytest.param("cpu", marks=needs_native)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_reaches_what_it_reaches_in_the_reference(backend: str, value: float) -> None:
    torch.manual_seed(0)
    layer = Mamba(6, d_state=3)
    x = torch.randn(2, 40, 6)
    x[1, 20, 4] = value
    ours, exact = outputs(layer, x, backend), outputs(layer, x, "reference")
    assert exact[0][0].isfinite().all()
    assert exact[0][1, :20].isfinite().all()
    assert not exact[0][1, 20:].isfinite().any()
    assert torch.equal(ours[0].isfinite(), exact[0].isfinite())
    assert torch.equal(ours[1].isfinite(), exact[1].isfinite())


@needs_native
def test_autocast_runs_the_kernels_in_bfloat16() -> None:
    torch.manual_seed(0)
    layer = Mamba(16, backend="cpu")
    x = torch.randn(2, 30, 16)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(x)
    assert mixed.dtype == torch.bfloat16
    mixed.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    torch.testing.assert_close(mixed.float(), exact, rtol=0.1, atol=0.02)


@needs_native
def test_inference_keeps_nothing_and_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    layer = Mamba(16, backend="cpu")
    x = torch.randn(2, 30, 16)
    with torch.no_grad():
        quiet = layer(x)
    assert torch.equal(quiet, layer(x))


COMPILES = """
import torch
from statevla.models.mamba import Mamba
torch.manual_seed(0)
layer = Mamba(8, d_state=4, backend="cpu")
x = torch.randn(2, 20, 8)
compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
y = compiled(x)
torch.testing.assert_close(y, layer(x))
y.sum().backward()
ours = [p.grad.clone() for p in layer.parameters()]
layer.zero_grad()
layer(x).sum().backward()
for got, p in zip(ours, layer.parameters(), strict=True):
    torch.testing.assert_close(got, p.grad)
print("the same")
"""


@needs_native
def test_compiles_whole_with_gradients() -> None:
    """In a process of its own: the type checks that pytest installs are nothing a compiler can trace."""
    run = subprocess.run([sys.executable, "-c", COMPILES], capture_output=True, text=True, check=False)
    assert run.stdout == "the same\n", run.stderr


EXPORTS = """
import torch
from statevla.models.mamba import Mamba
torch.manual_seed(0)
layer = Mamba(8, d_state=4, backend="cpu").eval()
batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=1024)
program = torch.export.export(layer, (torch.randn(2, 20, 8),), dynamic_shapes=({0: batch, 1: length},))
x = torch.randn(5, 33, 8)
torch.testing.assert_close(program.module()(x), layer(x))
print("the same")
"""


@needs_native
def test_exports_with_a_free_batch_and_length() -> None:
    """In a process of its own, for the same reason."""
    run = subprocess.run([sys.executable, "-c", EXPORTS], capture_output=True, text=True, check=False)
    assert run.stdout == "the same\n", run.stderr


def test_the_call_of_mamba_ssm_fits_its_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the signature of mamba-ssm 2.2 and 2.3 (channels before time, the output projection inside), made
    of our reference: the layer with it, output and all gradients, is the layer without.
    """

    def mamba_inner_fn(
        xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor, x_proj_weight: Tensor, delta_proj_weight: Tensor,
        out_proj_weight: Tensor, out_proj_bias: Tensor | None, A: Tensor, B: None = None, C: None = None,
        D: Tensor | None = None, delta_bias: Tensor | None = None, B_proj_bias: None = None, C_proj_bias: None = None,
        delta_softplus: bool = True, checkpoint_lvl: int = 1,
    ) -> Tensor:  # fmt: skip
        assert xz.stride(-1) == 1
        assert out_proj_bias is None
        assert delta_bias is not None
        assert D is not None
        assert {A.dtype, D.dtype, delta_bias.dtype} == {torch.float32}
        assert (A < 0).all()
        parameters = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, delta_bias, (-A).log(), D)
        return reference.inner(xz.mT, *parameters) @ out_proj_weight.T

    scan = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    monkeypatch.setattr(scan, "mamba_inner_fn", mamba_inner_fn, raising=False)
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, scan.__name__, scan)
    torch.manual_seed(0)
    layer = Mamba(12, d_state=5, backend="reference")
    x = torch.randn(2, 9, 12, requires_grad=True)
    weight = torch.randn(2, 9, 12)

    def results() -> list[Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])]

    wanted = results()
    calls: list[str] = []

    def chosen(asked: str, device: str, dtype: torch.dtype) -> str:
        calls.append(asked)
        return "cuda"

    monkeypatch.setattr("statevla.models.mamba.backend_name", chosen)
    for got, want in zip(results(), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert calls == ["reference"]


def test_a_backend_asked_for_that_cannot_run_is_refused() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UsageError, match="'gpu' is none of auto, cuda, triton, cpu, loop, reference"):
        backends.resolve_backend("gpu", cpu, torch.float32)
    with pytest.raises(UsageError, match=r"'cuda' cannot run on cpu .* NVIDIA GPU"):
        Mamba(8, backend="cuda")(torch.randn(1, 4, 8))
    with pytest.raises(UsageError, match="'cpu' cannot run on meta"):
        backends.resolve_backend("cpu", torch.device("meta"), torch.float32)


def test_without_the_native_library_auto_says_that_it_takes_the_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backends._resolve.cache_clear()
    monkeypatch.setattr(native, "load", lambda: "the native kernels are not built; run X")
    try:
        with caplog.at_level(logging.INFO, logger="statevla"):
            taken = [backends.resolve_backend("auto", torch.device("cpu"), torch.float32) for _ in range(3)]
        assert {backend.name for backend in taken} == {"loop"}
        warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "run X" in warnings[0].getMessage()
        with pytest.raises(UsageError, match="run X"):
            backends.resolve_backend("cpu", torch.device("cpu"), torch.float32)
    finally:
        backends._resolve.cache_clear()


@pytest.mark.parametrize("bad", [{"d_model": 0}, {"d_state": 0}, {"d_conv": 0}, {"dt_rank": 0}, {"dt_min": 0.0}])
def test_sizes_that_make_no_layer_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        Mamba(**{"d_model": 8, **bad})


@pytest.mark.parametrize("name", ["triton", "cuda"])
@pytest.mark.parametrize("error", [ImportError("no module"), RuntimeError("no driver"), OSError("undefined symbol")])
def test_whatever_keeps_a_gpu_backend_from_a_first_launch_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    def fails(backend: str, dtype: torch.dtype) -> None:
        assert (backend, dtype) == (name, torch.bfloat16)
        raise error

    backends._launch.cache_clear()
    monkeypatch.setattr(backends, "tiny", fails)
    obstacle = backends.obstacle_to(name, "cuda", torch.bfloat16)
    assert obstacle is not None
    assert type(error).__name__ in obstacle
    assert str(error) in obstacle
    assert "docs/install-gpu.md" in obstacle
    monkeypatch.setattr(backends, "tiny", lambda *told: None)
    assert backends.obstacle_to(name, "cuda", torch.bfloat16) == obstacle, "asked for once"
    backends._launch.cache_clear()
    assert backends.obstacle_to(name, "cuda", torch.bfloat16) is None
    backends._launch.cache_clear()
