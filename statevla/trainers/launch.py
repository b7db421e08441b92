"""`statevla train --nproc N`: N ranks of one run on this machine, one GPU each where there are any.

What torchrun does, with exit statuses that mean something: SIGINT and SIGTERM go to all ranks, which stop together
after a checkpoint; when one dies, the others end, and its number and status are said in one line.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

from stores.errors import UsageError

GRACE: Final = 60.0
"""Seconds for the others to notice that a rank died, before they are ended."""
MOMENT: Final = 1.0
"""Seconds in which a SIGINT that a terminal sends to its whole group has reached every rank."""
POLL: Final = 0.05
SIGNALLED: Final = 128


@dataclass
class Told:
    """interrupted: when SIGINT came to the launcher, until it is passed on; stopped: whether it was."""

    interrupted: float | None = None
    stopped: bool = False


def free_port() -> int:
    """Of this machine, on loopback."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def without_nproc(arguments: Sequence[str]) -> list[str]:
    """A command line for each rank."""
    kept: list[str] = []
    given = iter(arguments)
    for item in given:
        if item == "--nproc":
            next(given, None)
        elif not item.startswith("--nproc="):
            kept.append(item)
    return kept


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What a rank is told. The ranks share the cores where nobody said how many threads one may have."""
    threads = str(max((os.cpu_count() or 1) // world, 1))
    return {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def launch(
    world: int,
    arguments: Sequence[str],
    say: Callable[[str], None],
    command: Sequence[str] = (sys.executable, "-m", "statevla"),
) -> int:
    """Run `command` with `arguments` as `world` ranks; the exit status of the run.

    Raises UsageError inside another launcher's rank.
    """
    if "WORLD_SIZE" in os.environ:
        raise UsageError("--nproc starts ranks itself; under torchrun leave it out")
    port = free_port()
    ranks: list[subprocess.Popen[bytes]] = []
    with _passed_on(ranks) as told:
        for rank in range(world):
            ranks.append(subprocess.Popen([*command, *arguments], env=environment(rank, world, port)))
        status = _wait(ranks, say, told)
    # who sent SIGINT is answered with its status, though the ranks were told by the other signal
    return SIGNALLED + signal.SIGINT if told.stopped and status == SIGNALLED + signal.SIGTERM else status


def _wait(ranks: list[subprocess.Popen[bytes]], say: Callable[[str], None], told: Told) -> int:
    """The first status that is not 0. A rank that was killed is named; the others get `GRACE` seconds."""
    status, died = 0, 0.0
    left = dict(enumerate(ranks))
    while left:
        for rank, process in list(left.items()):
            code = process.poll()
            if code is None:
                continue
            del left[rank]
            if code < 0:
                say(f"rank {rank} of {len(ranks)} was ended by signal {-code} ({signal.Signals(-code).name})")
            if code and not status:
                status, died = code if code > 0 else SIGNALLED - code, time.monotonic()
        if told.interrupted is not None and time.monotonic() - told.interrupted > MOMENT:
            told.interrupted = None
            if len(left) == len(ranks):  # else they stop already, all of them together
                told.stopped = True
                _send(ranks, signal.SIGTERM)
        if left and status and time.monotonic() - died > GRACE:
            for process in left.values():
                process.kill()
        if left:
            time.sleep(POLL)
    return status


def _send(ranks: list[subprocess.Popen[bytes]], number: int) -> None:
    for process in ranks:
        if process.poll() is None:
            process.send_signal(number)


@contextmanager
def _passed_on(ranks: list[subprocess.Popen[bytes]]) -> Iterator[Told]:
    """SIGTERM goes on to every rank at once. SIGINT is noted, and `_wait` passes it on as SIGTERM after a `MOMENT`.

    A terminal sends Ctrl-C to all of its group, but whoever sends SIGINT to a process by its number does not. A rank
    that has it already takes a SIGTERM for the same; a second SIGINT would interrupt it before its checkpoint.
    """
    told = Told()

    def passed(number: int, frame: FrameType | None) -> None:
        _send(ranks, number)

    def noted(number: int, frame: FrameType | None) -> None:
        told.interrupted = time.monotonic()

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, passed),
              signal.SIGINT: signal.signal(signal.SIGINT, noted)}  # fmt: skip
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
