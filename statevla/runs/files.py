"""A checkpoint on disk, read side: a folder of safetensors and one JSON file, which trainers write and everyone reads.

    model.safetensors      the phase's model: weights, normalization buffers, in phase 1 the moving average ("target.")
    optimizer.safetensors  "<parameter>/<slot>", AdamW's moments by parameter name
    language.safetensors   "vectors" float32 [instructions, 512], rows in the order of state.json's "instructions"
    state.json             everything else (`CheckpointState`), with size and sha256 of the three files

A checkpoint folder appears under its name whole (`stores.disk.durable.staging_dir`), so what is there is complete.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor, nn

from stores.errors import StaleKey, StoreCorrupt, StoreMissing, UsageError

FORMAT: Final = 1
STATE: Final = "state.json"
MODEL: Final = "model.safetensors"
OPTIMIZER: Final = "optimizer.safetensors"
LANGUAGE: Final = "language.safetensors"
PHASE_FOLDERS: Final = {1: "phase1_temporal_jepa", 2: "phase2_flow_matching"}


@dataclass(frozen=True)
class CheckpointState:
    """All of a checkpoint that is not a tensor.

    step: optimizer steps done. loader: epoch, batch and manifest hash to go on from. loss: training loss of the last
    step. best: step and val_loss of the best validation so far, or None. scheduler: the learning rate's rule (a pure
    function of the step). rng: torch's generator states in hex, and the seed of the per-step noise. statistics: the
    store's normalization. instructions: rows of language.safetensors. backbone: name and revision of the frozen vision
    weights, which no checkpoint holds. encoder: for phase 2 where the frozen encoder came from. files: bytes and
    sha256 by name.
    """

    format: int
    phase: int
    epoch: int
    step: int
    loader: dict[str, Any]
    loss: float
    best: dict[str, Any] | None
    scheduler: dict[str, Any]
    rng: dict[str, Any]
    config: dict[str, Any]
    obs_spec: dict[str, Any]
    statistics: dict[str, Any]
    manifest_hash: str
    instructions: list[str]
    language: dict[str, Any]
    backbone: dict[str, Any] | None
    encoder: dict[str, Any] | None
    code_version: str
    files: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def read_state(folder: Path | str) -> CheckpointState:
    """Parse state.json of a checkpoint folder.

    Raises StoreMissing when there is no checkpoint, StoreCorrupt when its fields are not the ones expected.
    """
    path = Path(folder) / STATE
    try:
        tree = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreMissing(f"{folder}: no checkpoint here ({STATE} is missing); run `statevla train`") from error
    except ValueError as error:
        raise StoreCorrupt(f"{path}: not JSON: {error}") from error
    wanted = {item.name for item in fields(CheckpointState)}
    if not isinstance(tree, dict) or set(tree) != wanted:
        came = sorted(tree) if isinstance(tree, dict) else type(tree).__name__
        raise StoreCorrupt(f"{path}: expected the fields {sorted(wanted)}, got {came}")
    state = CheckpointState(**tree)
    if state.format != FORMAT or state.phase not in PHASE_FOLDERS:
        raise StoreCorrupt(f"{path}: expected format {FORMAT}, phase 1 or 2; got {state.format!r}, {state.phase!r}")
    return state


def read_tensors(folder: Path | str, state: CheckpointState, name: str) -> dict[str, Tensor]:
    """Tensors of one safetensors file, on the CPU. Raises StoreCorrupt when its bytes are not what state.json says."""
    path = Path(folder) / name
    if name not in state.files:
        raise StoreCorrupt(f"{Path(folder) / STATE}: names no {name!r}, only {sorted(state.files)}")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreMissing(f"{path}: missing from the checkpoint") from error
    wanted = state.files[name]
    found = describe_bytes(data)
    if found != wanted:
        raise StoreCorrupt(f"{path}: expected {wanted}, got {found}; use another checkpoint")
    try:
        return parse_safetensors(data)
    except SafetensorError as error:
        raise StoreCorrupt(f"{path}: not a safetensors file: {error}") from error


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


def require_phase(state: CheckpointState, phase: int, folder: Path | str) -> None:
    """Raise UsageError when the checkpoint is of the other phase."""
    if state.phase != phase:
        what = {1: "a phase-1 state encoder", 2: "a phase-2 policy"}
        raise UsageError(
            f"{folder}: expected {what[phase]} ({PHASE_FOLDERS[phase]}), got {what[state.phase]}; "
            f"run `statevla train --phase {phase}` or name a checkpoint below {PHASE_FOLDERS[phase]}/"
        )


def require_store(state: CheckpointState, manifest_hash: str, folder: Path | str, store: str) -> None:
    """Raise StaleKey when the checkpoint was trained on another store, or on another state of it."""
    if state.manifest_hash != manifest_hash:
        raise StaleKey(
            f"{folder} was trained on the store with content {state.manifest_hash[:12]}…, but {store} is "
            f"{manifest_hash[:12]}…; train phase {state.phase} again on this store, or name the other store"
        )
