"""No store, dataset or recording goes into a store: what no manifest names there is an error to `statevla verify`, and
may be removed by the next writer of that folder.
"""

import os
from pathlib import Path

from stores.errors import StoreError, UsageError
from stores.layout import CLAIM, MANIFEST
from stores.manifest import read_sealed


def require_outside(path: Path) -> None:
    """Raise UsageError where `path`, there or not, lies below the folder of a store, finished or not."""
    for folder in Path(os.path.realpath(path)).parents:
        if _is_store(folder):
            raise UsageError(
                f"{path}: lies in the store {folder}, where nothing is written but what is that store's; "
                "choose a folder outside. Nothing was changed"
            )


def _is_store(folder: Path) -> bool:
    for name, field in ((MANIFEST, "sources"), (CLAIM, "ingest")):  # a derived folder's seal has no sources
        try:
            if (folder / name).is_file() and field in read_sealed((folder / name).read_bytes(), name):
                return True
        except (StoreError, OSError):
            continue
    return False
