"""Augmentation of a training batch on its device, drawn for the global batch as a pure function of (seed, step).

Legend: B rows of this rank, R of the global batch, C cameras.
"""

import dataclasses

import torch
from torch import Tensor

from statevla.config import TrainingConfig
from statevla.data.batch import Batch, ObservationBatch
from statevla.models.augment import Draws, augment, draw
from statevla.trainers.schedule import step_generator
from stores.errors import UsageError

STREAM = 0x5851F42D4C957F2D
"""Added to the seed: another stream than that of a system's noise, which stays as it is without augmentation."""


def wanted(training: TrainingConfig) -> bool:
    """Whether pictures are to be changed at all."""
    return training.augment_shift > 0 or training.augment_colour > 0 or training.augment_affine


def draws_of_step(training: TrainingConfig, step: int, cameras: int) -> Draws:
    """For all rows of the global batch, on the CPU."""
    generator = step_generator((training.seed + STREAM) % 2**63, step)
    return draw(
        training.batch_size, cameras, training.augment_shift, training.augment_colour, generator,
        training.augment_affine,
    )  # fmt: skip


def augmented(batch: Batch, draws: Draws) -> Batch:
    """`batch` with now, next and goal changed by the same draw of each row and camera; draws: of its rows.

    Raises UsageError for a batch without pictures.
    """
    return batch.see(lambda obs: _changed(obs, draws))


def _changed(obs: ObservationBatch, draws: Draws) -> ObservationBatch:
    if not all(frames.dtype == torch.uint8 for frames in obs.images) or not obs.images:
        raise UsageError(
            "training.augment_*: this run trains from precomputed features or latents, which have no pictures to "
            "change; train from pictures, or leave augmentation off"
        )
    images: list[Tensor] = []
    for camera, frames in enumerate(obs.images):
        images.append(augment(frames.unsqueeze(1), draws.camera(camera)).squeeze(1))
    return dataclasses.replace(obs, images=tuple(images))
