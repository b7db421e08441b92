"""Which parameters decay: the weights of linear layers, attentions and convolutions, nothing else.

Norms, biases, A_log, D, embeddings, queries and positions do not (design). A parameter is told by the module that owns
it, not by its name: whatever a new model adds beside those kinds of layers does not decay.
"""

from typing import Any, Final

from torch import nn

DECAYED: Final[dict[type[nn.Module], tuple[str, ...]]] = {
    nn.Linear: ("weight",),
    nn.Conv1d: ("weight",),
    nn.Conv2d: ("weight",),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}
"""Parameters that decay, by the module that owns them."""


def undecayed_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters without weight decay."""
    decayed = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for kind, names in DECAYED.items()
        if isinstance(module, kind)
        for name in names
    }
    return frozenset(name for name, _ in model.named_parameters() if name not in decayed)


def parameter_groups(model: nn.Module, weight_decay: float, undecayed: frozenset[str]) -> list[dict[str, Any]]:
    """Groups of (name, parameter) for a torch optimizer, decayed first; frozen parameters are left out."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [(n, p) for n, p in trained if n not in undecayed], "weight_decay": weight_decay},
        {"params": [(n, p) for n, p in trained if n in undecayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]  # torch takes no empty group of named parameters
