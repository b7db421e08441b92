"""Mamba in pieces against Mamba over the whole sequence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statevla.models.kernels import native
from statevla.models.mamba import Mamba, MambaState
from statevla.models.streaming import extend

BACKENDS = ["reference", "loop", *(["cpu"] if native.available() else [])]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(pieces=st.lists(st.integers(1, 7), min_size=1, max_size=4), batch=st.integers(1, 3), taps=st.integers(1, 5))
def test_pieces_give_what_the_whole_gives(backend: str, pieces: list[int], batch: int, taps: int) -> None:
    torch.manual_seed(0)
    layer = Mamba(16, d_state=4, d_conv=taps, backend="reference")
    x = torch.randn(batch, sum(pieces), 16)
    with torch.no_grad():
        whole = layer(x)
        layer.backend = backend
        state: MambaState | None = None
        outputs = []
        for piece in x.split(pieces, dim=1):
            y, state = extend(layer, piece, state)
            outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_is_of_fixed_size_whatever_was_read(backend: str) -> None:
    layer = Mamba(16, d_state=4, backend=backend)
    with torch.no_grad():
        for length in (1, 9):
            _, state = extend(layer, torch.randn(2, length, 16), None)
            assert (state.conv.shape, state.ssm.shape) == ((2, 3, 32), (2, 32, 4))
            assert state.ssm.dtype == torch.float32


def test_extending_leaves_the_state_it_began_with() -> None:
    layer = Mamba(16, d_state=4, backend="loop")
    with torch.no_grad():
        _, state = extend(layer, torch.randn(1, 5, 16), None)
        conv, ssm = state.conv.clone(), state.ssm.clone()
        extend(layer, torch.randn(1, 5, 16), state)
    assert torch.equal(state.conv, conv)
    assert torch.equal(state.ssm, ssm)
