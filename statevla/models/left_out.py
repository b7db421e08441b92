"""Weights that a module takes from elsewhere at every start and that its state dict therefore leaves out.

What stands for them is the buffer ``origin``, sha256 over their names and bytes: loading a state dict that was made
beside other ones is refused.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from stores.errors import UsageError

ORIGIN: Final = "origin"


def leave_out(module: nn.Module, stays: Callable[[str], bool], name: str) -> None:
    """Let the state dict of `module`, a part of whatever holds it, have of its weights only those whose name `stays`.

    name: for people, of where the weights come from.
    """
    left = [key for key in module.state_dict() if not stays(key)]
    module.register_buffer(ORIGIN, _hash(module, left))

    def drop(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for key in left:
            state.pop(prefix + key, None)

    def put_back(own: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        known = dict(own.named_parameters()) | dict(own.named_buffers())
        came = state.get(prefix + ORIGIN)
        if came is not None and not torch.equal(came.cpu(), known[ORIGIN].cpu()):
            raise UsageError(
                f"{name}: other weights than those that the checkpoint was trained beside; set it, and its revision, "
                "to where these are"
            )
        state.update({prefix + key: known[key].detach() for key in left})

    module.register_state_dict_post_hook(drop)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(put_back)  # type: ignore[no-untyped-call]


def _hash(module: nn.Module, names: list[str]) -> Tensor:
    """uint8 [32]; zeros for weights that nobody can read."""
    found, tensors = hashlib.sha256(), module.state_dict()
    for name in sorted(names):
        value = tensors[name].detach()
        if value.is_meta:
            return torch.zeros(32, dtype=torch.uint8)
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8).clone()
