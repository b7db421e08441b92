"""What an ingest refuses to go on with."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.ingest.config import reasons
from pipelines.ingest.unit import writer
from stores.errors import SourceError, StateVLAError, UsageError
from stores.layout import MANIFEST, OWN_FOLDERS


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


def require_same_code(unit: str, made_by: dict[str, str]) -> None:
    """Raise StateVLAError when a worker made `unit` with another version of statevla or of a library than is here."""
    here = writer()
    differs = [f"{name} {made_by.get(name)} there, {version} here" for name, version in here.items()
               if made_by.get(name) != version]  # fmt: skip
    if differs:
        raise StateVLAError(
            f"unit {unit}: a worker runs other versions ({', '.join(differs)}); install the same on all machines"
        )
