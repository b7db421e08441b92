"""The native kernels and the PyTorch loop against the plain reference in float64."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from statevla.models.kernels import inner_op, loop, native, ops, reference
from stores.errors import UsageError

if not native.available():
    pytest.skip(f"native kernels: {native.load()}", allow_module_level=True)

# Largest error against float64, relative to the largest entry: forward, gradient. Of float32 about twice the largest of
# 1,500 random cases (2026-11-27): 1.0e-6 and 1.6e-6 of the native scan, 4.7e-7 and 3.5e-6 of the plain loop.
LIMITS = {torch.float32: (2e-6, 7e-6), torch.bfloat16: (1e-2, 2e-2), torch.float64: (1e-14, 1e-13)}

shapes = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 7, 8, 16, 17, 64]))
dtypes = st.sampled_from(list(LIMITS))


@pytest.fixture(params=native.INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.instruction_set()
    if not native.use_instruction_set(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    native.use_instruction_set(before)


def scan_inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """u, dt, dt_bias, a, b, c, d, z, h; b, c and z are slices of larger tensors, as in the model."""
    batch, length, inner, states = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    acc = reference.accumulation_dtype(dtype)
    projected = draw(batch, length, 3 + 2 * states).to(dtype)
    xz = draw(batch, length, 2 * inner).to(dtype)
    return [
        draw(batch, length, inner).to(dtype),
        (2 * draw(batch, length, inner)).to(dtype),
        (draw(inner) - 2).to(acc),
        (-torch.exp(draw(inner, states))).to(acc),
        projected[..., 3 : 3 + states],
        projected[..., 3 + states :],
        draw(inner).to(acc),
        xz[..., inner:],
        draw(batch, inner, states).to(acc),
    ]


def results(function: Callable[..., object], inputs: list[Tensor], seed: int) -> list[Tensor]:
    """Outputs, then the gradient of a random linear function of them by every input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    # Clones are contiguous; keep the strides under test.
    views = [
        torch.as_strided(leaf, x.shape, leaf.stride()) if x.is_contiguous() else _restride(leaf)
        for x, leaf in zip(inputs, leaves, strict=True)
    ]
    outputs = function(*views)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    generator = torch.Generator().manual_seed(seed + 1)
    total = torch.zeros((), dtype=torch.float64)
    for out in outputs:
        weight = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        total = total + (out.double() * weight.bfloat16().double()).sum()
    gradients = torch.autograd.grad(total, leaves, materialize_grads=True)
    return [*(out.detach() for out in outputs), *gradients]


def _restride(leaf: Tensor) -> Tensor:
    """The same values as a slice of a wider tensor, differentiably."""
    return torch.cat([leaf.new_zeros(*leaf.shape[:-1], 3), leaf], dim=-1)[..., 3:]


def assert_close(ours: list[Tensor], exact: list[Tensor], outputs: int, dtype: torch.dtype) -> None:
    for i, (got, want) in enumerate(zip(ours, exact, strict=True)):
        limit = LIMITS[dtype][i >= outputs]
        scale = want.abs().max().clamp(min=1.0)
        error = ((got.double() - want).abs().max() / scale).item()
        assert error <= limit, f"result {i}: {error:.2e} > {limit:.0e}"


@settings(max_examples=15, deadline=None)
@given(shape=shapes, dtype=dtypes, seed=st.integers(0, 2**31))
def test_native_scan_is_the_reference(shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int) -> None:
    inputs = scan_inputs(shape, dtype, seed)
    exact = results(reference.selective_scan, [x.double() for x in inputs], seed)
    assert_close(results(ops.selective_scan, inputs, seed), exact, 2, dtype)


@settings(max_examples=15, deadline=None)
@given(shape=shapes, dtype=dtypes, seed=st.integers(0, 2**31))
def test_loop_scan_is_the_reference(shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int) -> None:
    inputs = scan_inputs(shape, dtype, seed)
    exact = results(reference.selective_scan, [x.double() for x in inputs], seed)
    assert_close(results(loop.selective_scan, inputs, seed), exact, 2, dtype)


@settings(max_examples=15, deadline=None)
@given(shape=shapes, taps=st.integers(1, 6), dtype=dtypes, seed=st.integers(0, 2**31))
def test_convolutions_are_the_reference(
    shape: tuple[int, int, int, int], taps: int, dtype: torch.dtype, seed: int
) -> None:
    batch, length, inner, _ = shape
    generator = torch.Generator().manual_seed(seed)
    acc = reference.accumulation_dtype(dtype)
    inputs = [
        torch.randn(batch, length, 2 * inner, generator=generator).to(dtype)[..., :inner],
        torch.randn(inner, taps, generator=generator).to(acc),
        torch.randn(inner, generator=generator).to(acc),
    ]
    exact = results(reference.conv_silu, [x.double() for x in inputs], seed)
    assert_close(results(ops.conv_silu, inputs, seed), exact, 1, dtype)
    if dtype != torch.bfloat16:
        assert_close(results(loop.conv_silu, inputs, seed), exact, 1, dtype)


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("shape", [(2, 37, 40, 16), (1, 130, 33, 5), (5, 16, 16, 64)])
def test_every_instruction_set_agrees(
    instruction_set: str, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    inputs = scan_inputs(shape, dtype, 0)
    exact = results(reference.selective_scan, [x.double() for x in inputs], 0)
    assert_close(results(ops.selective_scan, inputs, 0), exact, 2, dtype)
    conv = [inputs[7], torch.randn(shape[2], 4, dtype=inputs[2].dtype), inputs[2]]
    exact = results(reference.conv_silu, [x.double() for x in conv], 0)
    assert_close(results(ops.conv_silu, conv, 0), exact, 1, dtype)


def test_gradcheck_on_the_kernels_themselves(instruction_set: str) -> None:
    inputs = [x.contiguous().requires_grad_() for x in scan_inputs((2, 19, 5, 3), torch.float64, 3)]
    assert torch.autograd.gradcheck(ops.selective_scan, inputs, fast_mode=True)
    conv = [inputs[0], torch.randn(5, 4, dtype=torch.float64, requires_grad=True), inputs[2]]
    assert torch.autograd.gradcheck(ops.conv_silu, conv, fast_mode=True)


@pytest.mark.parametrize("dtype", list(LIMITS))
def test_results_are_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    inputs = scan_inputs((3, 70, 200, 16), dtype, 5)
    before = torch.get_num_threads()
    runs = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        runs.append(results(ops.selective_scan, inputs, 5))
    torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("cut", [1, 16, 23])
def test_state_handed_on_continues_the_sequence(cut: int) -> None:
    u, dt, dt_bias, a, b, c, d, z, h = scan_inputs((2, 40, 24, 16), torch.float32, 7)
    whole, last = ops.selective_scan(u, dt, dt_bias, a, b, c, d, z, h)
    first, state = ops.selective_scan(u[:, :cut], dt[:, :cut], dt_bias, a, b[:, :cut], c[:, :cut], d, z[:, :cut], h)
    second, end = ops.selective_scan(u[:, cut:], dt[:, cut:], dt_bias, a, b[:, cut:], c[:, cut:], d, z[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(end, last, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [0, 1, 4, 5, 7], ids=["u", "dt", "b", "c", "z"])
def test_a_number_that_is_none_spreads_as_in_the_reference(value: float, which: int) -> None:
    if which == 1 and value == float("-inf"):
        pytest.skip("softplus(-inf) is 0, a number")
    inputs = [x.contiguous() for x in scan_inputs((2, 30, 20, 4), torch.float32, 11)]
    inputs[which][0, 13, 2] = value
    ours, _ = ops.selective_scan(*inputs)
    exact, _ = reference.selective_scan(*inputs)
    assert not exact.isfinite().all()
    assert torch.equal(ours.isfinite(), exact.isfinite())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_spreads_over_the_taps_and_no_further(value: float) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 12, 9), torch.rand(9, 4) + 0.5
    x[1, 5, 3] = value
    out = ops.conv_silu(x, weight, torch.zeros(9))
    reached = torch.zeros(2, 12, 9, dtype=torch.bool)
    reached[1, 5:9, 3] = True
    assert torch.equal(~out.isfinite(), reached)


@pytest.mark.parametrize("shape", [(0, 5, 8, 4), (2, 0, 8, 4), (2, 1, 1, 1)])
def test_empty_and_single(shape: tuple[int, int, int, int]) -> None:
    inputs = scan_inputs(shape, torch.float32, 0)
    ours = results(ops.selective_scan, inputs, 0)
    exact = results(reference.selective_scan, [x.double() for x in inputs], 0)
    for got, want in zip(ours, exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_mixed_dtypes_and_wrong_shapes_are_refused() -> None:
    u, dt, dt_bias, a, b, c, d, z, _ = scan_inputs((2, 6, 8, 4), torch.float32, 0)
    with pytest.raises(UsageError, match=r"z is torch\.bfloat16"):
        ops.selective_scan(u, dt, dt_bias, a, b, c, d, z.bfloat16())
    with pytest.raises(UsageError, match=r"C has shape \(2, 6, 3\), expected \(2, 6, 4\)"):
        ops.selective_scan(u, dt, dt_bias, a, b, c[..., :3], d, z)
    with pytest.raises(UsageError, match=r"conv bias has shape \(7,\), expected \(8,\)"):
        ops.conv_silu(u, torch.ones(8, 4), torch.ones(7))
    with pytest.raises(UsageError, match=r"not torch\.float16"):
        ops.conv_silu(u.half(), torch.ones(8, 4), torch.ones(8))


def test_columns_apart_in_memory_are_accepted() -> None:
    inputs = scan_inputs((2, 11, 12, 4), torch.float32, 1)
    turned = [x.mT.contiguous().mT if i in (0, 1, 4, 5, 7) else x for i, x in enumerate(inputs)]
    torch.testing.assert_close(ops.selective_scan(*turned), ops.selective_scan(*inputs), rtol=0, atol=0)


def test_operators_pass_pytorchs_own_checks() -> None:
    u, dt, dt_bias, a, b, c, d, z, h = scan_inputs((2, 20, 6, 4), torch.float32, 2)
    leaves = [x.detach().clone().requires_grad_() for x in (u, dt, dt_bias, a, b, c, d, z, h)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.statevla.selective_scan.default, (*leaves, True), test_utils=tests)
    conv = (leaves[0], torch.randn(6, 4, requires_grad=True), leaves[2])
    torch.library.opcheck(torch.ops.statevla.conv_silu.default, conv, test_utils=tests)
    inner = (
        torch.randn(2, 20, 12, requires_grad=True),
        torch.randn(6, 1, 4, requires_grad=True),
        torch.randn(6, requires_grad=True),
        torch.randn(10, 6, requires_grad=True),
        torch.randn(6, 2, requires_grad=True),
        leaves[2],
        torch.randn(6, 4, requires_grad=True),
        leaves[6],
    )
    assert inner_op.LIBRARY, "its import defines the operator"
    torch.library.opcheck(torch.ops.statevla.mamba_inner.default, (*inner, True), test_utils=tests)


def test_one_openmp_pool_in_the_process() -> None:
    code = (
        "import torch\n"
        "from statevla.models.kernels import native, ops\n"
        "x = torch.randn(4, 64, 64)\n"
        "ops.conv_silu(x, torch.randn(64, 4), torch.randn(64))\n"
        "lines = [l.split() for l in open('/proc/self/maps') if 'omp' in l.rsplit('/', 1)[-1]]\n"
        "print(len({l[5] for l in lines}), native._gomp_parallel() is not None)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "True"]
