"""Every policy's tiny preset learns the tabletop tasks from the recipe, and not from shuffled instructions.

Hours: `pytest -m slow tests/systems/test_learnability.py -k act`. Demonstrations, trainings and trials lie in
``runs/learnability`` of the folder it is started from, where the same command goes on; docs/systems.md says what was
found, and when.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from statevla.systems.table import SYSTEMS

RECIPE = Path(__file__).parents[2] / "statevla/recipes/systems.sh"
LEARNED, BY_CHANCE = 0.60, 0.15
"""Shares of 100 trials. Four tasks: one that decides without knowing which is meant does one in four by chance."""
POLICIES = [row.name for row in SYSTEMS if row.kind == "policy" and row.name != "flow_matching"]
"""`make demo` holds flow matching to its own share."""


@pytest.mark.slow
@pytest.mark.parametrize("system", POLICIES)
def test_a_tiny_policy_learns_the_tasks_and_needs_its_instructions(system: str) -> None:
    folder = Path("runs/learnability").resolve()
    told = {"SYSTEMS": system, "SEEDS": "0", "STATEVLA": f"{sys.executable} -m statevla"}
    subprocess.run(["bash", str(RECIPE), str(folder)], check=True, env={**os.environ, **told})
    for result in sorted(folder.glob(f"{system}-0/eval/*/results.json")):
        found = json.loads(result.read_text())
        assert (found["trials"], found["errors"]) == (100, 0)
        assert found["success"] >= LEARNED, result
    for result in sorted(folder.glob(f"{system}-0-shuffled/eval/language/results.json")) + sorted(
        folder.glob(f"{system}-0-shuffled/eval/tabletop/results.json")
    ):
        assert json.loads(result.read_text())["success"] < BY_CHANCE, result
