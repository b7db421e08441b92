"""What an ingest refuses to go on with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.ingest.config import reasons
from pipelines.ingest.plan import safe_name, stem_of
from pipelines.ingest.unit import writer
from stores.errors import SourceError, StateVLAError, UsageError


def refuse_quarantine(quarantine: Sequence[dict[str, str]]) -> None:
    """Raise SourceError when anything is in quarantine."""
    if quarantine:
        raise SourceError(
            f"--strict: {len(quarantine)} demonstrations cannot be used: {reasons(quarantine)}. Without --strict they "
            "are quarantined and the others ingested"
        )


def refuse_findings(findings: Sequence[str]) -> None:
    """Raise SourceError when cameras show nothing."""
    if findings:
        more = f"; and {len(findings) - 5} more" if len(findings) > 5 else ""
        raise SourceError(f"--strict: {'; '.join(findings[:5])}{more}. Without --strict they are ingested, and named")


def require_kept(sources: Mapping[str, int], paths: Sequence[Path], prune: bool) -> None:
    """Raise UsageError when a source file that the store has episodes of is not there any more, unless told to `prune`.

    sources: episodes by file name, or by that in names of units. A disk that is not mounted today looks like this too.
    """
    here = {name for path in paths for name in (path.name, _of_units(path.name))}
    gone = sorted(name for name, episodes in sources.items() if episodes and name not in here)
    if gone and not prune:
        lost = sum(sources[name] for name in gone)
        raise UsageError(
            f"source: {gone[:5]} ({len(gone)} files) are gone, and the store has {lost} episodes of them. Nothing was "
            "changed; bring them back, or remove their episodes with --prune"
        )


def _of_units(file: str) -> str:
    """How a source file is called in names of its units; one whose name is not UTF-8 has none."""
    return "" if any("\ud800" <= letter <= "\udfff" for letter in file) else safe_name(stem_of(file))


def require_same_code(unit: str, made_by: dict[str, str]) -> None:
    """Raise StateVLAError when a worker made `unit` with another version of statevla or of a library than is here."""
    here = writer()
    differs = [f"{name} {made_by.get(name)} there, {version} here" for name, version in here.items()
               if made_by.get(name) != version]  # fmt: skip
    if differs:
        raise StateVLAError(
            f"unit {unit}: a worker runs other versions ({', '.join(differs)}); install the same on all machines"
        )
