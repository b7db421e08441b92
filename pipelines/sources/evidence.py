"""Evidence before belief: what the files of a source show of their conventions, weighed against one another.

A convention is checked against what the files show, told by a flag where they cannot show it, and said in a note where
it was assumed. `gather` runs in the child that reads a file; `weigh` sees what was gathered of all of them.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.sources import gripper, masks, orientation
from pipelines.sources.alignment import AFTER, BEFORE, DETECT
from pipelines.sources.fields import Fields
from pipelines.sources.gripper import Grip, Reading
from pipelines.sources.orientation import Look
from pipelines.sources.texts import near_identical
from stores.errors import SourceError, UsageError
from stores.spec import ObsSpec

OPENGL: Final = "opengl"
UPRIGHT: Final = "upright"
IMAGE_CHOICES: Final = (DETECT, OPENGL, "opencv", UPRIGHT)
"""Of ``--image-convention``. OpenCV's first row is the top one, so those pictures are upright as they are."""

SAMPLE_DEMOS: Final = 8
"""Demonstrations of a file whose numbers are looked at, at most, before it is ingested."""
FEW_DEMOS: Final = 2
"""Of these, as many are enough where their fingers agree."""
SAMPLE_LOOKS: Final = 6
"""Demonstrations of all files together whose pictures are looked at; at least one of each, at most `FILE_LOOKS`."""
FILE_LOOKS: Final = orientation.DEMOS
BLOCK, EVERY, BLOCKS = 16, 4, 6
"""Compressed files have chunks of so many frames; every fourth frame is looked at, in at most so many blocks spread
over the demonstration.
"""
ROWS: Final = 32
"""Rows that are enough of a picture; of a larger one every second, third, … is looked at."""


@dataclass(frozen=True)
class Told:
    """What the user knows of files that do not tell: one of the choices of each flag. spec: what the files hold, for
    formats that do not know; fields: which of their entries that is.
    """

    alignment: str = DETECT
    gripper: str = gripper.DETECT
    image_convention: str = DETECT
    masks: str = masks.ASK
    spec: ObsSpec | None = None
    fields: Fields | None = None

    def __post_init__(self) -> None:
        masks.check_choice(self.masks)
        for flag, value, choices in (
            ("alignment", self.alignment, (DETECT, AFTER, BEFORE)),
            ("gripper", self.gripper, gripper.CHOICES),
            ("image-convention", self.image_convention, IMAGE_CHOICES),
        ):
            if value not in choices:
                raise UsageError(f"--{flag} {value}: expected one of {', '.join(choices)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        told = {**asdict(self), "spec": None if self.spec is None else self.spec.to_dict()}
        if told.pop("fields") is None or self.fields is None:  # units made before there were fields keep their key
            return told
        return {**told, "fields": self.fields.to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Told":
        """Inverse of `to_dict`."""
        spec, named = fields["spec"], fields.get("fields")
        return cls(
            **{
                **fields,
                "spec": None if spec is None else ObsSpec.from_dict(spec),
                "fields": None if named is None else Fields.from_dict(named),
            }
        )


@dataclass(frozen=True)
class Evidence:
    """What a file says and shows. instruction: whether it carries its own. convention: what it says of its pictures,
    None: nothing. gripper, looks: of sampled demonstrations.
    """

    instruction: bool = True
    convention: str | None = OPENGL
    gripper: tuple[Grip, ...] = ()
    looks: tuple[Look, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**vars(self), "gripper": [*map(vars, self.gripper)], "looks": [*map(vars, self.looks)]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Evidence":
        """Inverse of `to_dict`."""
        seen = tuple(Grip(**row) for row in fields["gripper"])
        return cls(**{**fields, "gripper": seen, "looks": tuple(Look(**row) for row in fields["looks"])})


@dataclass(frozen=True)
class Facts:
    """How a file is read. convention: of its pictures. gripper: of its commands, None: as they are."""

    convention: str = OPENGL
    gripper: Reading | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, as it stands in a manifest."""
        reading = self.gripper
        told = None if reading is None else {**asdict(reading), "text": reading.text}
        return {"image_convention": self.convention, "gripper": told}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Facts":
        """Inverse of `to_dict`."""
        told = fields["gripper"]
        return cls(fields["image_convention"], None if told is None else Reading(told["middle"], told["closes"]))


@dataclass(frozen=True)
class Verdict:
    """Of all files. facts: by file; refused: reason by file; notes: (file, text)."""

    facts: dict[str, Facts]
    refused: dict[str, str] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()


def sample(names: Sequence[Any], count: int = SAMPLE_DEMOS) -> list[Any]:
    """`count` of `names`, spread evenly, first and last among them."""
    if not names:
        return []
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    return [names[place] for place in sorted(set(places.tolist()))]


def looks_of(files: int) -> int:
    """Demonstrations of each of `files` files whose pictures are looked at."""
    return min(FILE_LOOKS, max(1, -(-SAMPLE_LOOKS // files)))


def grips_of(names: Sequence[str], read: Callable[[str], Grip | None]) -> tuple[Grip, ...]:
    """What `read` finds in a few of the demonstrations; in more, one by one, where those do not tell beyond doubt."""
    first = sample(names, FEW_DEMOS)
    found: list[Grip] = []
    for number, name in enumerate(dict.fromkeys([*first, *sample(names)]), 1):
        if (seen := read(name)) is not None:
            found.append(seen)
        together = gripper.pool(found)
        if number >= len(first) and together is not None and together.clear:
            break
    return tuple(found)


def look(read: Callable[[int], NDArray[np.uint8]], rows: int, hand: NDArray[Any] | None) -> Look:
    """read(row): the first camera's frame [H, W, 3] as stored. hand: positions [rows, 3] [m], None: not in the file."""
    starts = sample(range(0, rows, BLOCK), BLOCKS)
    places = [row for start in starts for row in range(start, min(start + BLOCK, rows), EVERY)]
    frame = read(places[0])
    step = max(1, len(frame) // ROWS)
    shown = np.empty((len(places), *frame[::step].shape), np.uint8)
    for at, place in enumerate(places):
        shown[at] = read(place)[::step]
    return Look(orientation.brightness(shown), None if hand is None else orientation.motion(shown, hand[places]))


def weigh(files: Mapping[str, Evidence], instructions: Iterable[str], told: Told) -> Verdict:
    """How files are read, which are refused, what was assumed or converted. files: by name; instructions: of all."""
    refused = _without_instruction(files)
    conventions, wrong, notes = _conventions(files, told)
    refused |= wrong
    together = gripper.pool(seen for evidence in files.values() for seen in evidence.gripper)
    facts: dict[str, Facts] = {}
    for name, evidence in files.items():
        mine = gripper.pool(evidence.gripper)
        reading = None
        if mine is not None and together is not None:
            try:
                reading, note = gripper.decide(mine, together, told.gripper, name)
            except SourceError as error:
                refused.setdefault(name, str(error))
                continue
            notes += [] if note is None else [(name, note.removeprefix(f"{name}: "))]
        facts[name] = Facts(conventions[name], reading)
    for group in near_identical(instructions):
        notes.append(("", f"instructions that read alike, kept as they are: {', '.join(map(repr, group))}"))
    kept = {name: fact for name, fact in facts.items() if name not in refused}
    return Verdict(kept, refused, tuple(note for note in notes if note[0] not in refused))


def _without_instruction(files: Mapping[str, Evidence]) -> dict[str, str]:
    """Files without an instruction of their own beside others that have one: the attribute's name was damaged."""
    have = [name for name, evidence in files.items() if evidence.instruction]
    if not have:
        return {}
    return {
        name: f"{name}: no attribute problem_info, which {have[0]} and {len(have) - 1} other files of this source "
        "have: damaged; repair it, or ingest files without instructions by themselves"
        for name, evidence in files.items()
        if not evidence.instruction
    }


def _conventions(
    files: Mapping[str, Evidence], told: Told
) -> tuple[dict[str, str], dict[str, str], list[tuple[str, str]]]:
    """Convention by file, reason by refused file, notes."""
    if told.image_convention != DETECT:
        return _told_conventions(files, told.image_convention)
    found: dict[str, str] = {}
    refused: dict[str, str] = {}
    notes: list[tuple[str, str]] = []
    beside = _Beside(files)
    for declared in dict.fromkeys(evidence.convention for evidence in files.values()):
        group = {name: evidence for name, evidence in files.items() if evidence.convention == declared}
        moves = orientation.from_motion([look for evidence in group.values() for look in evidence.looks])
        shown = {None: None, "upright": UPRIGHT, "upside-down": OPENGL}[moves]
        for name in group:
            taken = declared or OPENGL
            shown_here: str | None
            if beside.over(name, taken):
                other = UPRIGHT if upside_down(taken) else OPENGL
                shown_here, why = other, "brightness from top to bottom, beside that of the other files,"
            else:
                shown_here, why = shown, "motion, against the height of the hand,"
            contradicted = shown_here is not None and upside_down(shown_here) != upside_down(taken)
            if declared is None:
                found[name] = shown_here if shown_here is not None and contradicted else taken
                reason = f"as the pictures' {why} shows" if shown_here else "which they do not show"
                notes.append((name, f"no macros_image_convention; images taken as {found[name]!r}, {reason} "
                                    f"(--image-convention says otherwise)"))  # fmt: skip
            elif contradicted:
                refused[name] = (
                    f"{name}: macros_image_convention says {declared!r}, but the pictures' {why} shows {shown_here!r}; "
                    f"pass --image-convention {declared} or --image-convention {shown_here}"
                )
            elif shown_here is None:
                notes.append((name, f"images taken as {declared!r}, as macros_image_convention says; nothing in the "
                                    f"pictures shows it (--image-convention says otherwise)"))  # fmt: skip
            found.setdefault(name, taken)
    return found, refused, notes


def _told_conventions(
    files: Mapping[str, Evidence], told: str
) -> tuple[dict[str, str], dict[str, str], list[tuple[str, str]]]:
    notes = []
    for name, evidence in files.items():
        if evidence.convention is not None and upside_down(evidence.convention) != upside_down(told):
            notes.append(
                (name, f"macros_image_convention says {evidence.convention!r}; images taken as told, {told!r}")
            )
    moves = orientation.from_motion([look for evidence in files.values() for look in evidence.looks])
    if moves is not None and (moves == "upside-down") != upside_down(told):
        notes.append(("", f"--image-convention {told}: motion in the pictures looks {moves} as they are stored"))
    return dict.fromkeys(files, told), {}, notes


def upside_down(convention: str) -> bool:
    """Whether the first row of stored pictures is the bottom of the scene."""
    return convention == OPENGL


BESIDE: Final = 8
"""Files that are held against each other before they are held against another."""


class _Beside:
    """Pictures of each file beside those of the others, by their brightness."""

    def __init__(self, files: Mapping[str, Evidence]) -> None:
        self._files = {name: evidence for name, evidence in files.items() if evidence.looks}
        self._at = {name: at for at, name in enumerate(self._files)}

    def over(self, name: str, taken: str) -> bool:
        """Whether the file's pictures are the other way up than those of the files that say how theirs are.

        taken: its convention.
        """
        if name not in self._files:
            return False
        others = [other for other, there in self._files.items() if other != name and there.convention is not None]
        if any(self._turned(one, two) is not False for one, two in itertools.combinations(others[:BESIDE], 2)):
            return False  # scenes that are not alike among themselves say nothing of another
        told = [vote for other in others if (vote := self._turned(name, other, taken)) is not None]
        least = 1 if self._files[name].convention is None else 2
        return len(told) >= least and all(told)

    @cached_property
    def _likeness(self) -> orientation.Likeness:
        return orientation.Likeness([evidence.looks for evidence in self._files.values()])

    def _turned(self, mine: str, other: str, taken: str | None = None) -> bool | None:
        """`Likeness.turned`; taken: the first one's convention, where it says none itself."""
        convention = taken or self._files[mine].convention
        over = upside_down(str(convention)) != upside_down(str(self._files[other].convention))
        return self._likeness.turned(self._at[mine], self._at[other], over)


def gathered(notes: Sequence[tuple[str, str]], limit: int = 3) -> tuple[str, ...]:
    """Notes (file, text) as lines; one line where many files have the same to say."""
    files: dict[str, list[str]] = {}
    for file, text in notes:
        files.setdefault(text, []).append(file)
    lines = []
    for text, names in files.items():
        shown = ", ".join(names[:limit]) + ("" if len(names) <= limit else f" and {len(names) - limit} more")
        lines.append(f"{shown}: {text}" if shown else text)
    return tuple(lines)
