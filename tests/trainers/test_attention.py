"""Which of PyTorch's attentions a training step takes: on a CPU in bfloat16 the fused one is the slowest by far."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from statevla.trainers import run as running
from statevla.trainers import trainer
from statevla.trainers.setup import attention_kernel
from tests.trainers.micro import config_of_all, micro_store

FUSED = "flash_attention"


class Noting(TorchDispatchMode):
    """Remembers the names of all operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(operator))
        return operator(*args, **(kwargs or {}))


def operators(precision: str, store: Path, run: Path) -> set[str]:
    config = config_of_all(f"training.precision={precision}", "training.max_steps=1", "training.device=cpu")
    with Noting() as noting:
        trainer.train("vla", config, store, run)
    return noting.names


def test_a_step_in_bfloat16_on_a_cpu_takes_plain_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.Run, "validate", lambda *_: None)
    store = micro_store(tmp_path / "store")
    assert any(FUSED in name for name in operators("fp32", store, tmp_path / "fp32"))
    assert not any(FUSED in name for name in operators("bf16", store, tmp_path / "bf16"))


def test_a_gpu_keeps_the_fused_one() -> None:
    with attention_kernel(torch.device("cuda"), True):
        assert torch.backends.cuda.flash_sdp_enabled()
    with attention_kernel(torch.device("cpu"), True):
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(("precision", "able", "said"), [("bf16", False, 1), ("bf16", True, 0), ("fp32", False, 0)])
def test_a_processor_that_has_no_bfloat16_is_told(
    precision: str, able: bool, said: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: able)
    config = config_of_all(f"training.precision={precision}", "training.max_steps=1", "training.device=cpu")
    heard: list[str] = []
    trainer.train(
        "film", config, micro_store(tmp_path / "store"), tmp_path / "run",
        progress=lambda event: heard.append(event.message) if event.said else None,
    )  # fmt: skip
    assert sum("no instructions for bfloat16" in message for message in heard) == said
