"""Kill, tear, refuse or unplug a writer at every operation that it does through `stores.disk.durable`.

Faults:
  kill         the process dies before the operation
  torn         it dies in the middle of it (for a write: half of the data is there)
  enospc       the disk is full: the operation raises (a write after half of the data)
  power        the power goes: nothing is left but what was fsynced: contents by file, names by folder
  power_data   the power goes: names are as they were, but contents that were not fsynced are gone

Pairs of faults (`every_pair`): the first kills the writer or fills its disk, the same work is then begun again, and the
second strikes that. What is durable is followed through both: that the dead writer's bytes are in memory, where
their hash is right, makes none of them durable.

The writer runs in a forked child, so a thousand crashes take seconds. The power models are pessimistic on purpose: a
real file system keeps more, but promises no more.
"""

import contextlib
import contextvars
import errno
import gc
import os
import resource
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from stores.disk import durable
from stores.disk.seam import Operation, set_hook

FAULTS = ("kill", "torn", "enospc", "power", "power_data")
_FULL_DISK_KINDS = ("mkdir", "create", "write", "rename", "exchange")
_DIED = 77
_RAISED = 78

TALLY: dict[str, Counter[str]] = {}
"""Crashes enumerated in this process: by the name of the work, by fault. Printed at the end of a test run."""

Tree = dict[str, bytes | None]
"""Files by path below the root; folders have None."""


@dataclass(frozen=True)
class Crash:
    """What was done to the writer: `fault` at operation number `at` of `total` (`at` = `total`: after the last)."""

    fault: str
    at: int
    total: int
    operation: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.at}/{self.total} ({self.operation})"


def operations(work: Callable[[Path], None], disk: Path) -> list[str]:
    """What `work` does to `disk`, in order, undisturbed."""
    seen: list[str] = []
    set_hook(lambda op: seen.append(f"{op.kind} {op.path.name or '/'}"))
    try:
        work(disk)
    finally:
        set_hook(None)
    return seen


STRIDES = pytest.mark.parametrize(
    "stride",
    [
        pytest.param(5, id="every 5th operation"),
        pytest.param(1, marks=pytest.mark.slow, id="every operation"),
    ],
)
"""A short enumeration for every run, and the whole one for `pytest -m crash`."""


def every_crash(
    scratch: Path,
    prepare: Callable[[Path], None],
    work: Callable[[Path], None],
    faults: Sequence[str] = FAULTS,
    name: str | None = None,
    stride: int = 1,
) -> Iterator[tuple[Crash, Path]]:
    """For each fault at each operation of `work`: (what was done, the disk as the crash left it), on a fresh disk.

    name: what to count it under (default: the calling test). stride: only every so many-th operation, for a short run.
    """
    label = name or os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split(" ")[0].split("[")[0]
    tally = TALLY.setdefault(label, Counter())
    clean = scratch / "undisturbed"
    clean.mkdir(parents=True)
    prepare(clean)
    steps = operations(work, clean)
    disk = scratch / "disk"
    for fault in faults:
        for at in range(0, len(steps) + fault.startswith("power"), stride):
            kind = steps[at].split()[0] if at < len(steps) else "end"
            if not _strikes(fault, kind):
                continue
            shutil.rmtree(disk, ignore_errors=True)
            disk.mkdir()
            prepare(disk)
            _fork(disk, work, fault, at)
            tally[fault] += 1
            yield Crash(fault, at, len(steps), steps[at] if at < len(steps) else "end"), disk


def every_pair(
    scratch: Path,
    prepare: Callable[[Path], None],
    first: Callable[[Path], None],
    again: Callable[[Path], None],
    faults: tuple[str, str],
    name: str,
    places: tuple[int, int],
) -> Iterator[tuple[Crash, bool, Path]]:
    """The first of `faults` in `first`, then the second in `again`: (what was done, whether `again` had ended, the
    disk), on a fresh disk.

    faults: "kill", "torn", "enospc" or "none" (`first` runs to its end, such as a refusal), then one of `FAULTS`.
    places: how many operations of each are tried, evenly spread; the last of `again` is its end.
    """
    tally = TALLY.setdefault(name, Counter())
    clean = scratch / "undisturbed"
    clean.mkdir(parents=True)
    prepare(clean)
    steps = operations(first, clean)
    disk = scratch / "disk"
    open_to = [at for at, step in enumerate(steps) if _strikes(faults[0], step.split()[0])]
    chosen = [open_to[place] for place in spread(len(open_to), places[0])]
    for at in [len(steps)] if faults[0] == "none" else chosen:
        total = _pair(scratch, prepare, first, again, (faults[0], "none"), (at, 0))
        for then in spread(total + 1, places[1]):
            _pair(scratch, prepare, first, again, faults, (at, then))
            tally[" then ".join(faults)] += 1
            where = steps[at] if at < len(steps) else "end"
            yield Crash(f"{faults[0]} at {at} ({where}), then {faults[1]}", then, total, ""), then == total, disk


def _strikes(fault: str, kind: str) -> bool:
    return kind == "write" if fault == "torn" else kind in _FULL_DISK_KINDS if fault == "enospc" else True


def spread(total: int, places: int) -> list[int]:
    """At most `places` numbers of 0 … total - 1, evenly spread, the last one among them."""
    return sorted({total - 1 - round(place * total / places) for place in range(min(places, total))} - {-1})


def _pair(
    scratch: Path,
    prepare: Callable[[Path], None],
    first: Callable[[Path], None],
    again: Callable[[Path], None],
    faults: tuple[str, str],
    at: tuple[int, int],
) -> int:
    """One pair on a fresh disk; how many operations `again` announced."""
    disk = scratch / "disk"
    shutil.rmtree(disk, ignore_errors=True)
    disk.mkdir()
    prepare(disk)
    answer, tell = os.pipe()
    child = os.fork()
    if child == 0:
        gc.freeze()  # an object of the parent's that has threads would wait for them at its end, for ever
        try:
            os.environ[durable.NO_FSYNC] = "1"
            model = _Disk(disk)

            def rerun() -> None:
                _drop_handles(disk, model)
                hook = _Injector(disk, faults[1], at[1], model)
                set_hook(hook)
                contextvars.Context().run(again, disk)
                os.write(tell, str(hook.seen).encode())
                if faults[1].startswith("power"):
                    hook.unplug()

            hook = _Injector(disk, faults[0], at[0], model, rerun)
            set_hook(hook)
            try:
                first(disk)
            except OSError as error:
                if faults[0] != "enospc" or error.errno != errno.ENOSPC:
                    raise
            model.complete(None)
            rerun()
            os._exit(0)
        except BaseException as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                os._exit(_RAISED)
            traceback.print_exc()
            os._exit(1)
    os.close(tell)
    with os.fdopen(answer, "rb") as pipe:
        seen = int(pipe.read() or 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, _DIED, _RAISED):
        raise AssertionError(f"{faults} at {at}: the writer ended with {status}")
    return seen


def _drop_handles(disk: Path, model: "_Disk") -> None:
    """Close what the killed writer had open on the disk, its lock among it, as its death would."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) not in model.handles and os.readlink(f"/proc/self/fd/{name}").startswith(f"{disk}/"):
                os.close(int(name))


def read_tree(root: Path) -> Tree:
    """Everything below `root`, temporaries included."""
    return {
        path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def _fork(disk: Path, work: Callable[[Path], None], fault: str, at: int) -> None:
    child = os.fork()
    if child == 0:
        gc.freeze()
        status = 1
        try:
            os.environ[durable.NO_FSYNC] = "1"  # the model decides what is durable
            hook = _Injector(disk, fault, at)
            set_hook(hook)
            work(disk)
            if fault.startswith("power"):
                hook.unplug()
            status = 0
        except BaseException as error:
            status = _RAISED if isinstance(error, OSError) and error.errno == errno.ENOSPC else 1
            if status != _RAISED:
                traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    wanted = _RAISED if fault == "enospc" else _DIED
    if status != wanted:
        raise AssertionError(f"{fault} at {at}: the writer ended with {status}, expected {wanted}")


class _Injector:
    """The hook: counts operations and does `fault` at number `at`."""

    def __init__(
        self, disk: Path, fault: str, at: int, model: "_Disk | None" = None, rerun: Callable[[], None] | None = None
    ) -> None:
        self.fault, self.at, self.seen = fault, at, 0
        self.disk = model or (_Disk(disk) if fault.startswith("power") else None)
        self.rerun = rerun

    def __call__(self, op: Operation) -> None:
        if self.disk is not None:
            self.disk.complete(op)
        self.seen += 1
        if self.seen - 1 != self.at or self.fault == "none":
            return
        if self.fault in ("torn", "enospc") and op.kind == "write" and op.handle is not None and op.data is not None:
            op.handle.write(memoryview(op.data)[: len(op.data) // 2])
        if self.fault == "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(op.path))
        if self.rerun is not None:  # the kill: what follows happens here, while the dead writer's frames stand still
            if self.disk is not None:
                self.disk.pending = None
            self.rerun()
            os._exit(0)
        if self.fault.startswith("power"):
            self.unplug()
        os._exit(_DIED)

    def unplug(self) -> None:
        """Leave on disk what survives a power loss now, and die."""
        set_hook(None)
        if self.disk is not None:
            self.disk.complete(None)
            self.disk.leave(names_survive=self.fault == "power_data")
        os._exit(_DIED)


class _Disk:
    """What of `root` is durable: contents by inode, names by folder inode. All there is at the start is durable."""

    def __init__(self, root: Path) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.root = root
        self.contents: dict[int, bytes] = {}
        self.names: dict[int, dict[str, tuple[int, bool]]] = {}
        self.held: set[int] = set()
        self.handles: set[int] = set()
        self.pending: Operation | None = None
        self._remember_folder(root)
        for path in root.rglob("*"):
            self._remember_folder(path) if path.is_dir() else self._remember_file(path)

    def complete(self, upcoming: Operation | None) -> None:
        """The operation announced before `upcoming` has happened: note what it made durable."""
        done, self.pending = self.pending, upcoming
        if done is None or not done.path.is_relative_to(self.root):
            return  # above the disk, where files of others come and go, all is durable
        if done.kind == "fsync":
            self._remember_file(done.path)
        elif done.kind == "fsync_dir":
            self._remember_folder(done.path)

    def leave(self, names_survive: bool) -> None:
        tree: Tree = {}
        if names_survive:
            for path in self.root.rglob("*"):
                name = path.relative_to(self.root).as_posix()
                tree[name] = None if path.is_dir() else self.contents.get(path.stat().st_ino, b"")
        else:
            self._collect(self.root.stat().st_ino, "", tree)
        shutil.rmtree(self.root)
        self.root.mkdir()
        for name, content in sorted(tree.items()):
            if content is None:
                (self.root / name).mkdir()
            else:
                (self.root / name).write_bytes(content)

    def _collect(self, folder: int, prefix: str, tree: Tree) -> None:
        for name, (inode, is_folder) in self.names.get(folder, {}).items():
            tree[prefix + name] = None if is_folder else self.contents.get(inode, b"")
            if is_folder:
                self._collect(inode, f"{prefix}{name}/", tree)

    def _remember_file(self, path: Path) -> None:
        self.contents[self._hold(path)] = path.read_bytes()

    def _remember_folder(self, path: Path) -> None:
        inode = self._hold(path)
        self.names[inode] = {entry.name: (self._hold(entry), entry.is_dir()) for entry in path.iterdir()}

    def _hold(self, path: Path) -> int:
        """The inode, kept open so that its number is not given to another file."""
        inode = path.stat().st_ino
        if inode not in self.held:
            self.handles.add(os.open(path, os.O_RDONLY))
            self.held.add(inode)
        return inode
