"""Gathers are NumPy's indexing; memory is used again when nobody has it, and not before."""

import sys
import threading

import numpy as np
import pytest
import torch

from statevla.data.gather import KEPT, STREAMED, Memory, gather
from statevla.models.kernels import native

SIZES = (1, 31, STREAMED - 1, STREAMED, STREAMED + 1, 96 * 64, 128 * 128 * 3)
needs_native = pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.load()}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("begins", [0, 1, 16, 32])
def test_a_gather_is_numpys_indexing(size: int, begins: int) -> None:
    rng = np.random.default_rng(size + begins)
    source = rng.integers(0, 256, (9, size), np.uint8)
    rows = np.array([8, 0, 3, 3, 7], np.int64)
    room = np.zeros(len(rows) * size + 128, np.uint8)
    start = -room.ctypes.data % 64 + begins
    out = room[start : start + len(rows) * size].reshape(len(rows), size)
    gather(source, rows, out)
    assert np.array_equal(out, source[rows])
    assert not room[:start].any()
    assert not room[start + out.size :].any()
    gather(source, rows[:0], out[:0])


def test_a_gather_of_mapped_floats(tmp_path) -> None:
    values = np.random.default_rng(0).standard_normal((20, 2000)).astype(np.float32)
    values.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=values.shape)
    out = np.empty((3, 2000), np.float32)
    gather(mapped, np.array([19, 0, 5]), out)
    assert np.array_equal(out, values[[19, 0, 5]])


@needs_native
@pytest.mark.parametrize("row", [-1, 9])
def test_a_row_that_is_not_there_is_refused_and_nothing_written(row: int) -> None:
    source, out = np.ones((9, STREAMED), np.uint8), np.zeros((2, STREAMED), np.uint8)
    with pytest.raises(IndexError, match="of an array of 9"):
        native.gather(source, np.array([0, row]), out)
    assert not out.any()


def test_memory_is_used_again_when_every_tensor_and_view_of_it_is_gone() -> None:
    memory = Memory()
    first = memory.tensor((4, 5), "uint8", False)
    place = first.data_ptr()
    view = first[1:].permute(1, 0).numpy()
    del first
    other = memory.tensor((4, 5), "uint8", False)
    assert other.data_ptr() != place, "an array of a view of it is still there"
    del view
    assert memory.tensor((4, 5), "uint8", False).data_ptr() == place
    assert memory.tensor((4, 5), "int8", False).dtype == torch.int8
    assert memory.tensor((20,), "uint8", False).shape == (20,)


def test_memory_that_somebody_keeps_is_never_given_twice() -> None:
    memory, kept = Memory(), []

    def ask() -> None:
        for _ in range(3 * KEPT):
            kept.append(memory.tensor((2, 3), "float32", False))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    places = {tensor.data_ptr() for tensor in kept}
    assert len(places) == len(kept) == 12 * KEPT
    assert all(place % 64 == 0 for place in places)


def test_a_python_that_counts_fewer_references_gives_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = sys.getrefcount
    monkeypatch.setattr(sys, "getrefcount", lambda array: counted(array) - 2)  # one is the lambda's own
    memory = Memory()
    kept = memory.tensor((4, 5), "uint8", False)
    place = memory.tensor((4, 5), "uint8", False).data_ptr()
    assert place != kept.data_ptr(), "somebody has it"
    assert memory.tensor((4, 5), "uint8", False).data_ptr() == place


def test_memory_of_another_shape_is_let_go_of() -> None:
    memory = Memory()
    for length in range(1, 3 * KEPT):
        memory.tensor((length,), "uint8", False)
    assert len(memory._kept) == KEPT
