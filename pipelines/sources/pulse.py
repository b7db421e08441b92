"""Signs of life of a process that reads sources, in memory shared with the process that watches it.

The reader says which item it is at and that it gets on; the watcher (`sandbox`) looks when it has waited
long, and after a death. Costs a store in memory.
"""

import mmap
import struct
from typing import Final

_LAYOUT: Final = struct.Struct("=qq")  # beats, item


class Pulse:
    """A counter of beats and the number of the item being read, shared by a process and those it forks."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._beats = 0

    def at(self, item: int) -> None:
        """The reader begins item number `item`."""
        self._beats += 1
        _LAYOUT.pack_into(self._memory, 0, self._beats, item)

    def beat(self) -> None:
        """The reader got on with its item."""
        self._beats += 1
        struct.pack_into("=q", self._memory, 0, self._beats)

    def read(self) -> tuple[int, int]:
        """(beats, item) as the reader left them."""
        beats, item = _LAYOUT.unpack_from(self._memory, 0)
        return beats, item


_current = Pulse()


def use(pulse: Pulse) -> None:
    """Make `pulse` the one of this process."""
    global _current
    _current = pulse


def at(item: int) -> None:
    """See `Pulse.at`, of this process."""
    _current.at(item)


def beat() -> None:
    """See `Pulse.beat`, of this process."""
    _current.beat()
