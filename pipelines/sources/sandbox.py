"""A process of one's own for reading files that nobody vouches for, so that such a file can crash or hang only that.

HDF5 is a large C library; a damaged file can make it crash, loop or ask for all memory. So sources are read in a child
process, made by fork: it answers calls (JSON over pipes, never pickles), is held to a memory limit, is killed when it
shows no sign of life (`pulse`) for too long, and dies with its parent. Its death is an exception here.
"""

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import resource
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

import stores.errors
from pipelines.sources import pulse
from stores.errors import SourceError, SourceTrouble, StateVLAError

SILENCE_SECONDS: Final = 60.0
"""Without a sign of life for so long, the child is killed. It shows one every 16 frames, which take milliseconds."""
MEMORY_LIMIT: Final = 4 * 2**30
"""Bytes of address space that the child may add to what it inherits."""
MEMORY_NEEDED: Final = 2**30
"""Bytes of address space that sound demonstrations never exceed (`pipelines.sources.hdf5.READ_LIMIT` bounds a read)."""
IDLE: Final = 0.1
"""Share of its silence in which a child must have worked for its file to be what holds it up; else the disk is."""
OWN_DEATHS: Final = 2
"""Times that a demonstration must kill the process that reads it to be quarantined."""
OUTSIDE_DEATHS: Final = 3
_LENGTH: Final = 8
_PR_SET_PDEATHSIG: Final = 1
_ERRORS: Final = {
    name: kind
    for name, kind in vars(stores.errors).items()
    if isinstance(kind, type) and issubclass(kind, StateVLAError)
}
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None

_FORKING: Final = threading.Lock()

Call = Callable[[Any], Any]


class ReaderDied(Exception):
    """The child ended instead of answering. reason: in words. item: what it was at. outside: killed from outside (or
    for want of memory), so that the file may be innocent.
    """

    def __init__(self, reason: str, item: int, outside: bool) -> None:
        super().__init__(reason)
        self.reason, self.item, self.outside = reason, item, outside


class Reader:
    """Answers `calls` (name -> function of one JSON value, returning another) in a child process.

    The child is started on the first call, and again after a death. Not for use by two threads at once.
    """

    def __init__(self, calls: Mapping[str, Call], silence: float | None = None, memory: int = MEMORY_LIMIT) -> None:
        self._calls, self._memory = calls, memory
        self._silence = SILENCE_SECONDS if silence is None else silence
        self._pulse = pulse.Pulse()
        self._child: tuple[int, int, int] | None = None
        self._spent = 0.0

    def call(self, name: str, argument: Any) -> Any:
        """The answer of function `name`. What it raises is raised here; ReaderDied when the child ended instead."""
        pid, requests, answers = self._child = self._child or self._start()
        self._pulse.at(0)
        try:
            _send(requests, json.dumps([name, argument]).encode())
            answer = _receive(answers, self._wait)
        except BrokenPipeError:
            answer = None
        except _Silent:
            waiting = _processor_seconds(pid) - self._spent < IDLE * self._silence
            self.kill()
            _, item = self._pulse.read()
            reason = f"no progress for {self._silence:g} seconds; the process reading it was stopped"
            raise ReaderDied(f"{reason} while it waited for the disk" if waiting else reason, item, waiting) from None
        except BaseException:
            self.kill()
            raise
        if answer is None:
            raise self._obituary(pid)
        kind, value = json.loads(answer)
        if kind == "value":
            return value
        if kind == "OSError":
            raise OSError(*value)
        raise _ERRORS[kind](value) if kind in _ERRORS else RuntimeError(value)

    def kill(self) -> int:
        """End the child, if there is one; returns its exit status as `os.waitstatus_to_exitcode` gives it."""
        if self._child is None:
            return 0
        (pid, requests, answers), self._child = self._child, None
        os.close(requests)
        os.close(answers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _wait(self, descriptor: int) -> None:
        before = -1
        assert self._child is not None
        while True:
            self._spent = _processor_seconds(self._child[0])
            if select.select([descriptor], [], [], self._silence)[0]:
                return
            beats, _ = self._pulse.read()
            if beats == before:
                raise _Silent
            before = beats

    def _obituary(self, pid: int) -> ReaderDied:
        _, item = self._pulse.read()
        assert self._child is not None
        _, requests, answers = self._child
        self._child = None
        os.close(requests)
        os.close(answers)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status < 0:
            name = signal.Signals(-status).name
            outside = -status in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
            return ReaderDied(f"the process reading it died of {name}", item, outside)
        return ReaderDied(f"the process reading it ended with status {status}", item, outside=False)

    def _start(self) -> tuple[int, int, int]:
        _require_memory()
        child_in, requests = os.pipe()
        answers, child_out = os.pipe()
        parent = os.getpid()
        pid = _fork()
        if pid:
            os.close(child_in)
            os.close(child_out)
            return pid, requests, answers
        try:
            os.close(requests)
            os.close(answers)
            self._serve(parent, child_in, child_out)
        finally:
            os._exit(70)  # not reached but by a failure of the machinery itself

    def _serve(self, parent: int, requests: int, answers: int) -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        faulthandler.disable()  # the parent reports the death; pytest and Dask switch this on
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit_memory(self._memory)
        pulse.use(self._pulse)
        while (request := _receive(requests)) is not None:
            name, argument = json.loads(request)
            _send(answers, json.dumps(self._answer(name, argument)).encode())
        os._exit(0)

    def _answer(self, name: str, argument: Any) -> tuple[str, Any]:
        try:
            return "value", self._calls[name](argument)
        except StateVLAError as error:
            # A reader's own kind of SourceError is one to who asked, too.
            return next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS), str(error)
        except OSError as error:
            return "OSError", [error.errno, error.strerror or str(error), error.filename and str(error.filename)]
        except Exception:
            return "RuntimeError", f"while reading sources:\n{traceback.format_exc()}"


def _fork() -> int:
    """As `os.fork`. What this process has forgotten is its own to end, never the child's: an object of a library that
    has threads (PyAV's scaler) waits for them at its end, in the child for ever.
    """
    with _FORKING:  # of two threads at once, one would find collection switched off by the other, and leave it so
        collects = gc.isenabled()
        gc.disable()
        try:
            if not (pid := os.fork()):
                gc.freeze()
        finally:
            if collects:
                gc.enable()
    return pid


class _Silent(Exception):
    """No sign of life."""


def _processor_seconds(pid: int) -> float:
    """Seconds that the processor has worked for a process; infinite where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as handle:
            fields = handle.read().rpartition(b")")[2].split()
    except OSError:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _limit_memory(extra: int) -> None:
    """Let this process add at most `extra` bytes of address space to what it has; more is a MemoryError."""
    with contextlib.suppress(OSError, ValueError):
        now = _address_space()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + extra if hard == -1 else min(now + extra, hard), hard))


def _address_space() -> int:
    """Bytes of address space that this process has. Raises OSError where the system does not tell."""
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _require_memory() -> None:
    """Raise StateVLAError under a limit (``ulimit -v``) so low that sound demonstrations would fail for it."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError):
        left = hard - _address_space()
        if hard != resource.RLIM_INFINITY and left < MEMORY_NEEDED:
            raise StateVLAError(
                f"the limit of address space (ulimit -v {hard // 1024}) leaves {max(left, 0) // 2**20} MB for reading "
                f"sources, expected {MEMORY_NEEDED // 2**20} or more: raise it (ulimit -v unlimited), and run again"
            )


def _send(descriptor: int, data: bytes) -> None:
    rest = memoryview(len(data).to_bytes(_LENGTH, "little") + data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _receive(descriptor: int, wait: Callable[[int], None] | None = None) -> bytes | None:
    """The next message, None at the end of the pipe."""
    pieces, missing, head = [], _LENGTH, True
    while missing:
        if wait is not None:
            wait(descriptor)
        piece = os.read(descriptor, min(missing, 1 << 20))
        if not piece:
            return None
        pieces.append(piece)
        missing -= len(piece)
        if head and not missing:
            missing, pieces, head = int.from_bytes(b"".join(pieces), "little"), [], False
    return b"".join(pieces)


_local: Final = threading.local()


def thread_reader(calls: Mapping[str, Call]) -> Reader:
    """The reader of this thread, kept for the next call: a worker's units share one child."""
    reader: Reader | None = getattr(_local, "reader", None)
    if reader is None:
        reader = _local.reader = Reader(calls)
    return reader


def end_thread_reader() -> None:
    """End this thread's child, if it has one; the next call starts another."""
    reader: Reader | None = getattr(_local, "reader", None)
    if reader is not None:
        reader.kill()
        del _local.reader


def survive(reader: Reader, name: str, argument: dict[str, Any], where: str) -> Any:
    """Call `name` with `argument` and ``poison`` (reasons by item, as text) until it answers.

    Item 0 is the file as a whole, others are its demonstrations, counted from 1. One at which the child died twice
    alike is poison; the next call must not touch it. A file that is poison raises SourceError.
    Raises StateVLAError when the child is killed again and again from outside: no file is to blame.
    """
    poison: dict[str, str] = {}
    deaths: list[tuple[int, str]] = []
    while True:
        try:
            return reader.call(name, {**argument, "poison": poison})
        except ReaderDied as death:
            deaths.append((death.item, death.reason))
            if death.outside:
                if deaths.count(deaths[-1]) >= OUTSIDE_DEATHS:
                    raise SourceTrouble(
                        f"{where}: {death.reason}, {OUTSIDE_DEATHS} times: killed from outside, out of memory, or on a "
                        "disk that does not answer. What is finished stays; run the same command again"
                    ) from death
            elif [item for item, _ in deaths].count(death.item) >= OWN_DEATHS:
                if death.item == 0 or str(death.item) in poison:  # it dies beside that demonstration, too
                    raise SourceError(f"{where}: {death.reason}") from death
                poison[str(death.item)] = death.reason
