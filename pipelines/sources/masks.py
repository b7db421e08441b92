"""robomimic's filter keys: which demonstrations of a file its owner trains on, holds out, or threw away.

``/mask/train`` and ``/mask/valid`` are lists of demonstrations' names. What was held out stays held out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from stores.errors import SourceError, UsageError

USE: Final = "use"
IGNORE: Final = "ignore"
ASK: Final = "ask"
CHOICES: Final = (ASK, USE, IGNORE)
"""Of ``--masks``; ask: use what is a split, refuse to guess at what is none."""
TRAIN: Final = ("train",)
HELD_OUT: Final = ("valid", "val", "validation")


@dataclass(frozen=True)
class Split:
    """By demonstration, ``train`` or ``val``; out: demonstrations that no mask of the split names."""

    parts: dict[str, str] = field(default_factory=dict)
    out: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def split_of(masks: Mapping[str, Sequence[str]], demos: Sequence[str], told: str, where: str) -> Split:
    """What the `masks` (demonstrations' names by mask) of file `where` say of its `demos`.

    Raises UsageError where there are masks, none of them is a split, and it was not told what to do.
    """
    if not masks:
        return Split()
    names = ", ".join(f"{name} ({len(listed)})" for name, listed in sorted(masks.items()))
    if told == IGNORE:
        return Split(notes=(f"{where}: masks {names} are not used (--masks {IGNORE})",))
    train = {demo for name in TRAIN for demo in masks.get(name, ())}
    held = {demo for name in HELD_OUT for demo in masks.get(name, ())}
    if not train and not held:
        raise UsageError(
            f"{where}: its masks are {names}; expected train and valid, to be used as the split. Pass --masks {IGNORE} "
            "to take every demonstration"
        )
    notes = [f"{where}: masks train ({len(train)}) and valid ({len(held)}) are the split (--masks {IGNORE}: not used)"]
    unused = sorted(set(masks) - {*TRAIN, *HELD_OUT})
    if unused:
        notes.append(f"{where}: masks {', '.join(unused)} are not used")
    here = set(demos)
    absent = sorted((train | held) - here)
    if absent:
        notes.append(f"{where}: masks name {', '.join(absent[:10])}, which the file has not")
    refused = tuple(
        (demo, f"{where}/{demo}: both in mask train and in mask valid; take it out of one, or pass --masks {IGNORE}")
        for demo in demos
        if demo in train & held
    )
    out = tuple(demo for demo in demos if demo not in train | held)
    if out:
        notes.append(f"{where}: {', '.join(out)} left out: in no mask of the split")
    parts = {demo: "val" if demo in held else "train" for demo in demos if demo in train ^ held}
    return Split(parts, out, refused, tuple(notes))


def check_choice(told: str) -> None:
    """Raise UsageError on what is no choice."""
    if told not in CHOICES:
        raise UsageError(f"--masks {told}: expected one of {', '.join(CHOICES)}")


def demo_names(values: Sequence[object], where: str) -> list[str]:
    """Names in a mask's dataset, bytes or text. Raises SourceError."""
    names = []
    for value in values:
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise SourceError(f"{where}: expected names of demonstrations, got {value!r:.60}")
        names.append(text.rstrip("\0"))
    return names
