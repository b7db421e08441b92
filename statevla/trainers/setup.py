"""What a run checks and chooses before its first step: device, precision, configuration of a resumed run."""

from pathlib import Path
from typing import Any, Final

import torch

from statevla.config import Config, flatten
from statevla.runs.files import MODEL, CheckpointState, read_state
from stores.errors import UsageError

MAY_CHANGE: Final = (
    "data.store", "data.loader_threads", "data.cache_gib", "training.max_steps", "training.save_interval",
    "training.log_interval", "training.validate_every_steps", "training.device", "training.torch_threads",
    "training.phase1.num_epochs", "training.phase2.num_epochs", "model.mamba_backend",
)  # fmt: skip
"""Configuration keys that a resumed run may set otherwise; with the others it would be another run."""


def choose_device(name: str) -> torch.device:
    """``auto``: CUDA where there is one. Raises UsageError on a device that torch does not have here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"training.device: {name!r} is no torch device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"training.device: {name!r} asked for, but this torch finds no CUDA device; use cpu")
    return device


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bfloat16."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def encoder_origin(folder: Path) -> dict[str, Any]:
    """Where a frozen encoder came from, for the policy's checkpoints."""
    state = read_state(folder)
    return {"checkpoint": folder.name, "step": state.step, "sha256": state.files[MODEL]["sha256"]}


def require_same_config(config: Config, state: CheckpointState, where: Path) -> None:
    """Raise UsageError naming the first key on which a resumed run differs from its checkpoint."""
    saved = flatten(state.config)
    for key, mine in flatten(config.to_dict()).items():
        if key not in MAY_CHANGE and saved[key] != mine:
            raise UsageError(
                f"{key}: {mine!r} here, {saved[key]!r} in {where}; a resumed run keeps its configuration, "
                f"use --set {key}={saved[key]}, or start another run without --resume"
            )
