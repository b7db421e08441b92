"""A simulator in its own process: the worker's loop, and the handle that starts, feeds, times out and kills it.

Processes are spawned (a fork after OpenGL was used hangs) and hold one environment for their whole life (two in one
process give wrong pictures silently). A worker that raises, dies or is late is killed and reported as
:class:`SimulatorFailed`; the caller records the episode as an error and starts a new worker.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType

from statevla.memory import free_gib
from statevla.sims.libero import assets, memory
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.libero.protocol import (
    Close,
    Demonstrate,
    Draw,
    Observe,
    Raised,
    Reply,
    Request,
    Reset,
    Run,
    RunExpert,
    Scenery,
    SetState,
    WorkerSpec,
)
from statevla.sims.libero.suites import Task
from stores.errors import StateVLAError

LOG_LINES = 12


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a worker gets for a request; generous, because another process may hold the machine."""

    start: float = 600.0
    reset: float = 120.0
    step: float = 20.0

    def of(self, request: Request) -> float:
        """Seconds for one request."""
        if isinstance(request, Run):
            return self.step * (1 + len(request.actions))
        if isinstance(request, Draw):
            return self.step * (1 + len(request.drawn))
        if isinstance(request, RunExpert | Demonstrate):
            return self.step * (1 + request.steps)
        return self.reset


class Simulator:
    """One task's environment in a process of its own. Use as a context manager, or ``close`` it.

    ``send`` and ``receive`` are separate so that one process can feed several workers; ``ask`` does both.
    """

    def __init__(
        self, task: Task, *, image_size: int = 128, timeouts: Timeouts | None = None, render_threads: int = 1
    ) -> None:
        self.task = task
        self._timeouts = timeouts or Timeouts()
        handle, name = tempfile.mkstemp(prefix="statevla-libero-", suffix=".log")
        os.close(handle)
        self._log = Path(name)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        spec = WorkerSpec(
            suite=task.suite,
            index=task.index,
            task=task.name,
            bddl=task.bddl,
            assets=assets.find(task.suite),
            image_size=image_size,
            render_threads=render_threads,
            log=self._log,
        )
        self._process = context.Process(target=serve, args=(theirs, spec), daemon=True, name=f"libero-{task.name}")
        self._process.start()
        theirs.close()
        self.deadline: float | None = time.monotonic() + self._timeouts.start
        self._awaited = "start"
        self._scenery: Scenery | None = None

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the worker."""
        return self._process.pid

    @property
    def starting(self) -> bool:
        """Whether the environment has not reported yet; ``scenery`` would wait."""
        return self._scenery is None

    @property
    def scenery(self) -> Scenery:
        """What the environment says of itself; waits for it to stand.

        Raises:
            SimulatorFailed: it did not come up.
        """
        if self._scenery is None:
            found = self._message()
            if not isinstance(found, Scenery):
                raise self._failure(f"answered {type(found).__name__} while starting")
            self._scenery, self.deadline = found, None
        return self._scenery

    def send(self, request: Request) -> None:
        """Sends a request; its answer is to be received before the next one is sent.

        Raises:
            SimulatorFailed: the worker is gone or did not come up.
        """
        _ = self.scenery
        try:
            self.connection.send(request)
        except OSError as error:
            raise self._failure(f"could not be sent {type(request).__name__}: {error}") from error
        self._awaited = type(request).__name__
        self.deadline = time.monotonic() + self._timeouts.of(request)

    def receive(self) -> Reply:
        """The answer to the last request.

        Raises:
            SimulatorFailed: the simulator raised, died, or did not answer in time. The worker is dead afterwards.
        """
        answer = self._message()
        if not isinstance(answer, Reply):
            raise self._failure(f"answered {type(answer).__name__} to {self._awaited}")
        self.deadline = None
        return answer

    def ask(self, request: Request) -> Reply:
        """Sends a request and waits for its answer. Raises as :meth:`receive`."""
        self.send(request)
        return self.receive()

    def close(self) -> None:
        """Ends the worker: politely, then not."""
        with contextlib.suppress(OSError):
            self.connection.send(Close())
        self._process.join(2.0)
        self.kill()

    def kill(self) -> None:
        """Ends the worker at once; safe to call twice."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join(10.0)
        self.connection.close()
        self._log.unlink(missing_ok=True)

    def _message(self) -> Reply | Scenery:
        remaining = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        try:
            if not self.connection.poll(remaining):
                raise self._failure(f"did not answer {self._awaited!r} in time")
            message = self.connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(5.0)
            raise self._failure(_how_it_died(self._process.exitcode)) from error
        if isinstance(message, Raised) and not message.traceback:
            self.kill()
            raise SimulatorFailed(f"simulator of task {self.task.name!r}: {message.error}")
        if isinstance(message, Raised):
            raise self._failure(f"raised in {self._awaited}: {message.error}\n{message.traceback}")
        if not isinstance(message, Reply | Scenery):
            raise self._failure(f"sent {type(message).__name__}")
        return message

    def _failure(self, what: str) -> SimulatorFailed:
        """Kills the worker and says why, with the end of what it printed."""
        printed = ""
        with contextlib.suppress(OSError):
            printed = "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        self.kill()
        tail = f"\nlast lines of its output:\n{printed}" if printed else ""
        return SimulatorFailed(f"simulator of task {self.task.name!r} {what}{tail}")


def ready(simulators: list[Simulator], timeout: float | None = None) -> list[Simulator]:
    """Those of ``simulators`` whose answer, death or deadline is there; waits up to ``timeout`` seconds for one."""
    now = time.monotonic()
    ends = [s.deadline for s in simulators if s.deadline is not None]
    until_deadline = max(0.0, min(ends) - now) if ends else None
    limits = [limit for limit in (timeout, until_deadline) if limit is not None]
    open_ones = {s.connection: s for s in simulators if not s.connection.closed}
    heard = wait(list(open_ones), min(limits) if limits else None)
    late = [s for s in simulators if s.deadline is not None and s.deadline <= time.monotonic()]
    closed = [s for s in simulators if s.connection.closed]
    found = [open_ones[c] for c in heard if isinstance(c, Connection)]
    return list(dict.fromkeys([*found, *late, *closed]))


def _how_it_died(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return (
            f"was killed (signal 9), most likely for lack of memory: each worker needs up to {memory.WORKER_GIB} GiB, "
            f"{free_gib():.1f} GiB are free now; use fewer --workers"
        )
    if exitcode is not None and exitcode < 0:
        return f"died of signal {-exitcode} ({signal.Signals(-exitcode).name})"
    return f"ended by itself (exit status {exitcode})"


def serve(connection: Connection, spec: WorkerSpec) -> None:
    """Main function of a worker process: builds the environment, answers requests until told to close."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business: it closes its workers
    _redirect_output(spec.log)
    os.environ.setdefault("LP_NUM_THREADS", str(spec.render_threads))
    for library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(library, "1")
    try:
        from statevla.sims.libero.environment import Environment

        environment = Environment(spec)
        connection.send(environment.scenery)
        while True:
            request = connection.recv()
            if isinstance(request, Close):
                break
            connection.send(_answer(environment, request))
        environment.close()
    except (EOFError, BrokenPipeError):  # the parent is gone
        pass
    except StateVLAError as error:  # says by itself what is the matter
        with contextlib.suppress(OSError):
            connection.send(Raised(str(error), ""))
    except Exception as error:  # whatever a simulator raises must reach the parent as text
        with contextlib.suppress(OSError):
            connection.send(Raised(f"{type(error).__name__}: {error}", traceback.format_exc(limit=-6)))
    finally:
        connection.close()
        sys.stdout.flush()
        os._exit(0)  # OpenGL's and robosuite's exit handlers can hang or crash after the work is done


def _answer(environment: object, request: Request) -> Reply:
    from statevla.sims.libero.environment import Environment

    if not isinstance(environment, Environment):
        raise TypeError(f"expected an Environment, got {type(environment).__name__}")
    match request:
        case Reset():
            return environment.reset(request)
        case Run():
            return environment.run(request)
        case RunExpert():
            return environment.run_expert(request)
        case Demonstrate():
            return environment.demonstrate(request)
        case Draw():
            return environment.draw(request)
        case SetState():
            return environment.set_state(request)
        case Observe():
            return environment.observe()
        case _:
            raise TypeError(f"unknown request {type(request).__name__}")


def _redirect_output(log: Path) -> None:
    """Everything that LIBERO and robosuite print goes to a log: standard output belongs to the command."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
