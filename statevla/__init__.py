"""StateVLA: small vision-language-action policies, trained from stores that are computed once.

The names in `__all__` are the Python interface (docs/api.md). Importing this package loads no heavy library: the module
of a name is imported when the name is first used.
"""

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from statevla.version import __version__

if TYPE_CHECKING:
    from statevla.data.batch import Batch as Batch
    from statevla.evaluators.evaluate import evaluate as evaluate
    from statevla.evaluators.results import Results as Results
    from statevla.observation import Observation as Observation
    from statevla.observation import ObsSpec as ObsSpec
    from statevla.observation import from_simulator as from_simulator
    from statevla.policies.execution import Execution as Execution
    from statevla.policies.noise import Draw as Draw
    from statevla.policies.policy import Policy as Policy
    from stores.reader import Store as Store

__all__ = [
    "Batch",
    "Draw",
    "Execution",
    "ObsSpec",
    "Observation",
    "Policy",
    "Results",
    "Store",
    "__version__",
    "batches",
    "evaluate",
    "from_simulator",
    "load_policy",
    "open_store",
]

_HOMES: Final = {
    "Batch": "statevla.data.batch",
    "Draw": "statevla.policies.noise",
    "Execution": "statevla.policies.execution",
    "ObsSpec": "statevla.observation",
    "Observation": "statevla.observation",
    "Policy": "statevla.policies.policy",
    "Results": "statevla.evaluators.results",
    "Store": "stores.reader",
    "evaluate": "statevla.evaluators.evaluate",
    "from_simulator": "statevla.observation",
}
"""The module of each public name that is not defined in this file."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'statevla' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def open_store(path: Path | str) -> "Store":
    """Open the store in a folder or at a URL. A folder is found again after the working directory has changed.

    Checked now are the manifest, the index tables, and the name and size of every object; what an object holds is
    checked when it is read.

    Raises:
        StoreMissing: there is no store.
        StoreCorrupt: something of it is not as the manifest says.
    """
    from stores.reader import Store

    return Store.open(_whole(path))


def _whole(path: Path | str) -> Path | str:
    """A folder by its whole path, since notebooks change theirs and Python expands no ``~``; a URL as it is."""
    return path if isinstance(path, str) and "://" in path else Path(os.path.expanduser(path)).absolute()


def batches(
    store: "Store",
    *,
    split: str = "train",
    batch_size: int = 64,
    chunk: int = 10,
    epochs: int | None = 1,
    seed: int = 0,
    next_observation: bool = False,
    threads: int = 2,
) -> Iterator["Batch"]:
    """Batches of a store's transitions, in the order in which a training run with this seed and batch size sees them.

    Every epoch goes through the split in another order, and leaves out the few transitions that do not fill a batch.
    All tensors are on the CPU. Images are uint8 in the size they are stored in; actions are in the store's units.

    Args:
        split: "train" or "val".
        batch_size: rows of a batch, B.
        chunk: actions of a row, K.
        epochs: how many epochs; None: without end.
        seed: of the order.
        next_observation: also load the next observation of every row, and leave out the rows that have none.
        threads: how many threads read and decode.

    Raises:
        UsageError: the split is empty or smaller than a batch, or a number is out of range.
    """
    from statevla.config import DataConfig
    from statevla.data.loaders import SegmentLoader
    from statevla.data.needs import Needs
    from stores.errors import UsageError

    counts = {"batch_size": batch_size, "chunk": chunk, "epochs": 1 if epochs is None else epochs, "threads": threads}
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"batches: {name}: expected a whole number of at least 1, got {value}")
    if not 0 <= seed < 2**64:
        raise UsageError(f"batches: seed: expected a whole number in [0, 2^64), got {seed}")
    needs = Needs(offsets=(0, 1), require=True) if next_observation else Needs()
    loader = SegmentLoader(store, split, batch_size, seed, DataConfig(loader_threads=threads), chunk, needs)

    def stream() -> Iterator["Batch"]:
        source = loader.batches()
        try:
            for position, batch in source:
                yield batch
                if epochs is not None and position.epoch >= epochs:
                    return
        finally:
            source.close()

    return stream()


def load_policy(
    run: Path | str, *, device: str = "auto", precision: str = "float32", euler_steps: int | None = None
) -> "Policy":
    """Load the policy of a run folder (from its latest checkpoint) or of a checkpoint folder.

    Args:
        device: "auto", "cpu" or "cuda".
        precision: "float32" or "bfloat16": what the large matrix products are computed in.
        euler_steps: sampling steps of a flow policy; None: as in training.

    Raises:
        StoreMissing: there is no checkpoint.
        StoreCorrupt: the checkpoint is damaged.
        UsageError: the checkpoint is not a policy's (but a state encoder's, for example), or the run has several.
    """
    from statevla.policies.policy import Policy
    from statevla.systems.find import find_policy

    return Policy.load(find_policy(Path(_whole(run))), device, precision, euler_steps)
