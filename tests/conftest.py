"""A local S3 for tests; and at the end of a run, how many crashes were enumerated: operations times faults."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import fsspec
import hypothesis
import pytest

from tests.stores.faults import TALLY

hypothesis.settings.register_profile("untimed", deadline=None)  # tests do not depend on how busy the machine is
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def without_curves() -> Iterator[None]:
    """Drawing a run's losses takes a second or two, longer than most runs here; test_loop.py draws them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("statevla.trainers.run.plot_losses", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, Any]]:
    """Options of fsspec for a local S3 with the bucket "robots"."""
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "test", "secret": "test", "endpoint_url": f"http://{host}:{port}"}
    fsspec.filesystem("s3", **options).mkdir("robots")
    yield options
    server.stop()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of ``pytest -n`` hands its counts over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["crashes"] = {name: dict(faults) for name, faults in TALLY.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for name, faults in getattr(node, "workeroutput", {}).get("crashes", {}).items():
        TALLY.setdefault(name, Counter()).update(faults)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not TALLY:
        return
    terminalreporter.section("crashes enumerated: operations x faults")
    for name, faults in sorted(TALLY.items()):
        counts = ", ".join(f"{fault} {count}" for fault, count in faults.items())
        terminalreporter.write_line(f"{name:60} {sum(faults.values()):6}  ({counts})")
    total = sum(sum(faults.values()) for faults in TALLY.values())
    terminalreporter.write_line(f"{'all':60} {total:6}")
