"""What a run trains from instead of pictures: kept features of a frozen tower, kept states of a frozen encoder.

Said in its log, also where it is not done, and why.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from statevla.config import Config
from statevla.data.decoded import decode_store, find_decoded
from statevla.data.machine import cache_bytes, loader_threads
from statevla.data.sequential import SequentialLoader
from statevla.data.views import (
    VIEWS,
    Latents,
    LaterStates,
    Rows,
    View,
    open_decoded,
    open_features,
    rows_of_latents,
)
from statevla.encoders.backbone import FrozenVision
from statevla.encoders.features import open_kept, open_named, tower_of
from statevla.encoders.vision import identity, load_backbone
from statevla.models.encoder import StateEncoder
from statevla.systems.stamo import StamoModel
from statevla.trainers.latents import Coder, compute_latents, find_latents, is_writable, made_from, width_of
from stores.derived import key_of
from stores.errors import StoreMissing, UsageError
from stores.layout import DECODED, FEATURES, LATENTS
from stores.reader import Store

if TYPE_CHECKING:
    from statevla.trainers.run import Run


def choose_backbone(config: Config, store: Store, device: torch.device) -> FrozenVision | None:
    """The frozen tower, or where its features are kept no more than its identity.

    Raises as `open_kept`, and UsageError where augmentation would want pictures.
    """
    if config.data.features is None:
        return load_backbone(config.model, device)
    if _augments(config):
        raise UsageError("data.features: augmentation makes other pictures at every step; leave one of the two out")
    return tower_of(open_kept(store, config.data.features, config.model))


def _augments(config: Config) -> bool:
    training = config.training
    return bool(training.augment_shift or training.augment_colour or training.augment_affine)


def use_what_is_kept(run: "Run") -> None:
    """Let the loaders give what stands for the pictures; states that are not there yet are computed first, or waited
    for while another process computes them.
    """
    if run.step == run.total:
        return
    data = run.config.data
    if isinstance(run.loader, SequentialLoader):
        run.say(
            f"data.stream=sequential: {len(run.loader.shards)} shards from end to end, {run.loader.processes} "
            "processes; pictures are decoded, and a frozen encoder sees them, at every step; a resumed run begins "
            "another pass",
        )
        return
    kept = None if data.features is None else open_kept(run.store, data.features, run.config.model)
    features = None if kept is None else open_features(kept, 0.0)
    both = run.model.needs.features_beside
    view = None if both else features
    key = None if kept is None else kept.key
    rows = _states(run, view, key) if run.system.parents_of(run.config) else None
    states = None if rows is None else Latents(rows)
    if states is None and view is not None:
        run.say(f"trains from features/{data.features}, no picture is opened")
    if states is None and view is None and data.cache == "decoded":
        view = _decoded(run)
    beside = tuple(_further(run, name) for name in run.model.needs.beside)
    if both:
        seen = "which the tower sees at every step" if features is None else f"beside features/{data.features}"
        run.say(f"trains from pictures, {seen}")
        beside += () if features is None else (features,)
    if run.model.needs.states:
        beside += (_later_states(run, view, key) if rows is None else _later(run, rows),)
    for source in (run.loader.source, *(() if run.validation is None else (run.validation.source,))):
        source.view = states or view
        source.beside = beside


def _further(run: "Run", name: str) -> View:
    """A view that comes beside, from the derived folder of its name. Raises as `open_named`."""
    open_view = VIEWS[name]
    if open_view is None:
        raise UsageError(f"view {name}: expected a row of VIEWS with a way to open its folder, got None")
    found = open_named(run.store, name, f"whatever computes view {name}")
    run.say(f"reads view {name} from {FEATURES}/{name}")
    return open_view(found, cache_bytes(run.config.data))


def _decoded(run: "Run") -> View:
    """Pictures from the mapped file, which rank 0 makes where it is not there."""
    root = Path(run.store.root) if is_writable(run.store, DECODED) else run.run_dir

    def decode() -> None:
        if run.ranks.first and find_decoded(run.store, run.run_dir) is None:
            run.say(f"decodes every picture once, into {root}/decoded; then reads that")
            decode_store(run.store, root, loader_threads(run.config.data), run.progress)

    run.ranks.together(decode)
    found = find_decoded(run.store, run.run_dir)
    if found is None:
        raise StoreMissing(f"{root}/decoded: rank {run.ranks.rank} does not find it; use --set data.cache=memory")
    run.say(f"reads decoded pictures from decoded/{found.name}")
    return open_decoded(found, 0.0)


def _later_states(run: "Run", view: View | None, key: str | None) -> View:
    """Those that a world head foretells. Raises UsageError where there is no frozen encoder."""
    encoder = run.model.state_encoder
    if not isinstance(encoder, StateEncoder | StamoModel):
        raise UsageError(f"{run.system.name}: expected a frozen encoder whose states are wanted, got none")
    rows, name = _kept(run, encoder, view, key)
    run.say(f"foretells latents/{name}")
    return _later(run, rows)


def _later(run: "Run", rows: Rows) -> View:
    first, frames = (run.store.episode_columns[name].astype(np.int64) for name in ("first_frame", "frames"))
    return LaterStates(rows, run.model.needs.states, np.repeat(first + frames - 1, frames))


def _states(run: "Run", view: View | None, key: str | None) -> Rows | None:
    """Of the frozen encoder, of every frame; None where they would not be enough. view, key: what it encodes."""
    data, encoder = run.config.data, run.model.frozen_encoder
    why = None
    if encoder is None:
        why = "this policy sees more of a frame than the encoder's state"
    elif not data.latents:
        why = "data.latents is off"
    elif data.shuffle_instructions:
        why = "data.shuffle_instructions pairs frames with other instructions than their own"
    elif _augments(run.config):
        why = "augmentation makes other pictures at every step"
    if why is not None or not isinstance(encoder, StateEncoder | StamoModel):
        run.say(f"encodes every frame at every step: {why}")
        return None
    rows, name = _kept(run, encoder, view, key)
    run.say(f"trains from latents/{name}, no picture is opened")
    return rows


def _kept(run: "Run", encoder: StateEncoder | StamoModel, view: View | None, key: str | None) -> tuple[Rows, str]:
    """States of every frame, computed first where they are not there, and the name of their folder."""
    data = run.config.data
    made = made_from(run.store, encoder, run.config.model, identity(run.backbone), run.autocast, key)
    root = Path(run.store.root) if is_writable(run.store, LATENTS, key_of(made)) else run.run_dir

    def compute() -> None:
        if run.ranks.first and find_latents(run.store, made, run.run_dir) is None:
            run.say(f"encodes every frame once, into {root}/latents")
            rows = run.config.training.batch_size
            width, threads = width_of(encoder, run.config.model), loader_threads(data)
            coder = Coder(encoder, width, run.device, run.autocast, rows, threads, view)
            compute_latents(run.store, root, made, coder, dict(run.parent or {}), run.progress)

    run.ranks.together(compute)
    found = find_latents(run.store, made, run.run_dir)
    if found is None:
        raise StoreMissing(
            f"{root}/latents: rank 0 has written the encoder's states there, but rank {run.ranks.rank} does not find "
            "them; ranks on several machines need one file system, or --set data.latents=false"
        )
    return rows_of_latents(found, cache_bytes(data)), found.name
