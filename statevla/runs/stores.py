"""Which store a command means when it is not told: the only one there is, or an error that lists all."""

from pathlib import Path
from typing import Final

from stores.errors import StoreMissing, UsageError
from stores.manifest import MANIFEST

STORES: Final = Path("data/stores")


def is_there(store: Path | str) -> bool:
    """Whether a folder is a store; of a URL opening it tells."""
    return "://" in str(store) or (Path(store) / MANIFEST).is_file()


def recorded(store: Path | str) -> str:
    """What a run says of its store: a folder by its whole path, so that it is found from any other folder."""
    return str(store) if "://" in str(store) else str(Path(store).absolute())


def find_store(store: Path | str | None = None, root: Path = STORES) -> Path | str:
    """`store` itself, checked when it is a folder, else the only store below `root`.

    Raises StoreMissing when there is none, UsageError when there are several.
    """
    if store is not None:
        if not is_there(store):
            raise StoreMissing(f"{store}: no store here ({MANIFEST} is missing); run `statevla ingest` first")
        return store
    found = sorted(path.parent for path in root.glob(f"*/{MANIFEST}"))
    if not found:
        raise StoreMissing(f"no store below {root}/; run `statevla ingest SUITE` first, or name one with --store")
    if len(found) > 1:
        listed = ", ".join(str(path) for path in found)
        raise UsageError(f"several stores below {root}/: {listed}; name one with --store")
    return found[0]
