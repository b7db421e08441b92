"""What is executed when nobody says: half of each chunk, and in LIBERO every step's chunk, averaged."""

import pytest

from statevla.evaluators.evaluate import usual_execution
from statevla.policies.execution import Execution
from statevla.sims.suites import find_suite


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (None, Execution(replan=1, ensemble=0.01)),
        (Execution(), Execution(replan=1, ensemble=0.01)),
        (Execution(latency_steps=3), Execution(replan=1, ensemble=0.01, latency_steps=3)),
        (Execution(replan=5), Execution(replan=5)),
        (Execution(ensemble=0.5), Execution(ensemble=0.5)),
        (Execution(vote=True), Execution(vote=True)),
    ],
)
def test_libero_ensembles_unless_told_otherwise(said: Execution | None, wanted: Execution) -> None:
    assert usual_execution(find_suite("libero_object"), said) == wanted
    assert usual_execution(find_suite("tabletop"), said) == (said or Execution())
