"""Writing a checkpoint and putting one back; the files are described in `statevla/runs/files.py`."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from statevla.runs.files import LANGUAGE, MODEL, OPTIMIZER, describe_bytes, load_strict, read_tensors
from statevla.runs.layout import STATE
from statevla.runs.state import CheckpointState
from stores.disk.durable import json_bytes, staging_dir, write_bytes
from stores.errors import StoreCorrupt

TRAINED: Final = "trained"
"""A slot that is not the optimizer's: the weights as trained, where the model file holds their average."""


@dataclass(frozen=True)
class Snapshot:
    """A training run at one moment, on the CPU, independent of the tensors that training goes on changing."""

    state: CheckpointState
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    language: Tensor


def copy_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU copies."""
    return {name: torch.empty_like(t, device="cpu").copy_(t.detach()).contiguous() for name, t in tensors.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state by ``<parameter>/<slot>``; needs an optimizer built from named parameters."""
    state = optimizer.state_dict()
    names = [name for group in state["param_groups"] for name in group["param_names"]]
    return {f"{names[index]}/{slot}": value for index, slots in state["state"].items() for slot, value in slots.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], where: str, idle: Collection[str] = ()
) -> None:
    """Inverse of `optimizer_tensors`. Raises StoreCorrupt when a parameter that is not `idle` has no state, or one is
    unknown.
    """
    state = optimizer.state_dict()
    names = [name for group in state["param_groups"] for name in group["param_names"]]
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        if slot == TRAINED:
            continue
        slots.setdefault(name, {})[slot] = value
    missing, extra = sorted(set(names) - set(slots) - set(idle)), sorted(set(slots) - set(names))
    if missing or extra:
        raise StoreCorrupt(f"{where}: optimizer state: {len(missing)} missing {missing[:3]}, unknown {extra[:3]}")
    optimizer.load_state_dict(
        {
            "param_groups": state["param_groups"],
            "state": {i: slots[name] for i, name in enumerate(names) if name in slots},
        }
    )


def rng_state() -> dict[str, Any]:
    """Torch's global generators in hex."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state().numpy().tobytes().hex(), "cuda": [s.numpy().tobytes().hex() for s in cuda]}


def restore_rng(state: dict[str, Any]) -> None:
    """Inverse of `rng_state`; CUDA generators only where there are as many devices as were saved."""
    torch.set_rng_state(_bytes(state["torch"]))
    if torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([_bytes(value) for value in state["cuda"]])


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def save(folder: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint; under `folder`'s name there is the old one or the new one, whole, at any moment."""
    files = {
        MODEL: to_safetensors(snapshot.model),
        OPTIMIZER: to_safetensors(snapshot.optimizer),
        LANGUAGE: to_safetensors({"vectors": snapshot.language}),
    }
    described = {name: describe_bytes(data) for name, data in files.items()}
    state = {**snapshot.state.to_dict(), "files": described}
    with staging_dir(folder) as staging:
        for name, data in files.items():
            write_bytes(staging / name, data)
        write_bytes(staging / STATE, json_bytes(state))


def restore(
    folder: Path, state: CheckpointState, model: nn.Module, optimizer: torch.optim.Optimizer,
    idle: Callable[[], Collection[str]] = frozenset,
) -> dict[str, Tensor]:  # fmt: skip
    """Put weights, optimizer and generators back as they were when `folder` was saved; the optimizer file's tensors.

    idle: asked when the weights are back, which parameters no step was made of.
    """
    load_strict(model, read_tensors(folder, state, MODEL), str(folder / MODEL))
    tensors = read_tensors(folder, state, OPTIMIZER)
    restore_optimizer(optimizer, tensors, str(folder / OPTIMIZER), idle())
    restore_rng(state.rng)
    return tensors
