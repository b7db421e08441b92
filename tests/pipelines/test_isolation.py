"""A child that crashes, hangs, eats memory or is killed from outside is an exception here, and poison is found."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipelines.sources import pulse
from pipelines.sources.sandbox import Reader, ReaderDied, survive
from stores.errors import SourceError, StateVLAError
from tests.pipelines.make_hdf5 import write_suite

ROOT = Path(__file__).parents[2]


def die(argument: dict[str, Any]) -> Any:
    """Goes through `count` items and dies at those in `fatal`, unless they are named as poison."""
    for item in range(1, argument["count"] + 1):
        pulse.at(item)
        if item in argument["fatal"] and str(item) not in argument["poison"]:
            os.kill(os.getpid(), argument["signal"])
    return sorted(argument["poison"].items())


def die_regardless(argument: dict[str, Any]) -> None:
    pulse.at(argument["item"])
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(argument: dict[str, Any]) -> Any:
    pulse.at(3)
    while argument != "stalled":
        pass
    signal.pause()


def slow(_: Any) -> str:
    """Takes longer than the silence allowed, but shows that it lives."""
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        pulse.beat()
    return "done"


def eat(_: Any) -> int:
    return len(bytearray(1 << 32))


def refuse(_: Any) -> None:
    raise SourceError("this file is bad")


class Particular(SourceError):
    """A reader's own."""


def refuse_in_particular(_: Any) -> None:
    raise Particular("key 'data' is missing")


def full_disk(_: Any) -> None:
    raise OSError(28, "No space left on device", "/somewhere/file")


def mistake(_: Any) -> None:
    raise KeyError("a mistake in the code")


CALLS = {
    f.__name__: f for f in (die, die_regardless, hang, slow, eat, refuse, refuse_in_particular, full_disk, mistake)
} | {
    "echo": lambda value: value,
    "pid": lambda _: os.getpid(),
    "leave": lambda _: os._exit(5),
}


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Reader(CALLS, memory=1 << 30) as reader:
        yield reader


def test_values_of_any_size_come_back_from_another_process(reader: Reader) -> None:
    value = {"text": "ü" * 3_000_000, "list": [1, None, 2.5]}
    assert reader.call("echo", value) == value
    assert reader.call("pid", None) not in (os.getpid(), None)
    assert reader.call("pid", None) == reader.call("pid", None)


def test_errors_keep_their_kind(reader: Reader) -> None:
    with pytest.raises(SourceError, match="this file is bad"):
        reader.call("refuse", None)
    with pytest.raises(SourceError, match="key 'data' is missing"):
        reader.call("refuse_in_particular", None)
    with pytest.raises(OSError, match="No space left") as caught:
        reader.call("full_disk", None)
    assert (caught.value.errno, caught.value.filename) == (28, "/somewhere/file")
    with pytest.raises(RuntimeError, match="a mistake in the code"):
        reader.call("mistake", None)
    with pytest.raises(RuntimeError, match="MemoryError"):
        reader.call("eat", None)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_death_is_named_and_the_next_call_gets_a_new_child(reader: Reader, name: str) -> None:
    first = reader.call("pid", None)
    with pytest.raises(ReaderDied, match=f"died of {name}") as caught:
        reader.call("die", {"count": 5, "fatal": [4], "poison": {}, "signal": signal.Signals[name]})
    assert (caught.value.item, caught.value.outside) == (4, name == "SIGKILL")
    assert reader.call("pid", None) != first


def test_an_exit_and_a_hang_are_deaths_too(reader: Reader) -> None:
    with pytest.raises(ReaderDied, match="status 5"):
        reader.call("leave", None)
    with (
        Reader(CALLS, silence=0.2) as impatient,
        pytest.raises(ReaderDied, match=r"no progress for 0\.2 seconds") as caught,
    ):
        impatient.call("hang", None)
    assert (caught.value.item, caught.value.outside) == (3, False)
    with (
        Reader(CALLS, silence=0.2) as impatient,
        pytest.raises(ReaderDied, match="while it waited for the disk") as caught,
    ):
        impatient.call("hang", "stalled")
    assert (caught.value.item, caught.value.outside) == (3, True)


def test_who_shows_signs_of_life_may_take_longer() -> None:
    with Reader(CALLS, silence=0.4) as patient:
        assert patient.call("slow", None) == "done"


class Threaded:
    """As an object of a library that has threads: where those are not, its end never comes."""

    def __init__(self) -> None:
        self.home, self.itself = os.getpid(), self

    def __del__(self) -> None:
        while os.getpid() != self.home:
            signal.pause()


def test_what_the_parent_forgot_does_not_end_in_the_child() -> None:
    gc.collect()
    gc.disable()  # it stays forgotten and not yet ended
    try:
        Threaded()
        with Reader({"collect": lambda _: gc.collect() >= 0}, silence=2.0) as reader:
            assert reader.call("collect", None) is True
    finally:
        gc.enable()


def test_readers_that_begin_together_leave_collection_on() -> None:
    def begin() -> None:
        for _ in range(10):
            with Reader({"collects": lambda _: gc.isenabled()}) as reader:
                assert reader.call("collects", None)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(begin) for _ in range(4)]:
            done.result()
    assert gc.isenabled()


def test_poison_is_what_kills_twice(reader: Reader) -> None:
    argument = {"count": 6, "fatal": [2, 5], "signal": signal.SIGSEGV}
    reason = "the process reading it died of SIGSEGV"
    assert survive(reader, "die", argument, "unit") == [["2", reason], ["5", reason]]
    with pytest.raises(SourceError, match="a file: the process reading it ended with status 5"):
        survive(reader, "leave", {}, "a file")


def test_a_file_that_kills_beside_a_demonstration_too_is_given_up(reader: Reader) -> None:
    with pytest.raises(SourceError, match="a file: the process reading it died of SIGSEGV"):
        survive(reader, "die_regardless", {"item": 2}, "a file")


def test_a_file_is_not_blamed_for_a_kill_from_outside(reader: Reader) -> None:
    with pytest.raises(StateVLAError, match=r"unit 7: .*SIGKILL, 3 times.*run the same command again"):
        survive(reader, "die", {"count": 2, "fatal": [1], "signal": signal.SIGKILL}, "unit 7")


UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from pipelines.sources import sandbox as isolation
from pipelines.ingest.driver import ingest
from pipelines.ingest.config import IngestConfig
limit = isolation._address_space() + 100 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
ingest(IngestConfig("toy", Path(sys.argv[1]), Path(sys.argv[2]), language="hashed"))
"""


def test_a_low_limit_of_memory_is_said_and_no_demonstration_is_blamed(tmp_path: Path) -> None:
    source = write_suite(tmp_path / "source", tasks=1)
    command = [sys.executable, "-c", UNDER_A_LIMIT, str(source), str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.search(r"StateVLAError: .*ulimit -v \d+\) leaves \d+ MB .*raise it", done.stderr), done.stderr
    assert not (tmp_path / "store").exists()


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        gc.freeze()
        reader = Reader(CALLS)
        os.write(write, str(reader.call("pid", None)).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    child = int(os.read(read, 100))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{child}/stat").read_text().split(")")[-1].split()[0] == "Z":
                break
        except FileNotFoundError:
            break
    else:
        pytest.fail("the child outlived its parent")
    os.close(read)
    os.close(write)
