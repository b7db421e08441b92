"""Where everything of a store is: each path and folder name, once, and what kind of thing it is.

*Data* is what identity covers (`stores.manifest.Manifest.content_hash`): shards, frames, tables. *Records* (``units/``,
``quarantine.jsonl``) say how the data came about; the manifest names them too. *Derived* folders are computed from the
data after the commit and have seals of their own. What begins with a dot belongs to writers.
"""

import os
from typing import Final

from stores.disk.durable import OLD_PREFIX, TEMP_PREFIX
from stores.disk.lock import LOCK_NAME
from stores.printable import word

MANIFEST: Final = "manifest.json"

SHARDS: Final = "shards"
FRAMES: Final = "frames.zarr"
EPISODES_FILE: Final = "episodes.parquet"
SEGMENTS_FILE: Final = "segments.parquet"
LANGUAGE_FILE: Final = "language.parquet"

UNITS: Final = "units"
QUARANTINE_FILE: Final = "quarantine.jsonl"

STATISTICS: Final = "stats"
FEATURES: Final = "features"
LATENTS: Final = "latents"
DECODED: Final = "decoded"
DERIVED: Final = frozenset({STATISTICS, FEATURES, LATENTS, DECODED})

PUBLISHED: Final = ".published.json"
"""In a local store, by URL: hashes of the manifests that this folder last published, or began to."""

CLAIM: Final = ".ingest.json"
"""An unfinished ingest says here that the folder is its own, and what may lie in it."""

STAGED: Final = ".staged"
"""Folder of units that are made for the next commit while an older store stands; each lies there as it will below the
store: ``.staged/shards/…``, ``.staged/units/…``."""

OWN_FOLDERS: Final = (SHARDS, UNITS, FRAMES, STAGED)
"""Folders that nobody but ingest writes into."""
TABLES: Final = (EPISODES_FILE, SEGMENTS_FILE, LANGUAGE_FILE)


def shard_path(unit: str) -> str:
    """Path of a unit's shard."""
    return f"{SHARDS}/{unit}.tar"


def staged_shard_path(unit: str, run: str) -> str:
    """Where a worker of ingest `run` leaves a unit's shard; the driver gives it its name.

    A worker that outlives its driver so never replaces a shard of a later run: nobody takes what it leaves, and the
    name is that of a temporary, which no reader sees and the next writer removes.
    """
    return f"{SHARDS}/{TEMP_PREFIX}{run}-{unit}.tar"


def record_path(unit: str) -> str:
    """Path of a unit's record."""
    return f"{UNITS}/{unit}.json"


def is_data(path: str) -> bool:
    """Whether identity covers the object at `path`."""
    return path in TABLES or path.split("/")[0] in (SHARDS, FRAMES)


def is_derived(path: str) -> bool:
    """Whether `path` is in a derived folder."""
    return path.split("/")[0] in DERIVED and "/" in path


def is_seal(path: str) -> bool:
    """Whether `path` is the seal of a derived folder: ``stats/<key>.json``, ``<kind>/<name>/manifest.json``."""
    parts = path.split("/")
    if parts[0] == STATISTICS:
        return len(parts) == 2 and parts[1].endswith(".json") and not is_leftover(path)
    return len(parts) == 3 and parts[0] in DERIVED and parts[2] == MANIFEST


def seal_path(kind: str, name: str) -> str:
    """The seal of the derived folder `name` of a kind (`DERIVED`); statistics are nothing but their seal."""
    return f"{kind}/{name}.json" if kind == STATISTICS else f"{kind}/{name}/{MANIFEST}"


def derived_folder(path: str) -> str:
    """The derived folder that `path` is in, as people name it: ``features/<name>``; of statistics the file."""
    return "/".join(path.split("/")[:2])


def remedy(root: str, path: str) -> str:
    """What to do where the content of the object at `path` below `root` is not what was written."""
    if not is_derived(path):
        return f"run `statevla verify {word(root)}`"
    folder = derived_folder(path)
    if "://" in root:
        return f"run `statevla publish STORE {word(root)} --replace` with the folder STORE that it came from"
    if not os.path.exists(os.path.join(root, folder)):
        return f"{folder} was removed: compute it again"
    if not os.path.exists(os.path.join(root, MANIFEST)):
        return f"remove the folder {root}/{folder}, then run the same command again"
    return f"run `statevla clean {word(root)} {folder}`, then compute it again"


def is_hidden(path: str) -> bool:
    """Whether a part of `path` begins with a dot: writers' and file managers' business, not a reader's."""
    return any(part.startswith(".") for part in path.split("/"))


def is_leftover(path: str) -> bool:
    """Whether an interrupted writer left this behind."""
    return any(part.startswith((TEMP_PREFIX, OLD_PREFIX)) for part in path.split("/"))


def is_writers(path: str) -> bool:
    """Whether this is a sound store's own, though nothing names it: the lock, what was published, and what an ingest
    that did not finish has made for the next commit.
    """
    return path in (LOCK_NAME, PUBLISHED, CLAIM) or (path.startswith(f"{STAGED}/") and not is_leftover(path))
