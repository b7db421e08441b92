"""What a configuration key is, said once, beside its field: choices, range, who may change it, one line of help."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from stores.errors import UsageError

METADATA: Final = "option"


@dataclass(frozen=True)
class Option:
    """One configuration key.

    help: one line. choices: of a text or number. above, least, most: of a number, which is always finite. resume: a
    resumed run may set it otherwise. parent: a frozen encoder's checkpoint must agree on it. beside: another option of
    its section, and the values of that one with which this one is seen; no values: all but 0.
    """

    help: str
    choices: tuple[Any, ...] = ()
    above: int | float | None = None
    least: int | float | None = None
    most: int | float | None = None
    resume: bool = False
    parent: bool = False
    beside: tuple[str, tuple[Any, ...]] | None = None

    def seen(self, section: Any) -> bool:
        """Whether it changes anything in `section`, as that is configured."""
        if self.beside is None:
            return True
        other, values = self.beside
        value = getattr(section, other)
        return value in values if values else value > 0

    @property
    def wants(self) -> str:
        """``beside`` in words; empty where there is none."""
        if self.beside is None:
            return ""
        other, values = self.beside
        return f"{other}={' or '.join(map(str, values))}" if values else f"{other} above 0"

    def check(self, key: str, value: Any) -> None:
        """Raise UsageError, naming `key`, when `value` is outside."""
        if self.choices and value not in self.choices:
            raise UsageError(f"{key}: expected one of {', '.join(map(str, self.choices))}, got {value!r}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        inside = (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
        )
        if not inside:
            raise UsageError(f"{key}: expected {self.range or 'a finite number'}, got {value}")

    @property
    def range(self) -> str:
        """The allowed values in words; empty where the type says all."""
        if self.choices:
            return ", ".join(map(str, self.choices))
        if self.above == 0 and self.least is None and self.most is None:
            return "a positive number"
        low = [f"more than {self.above:g}"] if self.above is not None else []
        low += [f"{self.least:g} or more"] if self.least is not None else []
        return " and ".join(low + ([f"at most {self.most:g}"] if self.most is not None else []))


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] = (),
    above: int | float | None = None,
    least: int | float | None = None,
    most: int | float | None = None,
    resume: bool = False,
    parent: bool = False,
    compare: bool = True,
    beside: tuple[str, tuple[Any, ...]] | None = None,
) -> Any:
    """A dataclass field that is a configuration key; compare=False: it says where things are, not what a run is."""
    known = Option(help, choices, above, least, most, resume, parent, beside)
    return dataclasses.field(default=default, metadata={METADATA: known}, compare=compare)


@dataclass(frozen=True)
class Key:
    """A key of a configuration with its value there, its type in words, and what is known of it."""

    name: str
    value: Any
    type: str
    option: Option


def keys(node: Any, prefix: str = "") -> Iterator[Key]:
    """Every key of a frozen configuration, or of a section of it, in order of the fields."""
    hints = typing.get_type_hints(type(node))
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            yield from keys(value, f"{prefix}{item.name}.")
        elif METADATA in item.metadata:
            yield Key(prefix + item.name, value, type_text(hints[item.name]), item.metadata[METADATA])


def type_text(hint: Any) -> str:
    """``int or nothing`` for ``int | None``."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join("nothing" if part is type(None) else getattr(part, "__name__", str(part)) for part in parts)
