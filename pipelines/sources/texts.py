"""Instructions as files have them -> instructions as people read them, and those that differ by an accident.

``problem_info`` has been seen to hold an instruction in quotation marks, as a list of words and as a list of letters.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from stores.errors import SourceError

INSTRUCTION_LIMIT: Final = 1000
QUOTES: Final = "\"'`\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\u00ab\u00bb\u2039\u203a"
OF_FILES: Final = "problem_info.language_instruction"


def require_printable(value: Any, where: str) -> str:
    """Raise SourceError unless `value` is text that a store may hold and a terminal may show; returns it."""
    if not isinstance(value, str):
        raise SourceError(f"{where}: expected text, got {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{where}: expected UTF-8 text, got {value!r:.80}") from error
    if not value.isprintable():
        raise SourceError(f"{where}: expected printable text, got {value!r:.80}")
    return value


def identifier(text: str) -> str:
    """A name of letters, digits and '_' out of any."""
    found = re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_") or "unnamed"
    return found if not found[0].isdigit() else f"n{found}"


def clean_instruction(value: Any, where: str = OF_FILES) -> str:
    """The text: words joined by a space, letters by nothing, outer quotation marks and surplus white space away.

    where: for errors. Raises SourceError on what is no printable text of 1 to `INSTRUCTION_LIMIT` characters.
    """
    text = value
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        letters = all(len(part) <= 1 for part in value)
        text = ("" if letters else " ").join(value)
    if not isinstance(text, str) or len(text) > 4 * INSTRUCTION_LIMIT:
        raise SourceError(f"{where}: expected text, got {value!r:.80}")
    text = " ".join(text.split())
    while len(text) > 1 and _quoted(text):
        text = text[1:-1].strip()
    if not text.strip(QUOTES + " ") or len(text) > INSTRUCTION_LIMIT:
        raise SourceError(f"{where}: expected text, got {value!r:.80}")
    return require_printable(text, where)


def _quoted(text: str) -> bool:
    """Whether the whole of `text` stands in quotation marks, rather than words at its two ends."""
    first, last = text[0], text[-1]
    return first in QUOTES and last in QUOTES and not any(mark in text[1:-1] for mark in {first, last})


def near_identical(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different texts that read alike: but for case, punctuation, spaces, or one letter of a long word."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for text in sorted(set(texts)):
        words = _words(text)
        key = next((key for key in groups if _alike(key, words)), words)
        groups.setdefault(key, []).append(text)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold().replace("_", " ")))


def _alike(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    if "".join(a) == "".join(b):
        return True
    if len(a) != len(b):
        return False
    differ = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
    return len(differ) == 1 and _slip(*differ[0])


def _slip(a: str, b: str) -> bool:
    """Whether two long words differ by one letter: added, changed, or two of them swapped; digits are no letters."""
    if min(len(a), len(b)) < 5 or any(letter.isdigit() for letter in a + b):
        return False
    short, long = sorted((a, b), key=len)
    if len(long) == len(short) + 1:
        return any(long[:at] + long[at + 1 :] == short for at in range(len(long)))
    places = [at for at in range(len(a)) if len(a) == len(b) and a[at] != b[at]]
    swapped = len(places) == 2 and places[1] == places[0] + 1 and a[places[0]] == b[places[1]]
    return len(places) == 1 or (swapped and a[places[1]] == b[places[0]])
