"""Prints at the end of a run how many crashes were enumerated: operations times faults, by what was crashed."""

import hypothesis
import pytest

from tests.stores.faults import TALLY

hypothesis.settings.register_profile("untimed", deadline=None)  # tests do not depend on how busy the machine is
hypothesis.settings.load_profile("untimed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not TALLY:
        return
    terminalreporter.section("crashes enumerated: operations x faults")
    for name, faults in sorted(TALLY.items()):
        counts = ", ".join(f"{fault} {count}" for fault, count in faults.items())
        terminalreporter.write_line(f"{name:60} {sum(faults.values()):6}  ({counts})")
    total = sum(sum(faults.values()) for faults in TALLY.values())
    terminalreporter.write_line(f"{'all':60} {total:6}")
