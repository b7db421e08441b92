"""Phase 2, flow-matching policy on the frozen state encoder: how to build it, and its loss."""

from pathlib import Path

import torch
from torch import nn

from statevla.config import Config, from_dict
from statevla.data.batch import Batch
from statevla.encoders.siglip import SiglipBackbone
from statevla.models.encoder import StateEncoder
from statevla.models.losses import LossParts
from statevla.runs.files import MODEL, below, load_strict, read_state, read_tensors, require_phase, require_store
from statevla.systems.flow_matching import PolicyModel
from stores.errors import UsageError
from stores.reader import Store

ENCODER_KEYS = (
    "vision", "vision_model", "vision_width", "image_size", "patch_size", "embed_dim", "encoder_depth", "d_state",
    "d_conv", "expand",
)  # fmt: skip
"""Keys of ``model.*`` that fix the encoder's weights; both phases must agree on them."""


def build(
    config: Config, store: Store, encoder_checkpoint: Path | None, backbone: SiglipBackbone | None
) -> PolicyModel:
    """Policy with fresh weights around the encoder of a phase-1 checkpoint; None where a resumed run loads its own.

    Raises UsageError when the checkpoint is of phase 2 or its encoder is configured otherwise; StaleKey when it was
    trained on another store.
    """
    statistics = store.stats()
    encoder = StateEncoder(config.model, statistics, backbone, store.spec)
    if encoder_checkpoint is not None:
        load_encoder(encoder, config, store, encoder_checkpoint)
    return PolicyModel(config, encoder, statistics)


def load_encoder(encoder: StateEncoder, config: Config, store: Store, folder: Path) -> None:
    """Fill `encoder` from the phase-1 checkpoint in `folder`, with the errors of `build`."""
    state = read_state(folder)
    require_phase(state, 1, folder)
    require_store(state, store.content_hash, folder, str(store.root))
    trained = from_dict(state.config).model
    for key in ENCODER_KEYS:
        mine, theirs = getattr(config.model, key), getattr(trained, key)
        if mine != theirs:
            raise UsageError(
                f"model.{key}: {mine!r} here, {theirs!r} in {folder}; both phases share one encoder, "
                f"use --set model.{key}={theirs} or the preset of phase 1"
            )
    tensors = below(read_tensors(folder, state, MODEL), "encoder.")
    load_strict(encoder, tensors, f"{folder / MODEL} (encoder.)")


def loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> LossParts:
    """Flow matching and gripper; noise from `generator`."""
    parts: LossParts = model(batch, generator)
    return parts


def after_step(model: PolicyModel, config: Config, step: int, total_steps: int) -> None:
    """Nothing: the encoder stays as it is."""
