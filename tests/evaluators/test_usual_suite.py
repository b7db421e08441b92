"""The suite in which a policy is tried when nobody says which."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from statevla.evaluators import usual_suite as module
from statevla.evaluators.usual_suite import ALL, ELSE, usual_suite
from statevla.sims.libero import suites
from statevla.sims.libero.errors import SimulatorMissing
from stores.errors import StoreMissing, UsageError

WORDS = {"libero_spatial": ("a", "b"), "libero_object": ("c", "d"), "libero_goal": ("e", "f"), "tabletop": ("g",)}


class Row:
    """A suite of the tasks in `WORDS`; of others there is nothing on this machine."""

    def __init__(self, name: str) -> None:
        self.name = name

    def tasks(self, _: None) -> list[object]:
        if self.name not in WORDS:
            raise SimulatorMissing("nothing here")
        if self.name == "tabletop":
            return [SimpleNamespace(suite=self.name, index=0, name=word, instruction=word) for word in WORDS[self.name]]
        return [
            suites.Task(self.name, number, f"NAMED_{word}", word, Path("x.bddl"), Path("x.init"))
            for number, word in enumerate(WORDS[self.name])
        ]


@pytest.fixture(autouse=True)
def some_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUITES", {name: Row(name) for name in ALL})
    monkeypatch.setattr(module, "find_policy", lambda checkpoint: checkpoint)


def trained_on(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(module, "read_state", lambda _: SimpleNamespace(instructions=list(words)))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("e",), "libero_goal"),
        (("a", "e", "f"), "libero_goal"),
        (("named b",), "libero_spatial"),  # the benchmark's task.language
        (("something else",), ELSE),
        (("g",), ELSE),  # not among LIBERO's
    ],
)
def test_it_is_the_one_of_which_most_tasks_were_trained_on(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], wanted: str
) -> None:
    trained_on(monkeypatch, *words)
    assert usual_suite("checkpoint", Path("run")) == wanted


def test_the_built_in_one_is_chosen_where_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    trained_on(monkeypatch, "g")
    assert usual_suite("checkpoint", Path("run"), ALL) == "tabletop"


def test_two_of_which_as_much_is_known_must_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    trained_on(monkeypatch, "a", "b", "e", "f")
    with pytest.raises(
        UsageError, match=r"run was trained on 2 tasks of each of libero_spatial, libero_goal; .*--suite"
    ):
        usual_suite("checkpoint", Path("run"))


def test_a_control_was_trained_on_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise StoreMissing("no run")

    monkeypatch.setattr(module, "find_policy", refuse)
    assert usual_suite("expert", None) == usual_suite("zero", None) == ELSE
    with pytest.raises(StoreMissing):
        usual_suite("checkpoint", None)
