"""Which device a process takes: what is asked for, and among several GPUs the one of its number on the machine."""

import pytest
import torch

from statevla.policies.prepare import choose_device
from stores.errors import UsageError


def pretend(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_every_rank_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, 4)
    assert [str(choose_device(name, local)) for local in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert str(choose_device(name)) == "cuda:0"


def test_a_rank_without_a_gpu_of_its_own_says_so_and_shares_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2)
    with pytest.raises(UsageError, match=r"has 2 CUDA device\(s\), but rank 2 of it wants its own; start fewer ranks"):
        choose_device("auto", 2)


def test_a_gpu_that_is_named_is_taken_by_any_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2)
    assert str(choose_device("cuda:1", 0)) == "cuda:1"


@pytest.mark.parametrize("local", [0, 3])
def test_without_a_gpu_every_rank_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch, local: int) -> None:
    pretend(monkeypatch, 0)
    assert str(choose_device("auto", local)) == str(choose_device("cpu", local)) == "cpu"
    with pytest.raises(UsageError, match=r"device 'cuda': this torch finds no CUDA device; use auto or cpu"):
        choose_device("cuda", local)
    with pytest.raises(UsageError, match=r"device 'none' is no torch device; use auto, cpu or cuda"):
        choose_device("none", local)
