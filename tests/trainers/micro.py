"""A store and a configuration on which both phases train in seconds on one CPU thread."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from statevla.config import Config, load_config
from statevla.systems.table import sections
from stores.progress import ProgressEvent
from tests.stores.make_store import make_tiny_store

SETTINGS = (
    "data.lanes=4",
    "data.block_segments=2",
    "model.image_size=32",
    "model.embed_dim=32",
    "model.encoder_depth=1",
    "model.d_state=4",
    "training.phase1.temporal_predictor_hidden_dim=32",
    "model.policy_layers=1",
    "model.policy_d_state=4",
    "model.gripper_width=32",
    "training.batch_size=8",
    "training.torch_threads=1",
    "training.device=cpu",
    "training.log_interval=1",
    "training.phase1.learning_rate=1e-3",
    "training.phase2.learning_rate=1e-3",
)


def micro_config(*more: str) -> Config:
    return load_config("tiny", None, (*SETTINGS, *more))


def config_of_all(*more: str) -> Config:
    """With the options of every system, the small nets of their preset."""
    small = ("act.image_size=32", "film.image_size=32", "vla.image_size=32")
    return load_config("tiny", None, (*SETTINGS, *small, *more), sections())


def micro_store(path: Path, seed: int = 0, stats: bool = True) -> Path:
    make_tiny_store(path, episodes=8, frames=12, image=32, window=8, seed=seed, stats=stats)
    return path


def at_step(step: int, action: Callable[[], Any]) -> Callable[[ProgressEvent], None]:
    """A progress callback that does `action` once, when the training step's event comes."""
    done = []

    def watch(event: ProgressEvent) -> None:
        if event.done == step and not done:
            done.append(True)
            action()

    return watch
