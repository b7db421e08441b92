"""How the demonstrations of a store were made, as their files say it: by a person, by a scripted expert, with noise."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

UNSAID: Final = ""
"""Stands for demonstrations whose files do not say."""


def made_by(sources: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """What the files say -> episodes. sources: of a manifest; of older ones none says anything."""
    found: Counter[str] = Counter()
    for source in sources:
        said = source.get("made_by", {})
        found.update(said)
        found[UNSAID] += source["episodes"] - sum(said.values())
    return {text: count for text, count in sorted(found.items()) if count}


def told(found: Mapping[str, int]) -> str | None:
    """In words, for a report; None where nothing is said."""
    if not set(found) - {UNSAID}:
        return None
    parts = [
        f"{count:,} {text or 'that do not say how they were made'}" for text, count in Counter(found).most_common()
    ]
    return f"{sum(found.values()):,} demonstrations: " + "; ".join(parts)
