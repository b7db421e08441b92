"""Which parameters decay: matrices and convolution kernels; not norms, biases, A_log, D or embeddings (design §5)."""

from typing import Any, Final

from torch import nn

UNDECAYED: Final = ("A_log", "cls", "modality", "position", "position_cameras", "position_language", "position_robot")
"""Last part of the names of undecayed parameters that have two dimensions or more."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Norm weights, biases and Mamba's D have one dimension; the others that do not decay are known by name."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in UNDECAYED


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of (name, parameter) for a torch optimizer, decayed first; frozen parameters are left out."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [(n, p) for n, p in trained if decays(n, p)], "weight_decay": weight_decay},
        {"params": [(n, p) for n, p in trained if not decays(n, p)], "weight_decay": 0.0},
    ]
