"""Demonstrations to a store in object storage: ingested into a local folder, then published from there.

Shards are made, checked and resumed on a disk, where a write can be made durable and a half-made file cannot be taken
for a whole one; then every object is put conditionally, the manifest last (`publish`). A rerun reuses what is
finished of either half. The folder stays: it is what makes the next ingest to the same URL short, and what may replace
the store there. It needs the store's size on the local disk.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Final

from pipelines.ingest.config import IngestConfig, IngestPreview
from pipelines.ingest.driver import IngestSummary, ingest
from stores.cloud.publish import check_target, publish_store
from stores.errors import UsageError
from stores.progress import Progress

WORK: Final = Path("data/published")


def work_folder(url: str) -> Path:
    """The folder of a URL where none is given: its last part, for people, and a hash of all of it."""
    plain = url.rstrip("/")
    return WORK / f"{plain.rsplit('/', 1)[-1]}-{hashlib.sha256(plain.encode()).hexdigest()[:12]}"


def place(suite: str, out: Path | None, store: str | None) -> tuple[Path, str | None]:
    """Where an ingest works, and the URL that it publishes to, if any, of what it was told.

    `store` is the store, folder or URL, as in every command; of a URL, `out` is the folder to work in.
    Raises UsageError where two folders are named.
    """
    if store is None:
        return out or Path("data/stores") / suite, None
    if "://" in store:
        return out or work_folder(store), store
    if out is not None and out != Path(store):
        raise UsageError(f"--store {store} and --out {out}: two folders for one store; give one of them")
    return Path(store), None


def ingest_to_url(
    config: IngestConfig, url: str, replace: bool = False, progress: Progress | None = None, **options: Any
) -> IngestSummary | IngestPreview:
    """Bring the store at `url` to what `config` says of the sources, through the folder `config.out`.

    The URL is tried first, with requests that change nothing, so that an hour of work does not end at a missing right.
    replace: as in `stores.cloud.publish`. options: of `pipelines.ingest.driver.ingest`.
    Raises what `stores.cloud.publish.check_target`, `ingest` and `stores.cloud.publish.publish_store` raise.
    """
    allowed = check_target(config.out, url, replace)
    result: IngestSummary | IngestPreview = ingest(config, progress=progress, **options)
    if isinstance(result, IngestSummary):
        publish_store(config.out, url, progress, allowed=allowed)
    return dataclasses.replace(result, store=url)
