"""A checkpoint on disk, read side: a folder of safetensors and one JSON file, which trainers write and everyone reads.

    model.safetensors      the system's model: weights, normalization buffers, a JEPA's moving average ("target.")
    optimizer.safetensors  "<parameter>/<slot>", AdamW's moments by parameter name
    language.safetensors   "vectors" float32 [instructions, 512], rows in the order of state.json's "instructions"
    state.json             everything else (`CheckpointState`), with size and sha256 of the three files

A checkpoint folder appears under its name whole (`stores.disk.durable.staging_dir`), so what is there is complete.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor, nn

from statevla.runs.layout import STATE
from statevla.runs.state import CheckpointState, read_state
from stores.errors import StoreCorrupt, StoreMissing

MODEL: Final = "model.safetensors"
OPTIMIZER: Final = "optimizer.safetensors"
LANGUAGE: Final = "language.safetensors"


def read_tensors(folder: Path | str, state: CheckpointState, name: str) -> dict[str, Tensor]:
    """Tensors of one safetensors file, on the CPU. Raises StoreCorrupt when its bytes are not what state.json says, and
    when a training has replaced the checkpoint since `state` was read of it.
    """
    path = Path(folder) / name
    if name not in state.files:
        raise StoreCorrupt(f"{Path(folder) / STATE}: names no {name!r}, only {sorted(state.files)}")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        _require_unchanged(folder, state)
        raise StoreMissing(f"{path}: missing from the checkpoint") from error
    wanted = state.files[name]
    found = describe_bytes(data)
    if found != wanted:
        _require_unchanged(folder, state)
        raise StoreCorrupt(f"{path}: expected {wanted}, got {found}; use another checkpoint")
    try:
        return parse_safetensors(data)
    except SafetensorError as error:
        raise StoreCorrupt(f"{path}: not a safetensors file: {error}") from error


def _require_unchanged(folder: Path | str, state: CheckpointState) -> None:
    """Raise StoreCorrupt when another whole checkpoint has the place of the one that `state` was read of: what does not
    fit then is no damage.
    """
    try:
        now = read_state(folder)
    except (StoreMissing, StoreCorrupt):
        return
    if now.files != state.files:
        raise StoreCorrupt(
            f"{folder}: this checkpoint, of step {state.step}, was replaced while it was read, by one of step "
            f"{now.step}; run the same command again"
        )


def describe_bytes(data: bytes) -> dict[str, Any]:
    """Entry of `CheckpointState.files`."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy `tensors` into `module`: same names, shapes and dtypes, or StoreCorrupt names the first that differs."""
    own = module.state_dict()
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or extra:
        raise StoreCorrupt(
            f"{where}: weights do not fit the model of its configuration: "
            f"{len(missing)} missing {missing[:3]}, {len(extra)} unknown {extra[:3]}"
        )
    for name, value in own.items():
        came = tensors[name]
        if came.shape != value.shape or came.dtype != value.dtype:
            raise StoreCorrupt(
                f"{where}: {name}: expected {value.dtype} {list(value.shape)}, got {came.dtype} {list(came.shape)}"
            )
    module.load_state_dict(dict(tensors), strict=True)


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
