"""Phase 1, temporal JEPA: how to build it, its loss, and the moving average after every optimizer step."""

from pathlib import Path

import torch
from torch import nn

from statevla.config import Config
from statevla.data.batch import Batch
from statevla.encoders.siglip import SiglipBackbone
from statevla.models.losses import LossParts
from statevla.models.predictor import ema_momentum
from statevla.systems.temporal_jepa import JepaModel
from stores.reader import Store


def build(config: Config, store: Store, encoder_checkpoint: Path | None, backbone: SiglipBackbone | None) -> JepaModel:
    """Model with fresh weights and the store's statistics."""
    return JepaModel(config, store.stats(), backbone, store.spec)


def loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> LossParts:
    """Prediction, variance and covariance; draws nothing from `generator`."""
    parts: LossParts = model(batch)
    return parts


def after_step(model: JepaModel, config: Config, step: int, total_steps: int) -> None:
    """Move the target after optimizer step number `step` (0-based) of `total_steps`."""
    model.update_target(ema_momentum(step, total_steps, config.training.phase1.ema_momentum))
