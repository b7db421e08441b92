"""Which store a command means when it is not told: the only one there is, or an error that lists all."""

from pathlib import Path
from typing import Final

from stores.errors import StoreMissing, UsageError
from stores.manifest import MANIFEST

STORES: Final = Path("data/stores")


def find_store(store: Path | str | None = None, root: Path = STORES) -> Path | str:
    """`store` itself, checked when it is a folder, else the only store below `root`.

    Raises StoreMissing when there is none, UsageError when there are several.
    """
    if store is not None:
        if "://" not in str(store) and not (Path(store) / MANIFEST).is_file():
            raise StoreMissing(f"{store}: no store here ({MANIFEST} is missing); run `statevla ingest` first")
        return store
    found = sorted(path.parent for path in root.glob(f"*/{MANIFEST}"))
    if not found:
        raise StoreMissing(f"no store below {root}/; run `statevla ingest SUITE` first, or name one with --store")
    if len(found) > 1:
        listed = ", ".join(str(path) for path in found)
        raise UsageError(f"several stores below {root}/: {listed}; name one with --store")
    return found[0]
