"""The Triton kernels: numbers in Triton's interpreter, code for two GPU generations from its compiler; no GPU needed.

Both run in processes of their own: the interpreter is chosen by an environment variable before the first import, and
Triton reads the source of its functions, which pytest's type checks would wrap.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: its kernels are NOT tested here"
)


def triton_version() -> tuple[int, ...]:
    """(3, 7) of 3.7.1; (0,) where there is none."""
    if importlib.util.find_spec("triton") is None:
        return (0,)
    return tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])


NUMBERS = """
import torch
from statevla.models.kernels import inner_op, layer_op, reference, triton_kernels
from statevla.models.kernels.inputs import scan_inputs
torch.manual_seed(0)
def worst(got, want):
    return max(((g.double() - w).abs().max() / w.abs().max()).item() for g, w in zip(got, want, strict=True))
# B, L, E, N, K, R: tails of every block, one step, more states than a warp's share
for b, l, e, n, k, r, dtype, limit in (
    (2, 17, 17, 5, 4, 2, torch.float32, 3e-6),
    (1, 1, 3, 1, 1, 1, torch.float32, 3e-6),
    (2, 2, 4, 64, 2, 1, torch.bfloat16, 5e-2),
    (1, 3, 4, 4, 4, 1, torch.float16, 1e-2),
):
    inputs = [torch.randn(b, l, 2 * e).to(dtype), torch.randn(e, 1, k), torch.randn(e),
              torch.randn(r + 2 * n, e) * 0.3, torch.randn(e, r), torch.randn(e) - 2, torch.randn(e, n), torch.randn(e)]
    exact = [x.double().requires_grad_() for x in inputs]
    y, grad = reference.inner(*exact), torch.randn(b, l, e).to(dtype)
    want = torch.autograd.grad(y, exact, grad.double())
    out = inner_op.forward(triton_kernels, *inputs, True)
    got = inner_op.backward(triton_kernels, grad, *out[1:], *inputs)
    error = worst([out[0], *got], [y, *want])
    assert error < limit, (dtype, error)
# the whole layer, which keeps its input alone
b, l, w, e, n, k, r = 1, 9, 4, 6, 5, 4, 2
inputs = [torch.randn(b, l, w), torch.randn(2 * e, w) * 0.5, torch.randn(e, 1, k), torch.randn(e),
          torch.randn(r + 2 * n, e) * 0.3, torch.randn(e, r), torch.randn(e) - 2, torch.randn(e, n), torch.randn(e),
          torch.randn(w, e)]
exact = [x.double().requires_grad_() for x in inputs]
y, grad = reference.inner(exact[0] @ exact[1].T, *exact[2:9]) @ exact[9].T, torch.randn(b, l, w)
want = torch.autograd.grad(y, exact, grad.double())
got = [layer_op.forward(triton_kernels, *inputs), *layer_op.backward(triton_kernels, grad, *inputs)]
assert worst(got, [y, *want]) < 3e-6
# no sequence, no step
for nothing in (torch.randn(0, 3, w), torch.randn(2, 0, w)):
    given = [nothing, *inputs[1:]]
    y, gradients = layer_op.forward(triton_kernels, *given), layer_op.backward(triton_kernels, nothing, *given)
    assert y.shape == gradients[0].shape == nothing.shape
    assert all(g.abs().sum() == 0 for g in gradients)
# states handed in and out, and their gradients
b, l, e, n = 1, 17, 5, 4
x = [torch.randn(b, l, e), torch.randn(b, l, e), torch.randn(e), -torch.rand(e, n), torch.randn(b, l, n),
     torch.randn(b, l, n), torch.randn(e), torch.randn(b, l, e)]
h, dlast, dout = torch.randn(b, e, n), torch.randn(b, e, n), torch.randn(b, l, e)
exact = [t.double().requires_grad_() for t in [*x, h]]
y, last = reference.selective_scan(*exact)
want = torch.autograd.grad((y, last), exact, (dout.double(), dlast.double()))
out, end, kept = torch.empty(b, l, e), torch.empty(b, e, n), torch.empty(b * e * n)
inputs = scan_inputs(*x)
triton_kernels.scan_forward(inputs, out, h, end, kept)
rows = [torch.empty_like(x[i]) for i in (0, 1, 7, 4, 5)]
sums, dh = [torch.empty(e), torch.empty(e, n), torch.empty(e)], torch.empty(b, e, n)
triton_kernels.scan_backward(inputs, kept, dout, dlast, tuple(rows), tuple(sums), dh)
got = [rows[0], rows[1], sums[0], sums[1], rows[3], rows[4], sums[2], rows[2], dh]
assert worst([out, end, *got], [y, last, *want]) < 3e-6
print("the same")
"""

CODE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from statevla.models.kernels import triton_conv, triton_kernels, triton_scan
IO = {"u", "dt", "z", "b", "c", "out", "dout", "du", "ddt", "dz", "x", "dx", "dy", "kept"}
def compiles(function, dtype, capability, **constants):
    names = [parameter.name for parameter in function.params]
    def kind(name):
        if name in constants:
            return "constexpr"
        if name in IO:
            return "*" + dtype
        return "i32" if name in ("B", "L", "E") or name.endswith(("_b", "_t")) else "*fp32"
    source = ASTSource(fn=function, signature={name: kind(name) for name in names},
                       constexprs={(names.index(name),): value for name, value in constants.items()})
    target = GPUTarget("cuda", capability, 32)
    assert len(triton.compile(source, target=target, options={"num_warps": 1}).asm["cubin"]) > 0
for capability in (80, 90):
    for states in (16, 64):
        forward = triton_kernels._shape(triton_kernels.AGAIN, states, triton_kernels.MOST_STATES)
        backward = triton_kernels._shape(triton_kernels.BACKWARD, states, triton_kernels.MOST_STATES_BACKWARD)
        compiles(triton_scan.scan_forward, "bf16", capability, **forward,
                 HAS_H0=True, HAS_LAST=True, HAS_OUT=True, BACK=True)
        compiles(triton_scan.scan_backward, "bf16", capability, **backward, HAS_DLAST=True, HAS_DH0=True)
    compiles(triton_conv.conv_forward, "fp32", capability, K=4, BT=16, BE=128)
    compiles(triton_conv.conv_backward, "fp32", capability, K=4, BT=16, BE=64)
print("compiled")
"""


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "TRITON_CACHE_DIR": str(folder), "TRITON_DEFAULT_FP_FUSION": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings, check=False)


@pytest.mark.skipif(
    triton_version() < (3, 6), reason="Triton before 3.6: its interpreter does not take today's NumPy; NOT tested here"
)
def test_interpreted_kernels_are_the_reference(tmp_path: Path) -> None:
    result = run(NUMBERS, tmp_path, TRITON_INTERPRET="1")
    assert result.stdout == "the same\n", result.stderr


@pytest.mark.slow
def test_kernels_compile_for_gpus(tmp_path: Path) -> None:
    result = run(CODE, tmp_path)
    assert result.stdout == "compiled\n", result.stderr


SHAPES = """
from statevla.models.kernels import triton_kernels as kernels
for most in (kernels.MOST_STATES, kernels.MOST_STATES_BACKWARD):
    for tile in (kernels.FORWARD, kernels.FORWARD_FEW, kernels.AGAIN, kernels.BACKWARD):
        for states in (1, 2, 3, 5, 8, 16, 17, 64, 100, 256):
            shape = kernels._shape(tile, states, most)
            assert shape["NL"] * shape["EL"] == kernels.LANES, shape
            assert states <= shape["NR"] * shape["NL"] < 2 * states + 1, shape
            assert shape["NR"] <= most or shape["NL"] == kernels.LANES, shape
            assert 1 <= shape["ER"] <= tile.channels, shape
print("fits")
"""


def test_a_tile_has_a_place_for_every_state_and_a_lane_for_every_place(tmp_path: Path) -> None:
    result = run(SHAPES, tmp_path)
    assert result.stdout == "fits\n", result.stderr
