"""Learning rate and noise of a step, as pure functions of its number: nothing of them needs saving."""

import math

import torch

from statevla.config import TrainingConfig


def learning_rate(step: int, total_steps: int, base: float, config: TrainingConfig) -> float:
    """Of optimizer step `step` (0-based): linear warmup to `base`, then constant, or a cosine down to 0."""
    if step < config.warmup_steps:
        return base * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return base
    progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return base * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def total_steps(epochs: int, batches_per_epoch: int, max_steps: int | None) -> int:
    """Optimizer steps of a whole run: epochs, cut at `max_steps`."""
    steps = epochs * batches_per_epoch
    return steps if max_steps is None else min(steps, max_steps)


def step_generator(seed: int, step: int) -> torch.Generator:
    """CPU generator for the noise of one training step: the same after any resume, on any device."""
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 1) % 2**63)
