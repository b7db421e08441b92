"""One table of what is lost, with simulators that are not."""

import json
from pathlib import Path
from typing import Any

import pytest

from statevla.evaluators.conditions import Conditions
from statevla.evaluators.evaluate import evaluate
from statevla.evaluators.results import Results
from statevla.evaluators.robustness import PERTURBATIONS, Robustness, Row, evaluate_robustness, what_of
from statevla.policies.controls import ReplayDemos
from statevla.sims.libero import pro, suites
from statevla.sims.libero.perturb import NONE, Perturbation
from statevla.sims.libero.protocol import Reset
from stores.errors import UsageError
from tests.evaluators.test_libero import Pushes, World, world  # noqa: F401


@pytest.fixture
def variants(world: World, monkeypatch: pytest.MonkeyPatch) -> World:  # noqa: F811
    """LIBERO-PRO with two suites of the usual ones."""
    monkeypatch.setattr(pro, "suite_names", lambda bases: ("libero_object_swap", "libero_object_lan"))
    monkeypatch.setattr(pro, "folder", lambda: Path())
    return world


def measure(out: Path, policy: Any = None, **options: Any) -> Any:
    chosen = Pushes() if policy is None else policy
    return evaluate_robustness(chosen, "libero_object", out=out, name="p", **({"num_trials": 2} | options))


def resets(world: World) -> list[Reset]:  # noqa: F811
    return [r for r in world.requests if isinstance(r, Reset)]


def test_every_row_has_the_same_trials_under_its_own_conditions(
    variants: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "fixtures", lambda task: ("flat_stove_1",))
    found = measure(tmp_path, only=["noise", "fixtures", "swap"])
    assert [row.name for row in found.rows] == ["base", "noise", "fixtures", "swap"]
    assert all(row.results.successes == 4 for row in found.rows)
    base, noise, fixtures, swap = (resets(variants)[4 * i : 4 * i + 4] for i in range(4))
    assert {(r.perturbation, r.fixtures) for r in [*base, *swap]} == {(NONE, 0)}
    assert {r.perturbation.noise for r in noise} == {10.0}
    assert len({r.perturbation.seed for r in noise}) == 2  # each initial state has directions of its own
    assert sorted({r.fixtures for r in fixtures}) == [1, 2]  # 0 is where the demonstrations' stand
    assert {int(r.state[0]) for r in base} == {int(r.state[0]) for r in noise}


def test_points_are_lost_where_the_policy_fails(variants: World, tmp_path: Path, monkeypatch: Any) -> None:
    send = Pushes.act
    dark = {"on": False}

    def act(self: Pushes, *arguments: Any) -> Any:
        asked = resets(variants)[-1].perturbation
        dark["on"] = asked.light < 1
        self.value = -0.5 if dark["on"] else 0.5
        return send(self, *arguments)

    monkeypatch.setattr(Pushes, "act", act)
    found = measure(tmp_path, only=["dark", "swap"])
    rows = {row.name: row for row in found.rows}
    assert rows["dark"].lost[0] == 1.0
    assert rows["swap"].lost[0] == 0.0
    assert rows["swap"].lost[1][0] < 0 < rows["swap"].lost[1][1]
    saved = json.loads((tmp_path / "robustness.json").read_text())
    assert [row["changed"] for row in saved["rows"]] == ["base", "dark", "swap"]
    assert "| dark | all lights at 60 % | 0 % |" in (tmp_path / "robustness.md").read_text()


def test_what_cannot_be_measured_is_said_in_its_row(variants: World, tmp_path: Path) -> None:
    found = measure(tmp_path, only=["object", "noise"])
    missing, noise = found.rows[1:]
    assert missing.results is None
    assert "libero_object_object" in missing.error
    assert noise.results.successes == 4


def test_fixtures_that_no_scene_has_are_not_drawn(variants: World, tmp_path: Path) -> None:
    fixtures, noise = measure(tmp_path, only=["fixtures", "noise"]).rows[1:]
    assert fixtures.results is None
    assert "libero_object: no scene of these tasks has a cabinet, stove or rack" in fixtures.error
    assert "| fixtures | cabinets, stoves and racks drawn" in (tmp_path / "robustness.md").read_text()
    assert noise.results.successes == 4
    assert {r.fixtures for r in resets(variants)} == {0}
    with pytest.raises(UsageError, match="changes nothing"):
        evaluate(Pushes(), "libero_object", out=tmp_path, name="p", conditions=Conditions(fixtures="drawn"))


def test_results_say_where_fixtures_stand(variants: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def notes(name: str, **conditions: Any) -> list[str]:
        run = {"out": tmp_path / name, "name": "p", "num_trials": 1}
        found = evaluate(Pushes(), "libero_object", conditions=Conditions(**conditions), **run)
        return [note for note in found.notes if "cabinets" in note]

    assert notes("none") == []
    monkeypatch.setattr(suites, "fixtures", lambda task: ("flat_stove_1",) if task.index else ())
    assert notes("fixed") == ["cabinets, stoves and racks stand at the same place in every trial (fixtures: fixed)"]
    assert notes("drawn", fixtures="drawn") == []


def test_it_goes_on_where_it_stopped(variants: World, tmp_path: Path) -> None:
    first = measure(tmp_path, only=["noise"])
    variants.requests.clear()
    assert measure(tmp_path, only=["noise"]).to_dict() == first.to_dict()
    assert variants.requests == []


def test_conditions_guard_the_results_folder(variants: World, tmp_path: Path) -> None:
    run = {"out": tmp_path, "name": "p", "num_trials": 1}
    evaluate(Pushes(), "libero_object", conditions=Conditions(Perturbation(noise=5.0)), **run)
    with pytest.raises(UsageError, match="conditions"):
        evaluate(Pushes(), "libero_object", **run)


def test_a_folder_from_before_there_were_conditions_is_taken(variants: World, tmp_path: Path) -> None:
    run = {"out": tmp_path, "name": "p", "num_trials": 1}
    evaluate(Pushes(), "libero_object", **run)
    file = tmp_path / "run.json"
    described = json.loads(file.read_text())
    assert described.pop("conditions") == {}
    file.write_text(json.dumps(described))
    assert evaluate(Pushes(), "libero_object", **run).steps_run == 0


@pytest.mark.parametrize("rows", [["fog"], ["camera-shift", "temp_z0.1"], ["noise", "with_mugs"]])
def test_no_such_row(variants: World, tmp_path: Path, rows: list[str]) -> None:
    with pytest.raises(UsageError, match=r"no row .*camera-shift"):
        measure(tmp_path, only=rows)
    assert variants.requests == []


def test_a_row_that_is_named_twice_is_one(variants: World, tmp_path: Path) -> None:
    assert [row.name for row in measure(tmp_path, only=["noise", "swap", "noise"]).rows] == ["base", "noise", "swap"]


def test_an_offset_is_told_in_metres() -> None:
    """A tenth in the name is 7 cm in LIBERO-PRO's initial states."""
    assert what_of("temp_x0.1") == "the target stands 7 cm elsewhere along x"
    assert what_of("temp_y0.3") == "the target stands 21 cm elsewhere along y"
    assert what_of("swap") == "the target and another thing have changed places"


def test_what_makes_no_sense_is_refused(variants: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not look"):
        measure(tmp_path, ReplayDemos({}))
    with pytest.raises(UsageError, match="expected one of libero_spatial"):
        evaluate_robustness(Pushes(), "tabletop", out=tmp_path, name="p")
    with pytest.raises(UsageError, match="LIBERO's suites only"):
        evaluate(Pushes(), "tabletop", out=tmp_path, name="p", conditions=Conditions(Perturbation(noise=5.0)))


def test_every_perturbation_changes_one_thing() -> None:
    told = {name: conditions.told() for name, (_, conditions) in PERTURBATIONS.items()}
    assert all(len(what) == 1 for what in told.values())
    assert len({json.dumps(what) for what in told.values()}) == len(PERTURBATIONS)
    assert set(suites.BASES) >= {"libero_object"}


def test_nothing_lost_has_no_sign() -> None:
    found = Results("libero_object", "p", "", 0.1, 0.1, 1, 10, (0.1, 0.2), 0, 9.0, {}, {}, None, 1.0, 9, 9.0, {}, ())
    table = Robustness("libero_object", "p", (Row("dark", "all lights", found, (-0.001, (-0.004, 0.3))),))
    assert "| 0 (0 to 30) |" in table.to_markdown()
