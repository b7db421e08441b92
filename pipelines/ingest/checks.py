"""What an ingest refuses to go on with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipelines.ingest.config import reasons
from pipelines.ingest.unit import unit_code_version
from stores.errors import SourceError, StateVLAError, UsageError
from stores.manifest import MANIFEST
from stores.numbers import FRAMES

OWN_FOLDERS: Final = ("shards", "units", FRAMES)
"""Folders in which a file that the manifest does not name is a leftover of an earlier ingest, and is removed."""


def refuse_quarantine(quarantine: Sequence[dict[str, str]]) -> None:
    """Raise SourceError when anything is in quarantine."""
    if quarantine:
        raise SourceError(
            f"--strict: {len(quarantine)} demonstrations cannot be used: {reasons(quarantine)}. Without --strict they "
            "are quarantined and the others ingested"
        )


def require_own_folder(out: Path) -> None:
    """Refuse a folder that holds something else: ingest removes files that it does not know from its own folders."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out}: expected a folder for the store, got a file")
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    if names and not names & {MANIFEST, *OWN_FOLDERS}:
        raise UsageError(f"{out}: expected a store or an empty folder, got {sorted(names)[:5]}; choose another --out")


def require_same_code(unit: str, version: str) -> None:
    """Raise StateVLAError when a worker made `unit` with other code than this process has."""
    if version != unit_code_version():
        raise StateVLAError(
            f"unit {unit}: made by {version}, expected {unit_code_version()}: a worker runs another version of "
            "statevla; install the same on all machines"
        )
