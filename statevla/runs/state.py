"""What a checkpoint's state.json says: all of it that is no tensor. Reading it loads no heavy library."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from statevla.runs.layout import STATE
from statevla.runs.migrations import migrate
from stores.errors import StaleKey, StoreCorrupt, StoreMissing

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
    no checkpoint holds. parent: of a policy, where its frozen encoder came from. files: bytes and sha256 by name.
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


def require_store(state: CheckpointState, content_hash: str, folder: Path | str, store: str) -> None:
    """Raise StaleKey when the checkpoint was trained on another store, or on another state of it."""
    if state.content_hash != content_hash:
        raise StaleKey(
            f"{folder} was trained on the store with content {state.content_hash[:12]}…, but {store} is "
            f"{content_hash[:12]}…; train {state.system} again on this store, or name the other store"
        )
