"""The states of a frozen encoder, of every frame of a store: computed once, kept as the derived folder ``latents``.

Keyed by what they are a function of: the store's content, the encoder's weights and configuration, the frozen vision
tower's revision, and the precision. So every policy on the same encoder shares them, whatever its run.

Legend: N frames of the store, D width, B batch.
"""

import contextlib
import dataclasses
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from statevla.config import ModelConfig
from statevla.config.options import keys
from statevla.config.schema import SystemOptions
from statevla.data.frames import Table, make_table
from statevla.data.numbers import Numbers
from statevla.data.views import View, open_features
from statevla.data.walk import walk_observations
from statevla.encoders.features import open_kept, require_same_kept, tower_of
from statevla.encoders.vision import load_backbone, require_identity
from statevla.models.encoder import StateEncoder
from statevla.policies.prepare import choose_device
from statevla.runs.files import MODEL, read_tensors
from statevla.runs.layout import LATEST
from statevla.runs.state import KEPT, CheckpointState, read_state, require_store
from statevla.systems.find import find_parent, resolve
from statevla.systems.frozen import FrozenEncoder
from statevla.systems.stamo import StamoModel
from statevla.systems.system import Given, Parent
from statevla.systems.table import SYSTEMS, config_of, find_system
from statevla.trainers.setup import HOW_TRAINED, use_bf16
from stores.derived import Derived, begin, key_of, open_derived
from stores.disk.lock import lock
from stores.errors import StaleKey, StoreCorrupt, StoreMissing, UsageError
from stores.layout import LATENTS
from stores.progress import Progress, ProgressEvent, told
from stores.reader import Store
from stores.sharded import ShardedSpec, write_shard

FORMAT: Final = 1
MAKE: Final = "statevla latents STORE --checkpoint RUN"
ROWS_A_CHUNK: Final = 256
ROWS_A_SHARD: Final = 1024
"""What an interrupted run loses at most."""
NOT_OF_THE_STATE: Final = frozenset({"model.vision_model", "model.mamba_backend", "levels"})
"""Where the tower's weights lie is no part of what they are; kernels differ by rounding alone; at which levels a StaMo
was trained is in its weights.
"""


def made_from(
    store: Store,
    encoder: StateEncoder | StamoModel,
    config: ModelConfig,
    backbone: dict[str, Any] | None,
    bf16: bool,
    features: str | None = None,
) -> dict[str, Any]:
    """Everything that the states are a function of.

    backbone: `statevla.encoders.vision.identity`. features: key of what it reads in place of pictures. Of StaMo its
    options too, whose states stand one after the other.
    """
    further = {} if isinstance(encoder, StateEncoder) else {"stamo": _options(encoder.options)}
    fixed = {key.name: key.value for key in keys(config, "model.") if key.option.parent}
    return {
        "format": FORMAT,
        "content_hash": store.content_hash,
        "encoder": hash_weights(encoder),
        "model": {name: value for name, value in fixed.items() if name not in NOT_OF_THE_STATE},
        "backbone": None if backbone is None else backbone["revision"],
        "features": features,
        "precision": "bfloat16" if bf16 else "float32",
        **further,
    }


def _options(options: SystemOptions) -> dict[str, Any]:
    left_out = HOW_TRAINED | NOT_OF_THE_STATE
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in left_out}


def width_of(encoder: StateEncoder | StamoModel, config: ModelConfig) -> int:
    """Numbers of a state."""
    return config.embed_dim if isinstance(encoder, StateEncoder) else math.prod(encoder.state_shape)


def hash_weights(module: torch.nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of all parameters and buffers."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def find_latents(store: Store, made: dict[str, Any], beside: Path | None = None) -> Derived | None:
    """Those of the store, or of the folder `beside` it; None when they are yet to be computed, or damaged."""
    for root in (store.storage, beside):
        if root is None:
            continue
        try:
            return open_derived(root, LATENTS, made, MAKE)
        except (StoreMissing, StaleKey, StoreCorrupt):
            continue
    return None


@dataclass(frozen=True)
class Coder:
    """What computes states of `width` numbers. batch: frames at a time; all batches have this many rows, so that all
    rows are treated alike. view: of the frames, None for pictures.
    """

    encoder: StateEncoder | StamoModel
    width: int
    device: torch.device
    bf16: bool
    batch: int
    threads: int
    view: View | None = None

    @torch.no_grad()
    def states(self, store: Store, table: Table, numbers: Numbers, start: int, stop: int) -> list[NDArray[np.float32]]:
        """float32 [n, D] of frames start … stop - 1, in pieces."""
        found = []
        for _, obs in walk_observations(store, table, numbers, start, stop, self.batch, self.threads, self.view):
            rows = len(obs.robot_state)
            if rows < self.batch:
                fill = torch.arange(self.batch).clamp(max=rows - 1)
                obs = obs.each(lambda tensor, fill=fill: tensor[fill])  # type: ignore[misc]
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                z = self.encoder.state(obs.to(self.device)).flatten(1)
            found.append(z[:rows].float().cpu().numpy())
        return found


def compute_latents(
    store: Store,
    root: Path,
    made: dict[str, Any],
    coder: Coder,
    about: dict[str, Any],
    progress: Progress | None = None,
) -> tuple[Derived, bool]:
    """Write ``latents/<key>`` below `root`, going on where an interrupted call stopped, unless another process does it
    meanwhile, which is waited for. Returns them, and whether any of them were computed here.
    """
    frames = store.manifest.counts["frames"]
    spec = ShardedSpec((frames, coder.width), "float32", ROWS_A_CHUNK, ROWS_A_SHARD)
    table = make_table(store, 1)
    numbers = Numbers(store, 2)
    coder.encoder.eval()
    with lock(root, "statevla latents", told(progress, "latents", "frames")):
        with contextlib.suppress(StoreMissing, StaleKey, StoreCorrupt):
            return open_derived(root, LATENTS, made, MAKE), False
        with begin(root, LATENTS, key_of(made), made, {"z": spec}) as folder:
            missing = folder.missing("z")
            done = frames - sum(spec.rows(m) for m in missing)
            for m in missing:
                start = m * spec.shard
                pieces = coder.states(store, table, numbers, start, start + spec.rows(m))
                write_shard(folder.root, "z", spec, m, pieces)
                done += spec.rows(m)
                if progress is not None:
                    progress(ProgressEvent("latents", done, frames, "frames"))
            folder.commit(about)
    return open_derived(root, LATENTS, made, MAKE), bool(missing)


def is_writable(store: Store, kind: str, name: str = "") -> bool:
    """Whether the derived folder can be put into the store itself, whose folders may be of several people."""
    places = (Path(store.root), Path(store.root, kind), Path(store.root, kind, name))
    return "://" not in store.root and all(os.access(place, os.W_OK) for place in places if place.exists())


def latents_of_checkpoint(
    store_path: Path | str,
    checkpoint: Path | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    batch: int = 64,
    threads: int = 2,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Keep the states of a checkpoint's encoder in the store at a folder; nothing is computed where they are there.

    checkpoint: of a state encoder, or a run that has one; None: of the only run of this store. Returns folder, key,
    frames, width, bytes and computed: whether this call did it, not one before or another process that was waited for.

    Raises UsageError for a store that cannot be written and a checkpoint without a state encoder, StaleKey for one of
    another store.
    """
    store = Store.open(store_path)
    if not is_writable(store, LATENTS):
        raise UsageError(
            f"{store.root}: {LATENTS} cannot be written; run this on a local copy of the store, then publish it"
        )
    if checkpoint is None:
        path = find_parent(find_system("flow_matching").parent, store.content_hash)
    else:
        path = resolve(checkpoint, [row for row in SYSTEMS if row.kind == "encoder"], (LATEST,))
    state = read_state(path)
    require_store(state, store.content_hash, path, store.root)
    config = config_of(state, path)
    chosen = choose_device(device)
    kept = None if config.data.features is None else open_kept(store, config.data.features, config.model)
    if kept is not None:
        require_same_kept({kept.name: kept.made_from}, state.loader.get(KEPT, {}), str(path))
    view = None if kept is None else open_features(kept, 0.0)
    backbone = load_backbone(config.model, chosen) if kept is None else tower_of(kept)
    require_identity(backbone, state.backbone, str(path))
    parent = Parent(path, state, read_tensors(path, state, MODEL))
    system = find_system(state.system)
    if system.kind != "encoder":
        raise UsageError(
            f"{path}: {system.name} is a policy; expected a state encoder: "
            f"{' or '.join(row.name for row in SYSTEMS if row.kind == 'encoder')}"
        )
    encoder = FrozenEncoder(state.system, config, Given(store.spec, store.stats(), backbone, parent)).coder
    bf16 = use_bf16(precision, chosen)
    made = made_from(store, encoder, config.model, state.backbone, bf16, None if kept is None else kept.key)
    found = find_latents(store, made)
    computed = False
    if found is None:
        width = width_of(encoder, config.model)
        coder = Coder(encoder.to(chosen), width, chosen, bf16, batch, threads, view)
        found, computed = compute_latents(store, Path(store.root), made, coder, about(state, path), progress)
    rows, width = found.sharded("z").spec.shape
    return {
        "folder": f"{LATENTS}/{found.name}", "key": found.key, "frames": rows, "width": width, "bytes": found.bytes,
        "computed": computed,
    }  # fmt: skip


def about(state: CheckpointState, path: Path) -> dict[str, Any]:
    """For people: which checkpoint the states came from first."""
    return {"system": state.system, "checkpoint": path.name, "step": state.step}
