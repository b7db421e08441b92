"""Time and memory on the device, and what the device itself can do."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def wait(device: str) -> None:
    """Until everything launched is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(run: Callable[[], object], rounds: int, device: str = "cuda", warm_ups: int = 3) -> float:
    """Median over rounds: by events on a GPU, by the clock elsewhere."""
    times = []
    for turn in range(rounds + warm_ups):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            took = float(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            run()
            took = 1e3 * (time.perf_counter() - began)
        if turn >= warm_ups:
            times.append(took)
    return statistics.median(times)


def forget_peak(device: str) -> None:
    """Begin to look for the peak of memory anew."""
    if device == "cuda":
        gc.collect()  # models of earlier items hang in circles
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: str) -> float | None:
    """Most memory that tensors took since `forget_peak`, in 10⁹ bytes; None without a GPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None


def ceilings(device: str, quick: bool) -> dict[str, Any]:
    """GB/s of a copy, read and written bytes counted, and TFLOP/s of a bfloat16 matrix product of random numbers."""
    size, side = (1 << 20, 256) if quick else (1 << 31, 8192)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), 10, device)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    product = milliseconds(lambda: torch.mm(a, b), 10, device)
    return {"copy_gb_per_s": 2 * size / copy / 1e6, "bfloat16_tflop_per_s": 2 * side**3 / product / 1e9}
