"""Small random inputs for the model tests."""

import numpy as np
import torch
from numpy.typing import NDArray

from statevla.config import Config, load_config
from statevla.data.batch import Batch, ObservationBatch
from statevla.models.losses import LossParts
from statevla.systems.system import Objective
from stores.spec import LIBERO
from stores.statistics import Normalization, Statistics

MICRO = (
    "model.image_size=32",
    "model.patch_size=16",
    "model.embed_dim=32",
    "model.encoder_depth=2",
    "training.phase1.temporal_predictor_hidden_dim=48",
    "model.policy_layers=2",
    "model.policy_d_state=8",
    "model.gripper_width=24",
    "model.mamba_backend=loop",
)


def micro(*overrides: str) -> Config:
    """A model that trains a step in milliseconds."""
    return load_config("tiny", overrides=(*MICRO, *overrides))


def observations(rows: int, size: int = 24, seed: int = 0) -> ObservationBatch:
    g = torch.Generator().manual_seed(seed)
    return ObservationBatch(
        tuple(torch.randint(0, 256, (2, rows, size, size, 3), dtype=torch.uint8, generator=g)),
        torch.randn(rows, 9, generator=g),
        torch.nn.functional.normalize(torch.randn(rows, 512, generator=g), dim=-1),
    )


def batch(rows: int = 6, chunk: int = 10, seed: int = 0) -> Batch:
    """Row 0 has no successor and 3 real steps; all other rows are complete."""
    g = torch.Generator().manual_seed(seed + 100)
    ahead = torch.ones(rows, dtype=torch.int64)
    ahead[0] = 0
    is_pad = torch.zeros(rows, chunk, dtype=torch.bool)
    is_pad[0, 3:] = True
    actions = torch.rand(rows, chunk, 7, generator=g) * 2 - 1
    actions[..., 6] = torch.where(actions[..., 6] > 0, 1.0, -1.0)
    index = torch.arange(rows)
    return Batch(
        observations(rows, seed=seed),
        observations(rows, seed=seed + 1),
        ahead,
        actions[:, 0],
        actions,
        is_pad,
        index,
        index,
    )


def statistics(size: int, offset: float) -> Statistics:
    mean = tuple(offset + 0.1 * i for i in range(size))
    std = tuple(0.5 + 0.25 * i for i in range(size))
    low, high = tuple(m - 2 for m in mean), tuple(m + 2 for m in mean)
    return Statistics(mean, std, low, high, low, high, 100)


def normalization() -> Normalization:
    """No two dimensions alike; the gripper's statistics are there to be ignored."""
    return Normalization(action=statistics(7, 0.3), robot_state=statistics(9, -0.4))


def standardized(field: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """`normalization` applied by its formula, (x - shift) / scale."""
    shift, scale = normalization().affine(field, LIBERO)
    return ((values - shift) / scale).astype(np.float32)


def loss_of(model: Objective, data: Batch, generator: torch.Generator | None = None) -> LossParts:
    """The loss of one batch, with the noise of `generator`."""
    noise = model.draw(len(data), generator or torch.Generator().manual_seed(0))
    return model.loss(model(data, noise))
