"""How the demonstrations of a store were made, as their files say it: by a person, by a scripted expert, with noise."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from stores.errors import StoreCorrupt
from stores.layout import MANIFEST

MADE_BY: Final = "made_by"
"""Attribute of a demonstration in an HDF5 file that says it; field of a manifest's sources."""
UNSAID: Final = ""
"""Stands for demonstrations whose files do not say."""


def made_by(sources: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """What the files say -> episodes. sources: of a manifest; of older ones none says anything.

    Raises StoreCorrupt where a source says it of more episodes than it has, or in another form.
    """
    found: Counter[str] = Counter()
    for source in sources:
        said, episodes = source.get(MADE_BY, {}), source.get("episodes", 0)
        counts: list[Any] = list(said.values()) if isinstance(said, dict) else [None]
        if not all(type(n) is int and n >= 0 for n in [*counts, episodes]) or sum(counts) > episodes:
            raise StoreCorrupt(
                f"{MANIFEST}: sources: made_by: expected counts of {episodes!r:.20} episodes by text, got {said!r:.80}"
            )
        found.update(said)
        found[UNSAID] += episodes - sum(counts)
    return {text: count for text, count in sorted(found.items()) if count}


def told(found: Mapping[str, int]) -> str | None:
    """In words, for a report; None where nothing is said."""
    if not set(found) - {UNSAID}:
        return None
    parts = [
        f"{count:,} {text or 'that do not say how they were made'}" for text, count in Counter(found).most_common()
    ]
    return f"{sum(found.values()):,} demonstrations: " + "; ".join(parts)
