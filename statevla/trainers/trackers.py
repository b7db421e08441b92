"""Where metrics go beside the run's own JSONL file: TensorBoard or trackio, where they are installed.

Both are told the same names: ``train/loss``, ``val/z_rank`` … over optimizer steps.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
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
def tracker(name: str, run: Path, folder: str, config: Config, step: int = 0) -> Iterator[Track]:
    """Yield what is given every record of the metrics. Raises UsageError where the package is missing.

    step: that a resumed run goes on from, with the same curves; what they have of later steps is told again.
    """
    if name == "none":
        yield untracked
    elif name == "tensorboard":
        again = {"purge_step": step + 1} if step else {}
        writer = _module(name).SummaryWriter(str(run / "tensorboard" / folder), **again)
        try:

            def add(record: Mapping[str, Any]) -> None:
                for key, value, step in _numbers(record):
                    writer.add_scalar(key, value, step)

            yield add
        finally:
            writer.close()
    else:
        trackio = _module(name)
        resume = "allow" if step else "never"
        with redirect_stdout(sys.stderr):  # it says what it does, and what this program prints may be JSON
            trackio.init(project="statevla", name=f"{run.name}-{folder}", config=config.to_dict(), resume=resume)
        try:
            yield lambda record: trackio.log({key: value for key, value, _ in _numbers(record)}, step=record["step"])
        finally:
            with redirect_stdout(sys.stderr):
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
