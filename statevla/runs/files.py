"""A checkpoint on disk, read side: a folder of safetensors and one JSON file, which trainers write and everyone reads.

    model.safetensors      the system's model: weights, normalization buffers, a JEPA's moving average ("target.")
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

from statevla.runs.layout import STATE
from statevla.runs.migrations import migrate
from stores.errors import StaleKey, StoreCorrupt, StoreMissing

MODEL: Final = "model.safetensors"
OPTIMIZER: Final = "optimizer.safetensors"
LANGUAGE: Final = "language.safetensors"
KEPT: Final = "kept"
"""Field of `CheckpointState.loader`; checkpoints of before have none, and are not compared."""


@dataclass(frozen=True)
class CheckpointState:
    """All of a checkpoint that is not a tensor.

    step: optimizer steps done. loader: epoch, batch and content hash to go on from, and ``kept``: by name, what the
    features that it reads are made from. loss: training loss of the last step. best: step and val_loss of the best
    validation so far, or None. scheduler: the learning rate's rule (a pure function of the step). rng: torch's
    generator states in hex, and the seed of the per-step noise. statistics: the store's normalization. instructions:
    rows of language.safetensors. init_states: by task, those that the store's demonstrations start from. made_by: how
    these were made, and how many so (`stores.made_by`). backbone: name and revision of the frozen vision weights, which
    no checkpoint holds. parent: of a policy, where its frozen encoder
    came from. files: bytes and sha256 by name.
    """

    format: int
    system: str
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
    content_hash: str
    instructions: list[str]
    init_states: dict[str, list[str]]
    made_by: dict[str, int]
    language: dict[str, Any]
    backbone: dict[str, Any] | None
    parent: dict[str, Any] | None
    code_version: str
    files: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @property
    def total_steps(self) -> int:
        """Length of the run that was asked for."""
        return int(self.scheduler["total_steps"])

    @property
    def finished(self) -> bool:
        """Whether the run had reached its length."""
        return self.step >= self.total_steps


def read_state(folder: Path | str) -> CheckpointState:
    """Parse state.json of a checkpoint folder.

    An earlier format is migrated. Raises StoreMissing when there is no checkpoint, StoreCorrupt when its format is
    unknown or its fields are not those of its format.
    """
    path = Path(folder) / STATE
    try:
        tree = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreMissing(f"{folder}: no checkpoint here ({STATE} is missing); run `statevla train`") from error
    except ValueError as error:
        raise StoreCorrupt(f"{path}: not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise StoreCorrupt(f"{path}: expected an object, got {type(tree).__name__}")
    tree = migrate(tree, str(path))
    wanted = {item.name for item in fields(CheckpointState)}
    if set(tree) != wanted:
        missing, extra = sorted(wanted - set(tree)), sorted(set(tree) - wanted)
        raise StoreCorrupt(f"{path}: format {tree['format']} lacks the fields {missing}, has the unknown {extra}")
    return CheckpointState(**tree)


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


def require_store(state: CheckpointState, content_hash: str, folder: Path | str, store: str) -> None:
    """Raise StaleKey when the checkpoint was trained on another store, or on another state of it."""
    if state.content_hash != content_hash:
        raise StaleKey(
            f"{folder} was trained on the store with content {state.content_hash[:12]}…, but {store} is "
            f"{content_hash[:12]}…; train {state.system} again on this store, or name the other store"
        )
