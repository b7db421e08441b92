"""A policy is tried in tasks whose instruction it was trained on; in others only when told to, and results say it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipelines.collect.libero_driver import check_driver
from statevla.evaluators.conditions import Conditions
from statevla.evaluators.known import note_of, require_trained
from statevla.evaluators.robustness import evaluate_robustness
from statevla.sims.libero import suites
from stores.errors import UsageError
from tests.evaluators.test_libero import SIZE, TASKS, Pushes, World, run, world  # noqa: F401


@dataclass
class Knows(Pushes):
    """Trained on one task; embeds whatever it is told."""

    trained: dict[str, int] = field(default_factory=lambda: {TASKS[0].instruction: 0})

    def vector(self, instruction: str) -> int:
        return 0


def test_an_instruction_that_was_not_trained_on_is_refused_by_default(world: World, tmp_path: Path) -> None:  # noqa: F811
    told = r"1 of 2 tasks of libero_object .* task 1, 'do thing 1'; it knows: do thing 0\. .*--unknown-instructions"
    with pytest.raises(UsageError, match=told) as caught:
        run(Knows(), tmp_path)
    assert "\n" not in str(caught.value)
    assert world.requests == []
    assert run(Knows(), tmp_path / "known", tasks="0").trials == 3


def test_told_to_it_is_tried_and_results_say_it(world: World, tmp_path: Path) -> None:  # noqa: F811
    results = run(Knows(), tmp_path, unknown_instructions=True)
    assert results.trials == 6
    assert "1 instructions were not trained on: 'do thing 1'" in results.notes
    assert "not trained on: 'do thing 1'" in (tmp_path / "results.md").read_text()
    assert "not trained on" in " ".join(json.loads((tmp_path / "results.json").read_text())["notes"])


def test_what_conditions_tell_instead_is_what_is_tried(world: World, tmp_path: Path) -> None:  # noqa: F811
    other = Conditions(instructions={TASKS[0].name: "make thing 0 be done"})
    results = run(Knows(), tmp_path, tasks="0", conditions=other)
    assert "1 instructions were not trained on: 'make thing 0 be done'" in results.notes


def test_a_variant_of_a_suite_may_tell_otherwise(
    world: World,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = Knows()
    with pytest.raises(UsageError, match="not trained on"):
        evaluate_robustness(policy, "libero_object", out=tmp_path / "base", name="p", only=["dark"], num_trials=1)
    told = evaluate_robustness(
        policy, "libero_object", out=tmp_path, name="p", only=["dark"], num_trials=1, unknown_instructions=True
    )
    assert all(row.results is not None for row in told.rows)
    monkeypatch.setattr(suites, "check_suite", lambda name: name)
    other = [suites.Task("s", 0, TASKS[0].name, "another wording", Path(), Path())]
    monkeypatch.setattr(suites, "tasks", lambda suite: other if suite.endswith("_lan") else TASKS[:1])
    (_, variant) = evaluate_robustness(
        policy, "libero_object", out=tmp_path / "pro", name="p", only=["lan"], num_trials=1
    ).rows
    assert variant.results is not None
    assert "1 instructions were not trained on: 'another wording'" in variant.results.notes


def test_a_policy_that_drives_must_know_the_instruction() -> None:
    check_driver(Knows(), TASKS[:1], SIZE)
    with pytest.raises(UsageError, match=r"'do thing 1'; it knows: do thing 0\. .*other --tasks"):
        check_driver(Knows(), TASKS, SIZE)


def test_controls_and_untrained_policies_know_no_instruction_and_are_told_all() -> None:
    require_trained(object(), TASKS, "")
    require_trained(Knows(trained={}), TASKS, "")
    assert note_of(object(), TASKS) is None
    assert note_of(Knows(trained={TASKS[0].instruction: 0, TASKS[1].instruction: 0}), TASKS) is None


def test_a_policy_that_was_trained_on_the_benchmarks_words_is_told_by_them(world: World, tmp_path: Path) -> None:  # noqa: F811
    """Other formats of LIBERO's demonstrations have `task.language`, not the BDDL's text."""
    assert TASKS[0].language != TASKS[0].instruction
    results = run(Knows(trained={TASKS[0].language: 0}), tmp_path, tasks="0")
    assert {record.instruction for record in results.records} == {TASKS[0].language}
    assert any(note.startswith("1 of 1 tasks are told by the benchmark's task.language") for note in results.notes)
    both = run(Knows(trained={TASKS[0].language: 0, TASKS[0].instruction: 1}), tmp_path / "both", tasks="0")
    assert {record.instruction for record in both.records} == {TASKS[0].instruction}
    assert not [note for note in both.notes if "task.language" in note]
    with pytest.raises(UsageError, match="not trained on"):
        run(Knows(trained={TASKS[1].language: 0}), tmp_path / "other", tasks="0")


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("pick_up_the_milk_and_place_it_in_the_basket", "pick up the milk and place it in the basket"),
        ("KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet", "close the top drawer of the cabinet"),
        ("LIVING_ROOM_SCENE2_put_both_the_soup_in_the_basket", "put both the soup in the basket"),
    ],
)
def test_the_benchmarks_words_are_those_of_the_files_name(name: str, language: str) -> None:
    assert suites.Task("libero_10", 0, name, "", Path(), Path()).language == language
