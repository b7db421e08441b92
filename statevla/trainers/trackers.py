"""Where metrics go beside the run's own JSONL file: TensorBoard or trackio, where they are installed.

Both are told the same names: ``train/loss``, ``val/z_rank`` … over optimizer steps.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from statevla.config import Config
from stores.errors import UsageError

NEITHER: Final = ("step", "epoch", "kind")
MODULES: Final = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio"}
Track = Callable[[Mapping[str, Any]], None]


def untracked(record: Mapping[str, Any]) -> None:
    """Of a run without a tracker."""


@contextmanager
def tracker(name: str, run: Path, folder: str, config: Config) -> Iterator[Track]:
    """Yield what is given every record of the metrics. Raises UsageError where the package is missing."""
    if name == "none":
        yield untracked
    elif name == "tensorboard":
        writer = _module(name).SummaryWriter(str(run / "tensorboard" / folder))
        try:

            def add(record: Mapping[str, Any]) -> None:
                for key, value, step in _numbers(record):
                    writer.add_scalar(key, value, step)

            yield add
        finally:
            writer.close()
    else:
        trackio = _module(name)
        trackio.init(project="statevla", name=f"{run.name}-{folder}", config=config.to_dict())
        try:
            yield lambda record: trackio.log({key: value for key, value, _ in _numbers(record)}, step=record["step"])
        finally:
            trackio.finish()


def require_tracker(name: str) -> None:
    """Raise UsageError where the package of a tracker is missing: before a run computes and writes anything."""
    if name != "none":
        _module(name)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(MODULES[name])
    except ImportError as error:
        raise UsageError(f"training.tracker: {name} is not installed; pip install 'statevla[{name}]'") from error


def _numbers(record: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    kind, step = str(record["kind"]), int(record["step"])
    return [
        (f"{kind}/{key}", float(value), step)
        for key, value in record.items()
        if key not in NEITHER and isinstance(value, int | float)
    ]
