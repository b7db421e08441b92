"""Each suite's programs, without a simulator: which task has one, and what it does in a made-up room."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from cli import app
from statevla.sims.libero import experts, paths, suites
from statevla.sims.libero.experts import libero_90
from statevla.sims.libero.experts.program import CLOSED, DONE, OPEN, POSITION_UNIT, Follower, Program
from statevla.sims.libero.scene import Site
from stores.errors import UsageError
from tests.sims.test_libero_experts import DOWN, Array, Boxes, box

RESULTS = Path(__file__).parents[2] / "docs/results-libero.md"
TASKS = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
WITHOUT = {"libero_90": libero_90.WITHOUT_A_SKILL | libero_90.FAILED}
"""Suite -> tasks that have no program; the other suites' all have one."""
GRASPED, BESIDE = 0.06, 0.11
"""[m] from the hand to the middle of what it takes; from a thing's middle to that of what it stands on."""
BY_THE_WALL = np.array([0.1, 0.3, 0.04])
MOST_STEPS = 500


# --- which task has one -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", TASKS)
def test_a_task_has_a_program_or_is_listed_as_one_without(suite: str) -> None:
    assert set(TASKS) == set(experts.EXPERTS) == set(suites.BASES)
    programs = experts.EXPERTS[suite]
    assert len(programs) == TASKS[suite]
    assert {task for task, program in enumerate(programs) if program is None} == WITHOUT.get(suite, frozenset())


def test_what_has_none_failed_or_wants_a_skill_that_is_not_there_and_the_results_say_the_same() -> None:
    assert not libero_90.WITHOUT_A_SKILL & libero_90.FAILED
    told = [
        set(suites.parse_indices(found[1]))
        for row in ("held", "tried, without success that held", r"no skill for it: [^|]*")
        if (found := re.search(rf"^\| {row} \| ([\d, -]+) \|$", RESULTS.read_text(), re.MULTILINE))
    ]
    assert told == [
        set(range(90)) - WITHOUT["libero_90"], set(libero_90.FAILED), set(libero_90.WITHOUT_A_SKILL)
    ]  # fmt: skip


@pytest.fixture
def files_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The suites' tasks are there, no simulator is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "prepare", lambda: tmp_path)
    monkeypatch.setattr(paths, "installed_version", lambda package: "1")
    every = {
        suite: tuple(suites.Task(suite, i, f"t{i}", f"do {i}", tmp_path / "t.bddl", tmp_path / "t") for i in range(n))
        for suite, n in (TASKS | {"libero_goal_task": 10}).items()
    }
    (tmp_path / "t.bddl").write_text("(define (problem P)\n)")
    monkeypatch.setattr(suites, "check_suite", lambda suite: suite)
    monkeypatch.setattr(suites, "tasks", lambda suite: every[suite])


@pytest.mark.parametrize(
    ("suite", "tasks", "told"),
    [
        ("libero_90", "34-35,88", r"libero_90: no scripted expert for task \[35, 88\]; there is one for tasks \[0, 1"),
        ("libero_goal_task", "0", "libero_goal_task has no scripted expert; there is one for libero_spatial, libero_o"),
    ],
)
@pytest.mark.parametrize("command", ["collect {}", "collect {} --dry-run", "eval libero --policy expert --suite {}"])
@pytest.mark.usefixtures("files_only")
def test_a_task_without_one_is_refused_by_name(tmp_path: Path, command: str, suite: str, tasks: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        app([*command.format(suite).split(), "--tasks", tasks], standalone_mode=False)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["t.bddl"], "nothing was begun"


# --- what it does -----------------------------------------------------------------------------------------------------


@dataclass
class Room(Boxes):
    """A room in which every name is something: the thing or fixture whose name it begins with, or what is by the wall.
    No joint moves, so a drawer is pulled until there are no steps left."""

    standing: dict[str, Array] = field(default_factory=dict)
    """Name of a fixture or place -> where it is."""

    def position(self, name: str) -> Array:
        every = self.standing | self.places
        return next((place for thing, place in every.items() if name.startswith(thing)), BY_THE_WALL).copy()

    def surface(self, name: str) -> Array:
        x, y, z = self.position(name)
        return box(x, y, self.half, floor=z - self.half[2])

    def parts(self, body: str) -> list[Array]:
        return [self.surface(body)]

    def site(self, name: str) -> Site:
        return Site(self.position(name), np.eye(3), np.array([0.05, 0.05, 0.3]))

    def joint(self, name: str) -> float:
        return 0.0


def furnished(things: Sequence[str], standing: Sequence[str]) -> Room:
    """Things and fixtures on the table, 14 cm apart and more."""
    spots = [np.array([-0.05 + 0.14 * (i % 3), -0.25 + 0.16 * (i // 3), 0.04]) for i in range(9)]
    names = list(dict.fromkeys([*things, *standing]))
    where = dict(zip(names, spots, strict=False))
    return Room(
        {name: where[name] for name in things}, names, standing={name: where[name] for name in names[len(things) :]}
    )


def follow(room: Room, program: Program) -> None:
    """The program until it has nothing left to do. A hand that closes takes what it is at; that moves with the hand."""
    hand, held, before = np.array([-0.1, 0.0, 0.5]), "", OPEN
    expert = Follower(room, (hand, DOWN), program, np.random.default_rng(0))
    for _ in range(MOST_STEPS):
        action = expert.act((hand, DOWN))
        assert np.abs(action).max() <= 1
        if expert.stage == DONE:
            return
        if action[6] != before:
            before = action[6]
            nearest = min(room.places, key=lambda name: float(np.linalg.norm(room.places[name] - hand)))
            near = np.linalg.norm(room.places[nearest] - hand) < GRASPED
            held = nearest if before == CLOSED and near else ""
        moved = action[:3] * POSITION_UNIT * 0.5
        hand = hand + moved
        if held:
            room.places[held] = room.places[held] + moved
    raise AssertionError(f"still in {expert.stage!r} after {MOST_STEPS} steps")


def stands_at(room: Room, thing: str, target: str) -> bool:
    """Whether it was brought there; two things share a basket or a stove."""
    return bool(np.linalg.norm((room.position(thing) - room.position(target))[:2]) < BESIDE)


BOWL, PLATE, BOTTLE, CHEESE = "akita_black_bowl_1", "plate_1", "wine_bottle_1", "cream_cheese_1"
SOUP, SAUCE, BUTTER, BASKET = "alphabet_soup_1", "tomato_sauce_1", "butter_1", "basket_1"
MUG, OTHER_MUG, PUDDING, BOOK = "porcelain_mug_1", "white_yellow_mug_1", "chocolate_pudding_1", "black_book_1"
POT, OTHER_POT, STOVE, CABINET = "moka_pot_1", "moka_pot_2", "flat_stove_1", "wooden_cabinet_1"
STOVES_FRONT, RIGHT_OF_PLATE = "main_table_stove_front_region", "living_room_table_plate_right_region"
MOVED: dict[str, dict[int, dict[str, str]]] = {
    "libero_spatial": {task: {BOWL: PLATE} for task in range(10)},
    "libero_object": {task: {SOUP: BASKET} for task in range(10)},
    "libero_goal": {
        0: {}, 1: {BOWL: STOVE}, 2: {BOTTLE: CABINET}, 3: {BOWL: CABINET}, 4: {BOWL: CABINET}, 5: {PLATE: STOVES_FRONT},
        6: {CHEESE: BOWL}, 7: {}, 8: {BOWL: PLATE}, 9: {BOTTLE: "wine_rack_1"},
    },
    "libero_10": {
        0: {SOUP: BASKET, SAUCE: BASKET}, 1: {CHEESE: BASKET, BUTTER: BASKET}, 2: {POT: STOVE},
        3: {BOWL: "white_cabinet_1"}, 4: {MUG: PLATE, OTHER_MUG: "plate_2"}, 5: {BOOK: "desk_caddy_1"},
        6: {MUG: PLATE, PUDDING: RIGHT_OF_PLATE}, 7: {SOUP: BASKET, CHEESE: BASKET}, 8: {POT: STOVE, OTHER_POT: STOVE},
        9: {OTHER_MUG: "microwave_1"},
    },
}  # fmt: skip
"""Suite -> task -> what is brought where."""


@pytest.mark.parametrize(("suite", "task"), [(suite, task) for suite, tasks in MOVED.items() for task in tasks])
def test_a_program_brings_things_where_its_task_wants_them_and_comes_to_an_end(suite: str, task: int) -> None:
    moved, program = MOVED[suite][task], experts.EXPERTS[suite][task]
    assert program is not None
    room = furnished([*moved, PLATE, BASKET] if PLATE not in moved else [*moved, BASKET], list(moved.values()))
    assert not any(stands_at(room, *pair) for pair in moved.items())
    follow(room, program)
    assert all(stands_at(room, *pair) for pair in moved.items())


@pytest.mark.parametrize(
    ("goals", "moved"),
    [
        ([("on", BOWL, PLATE), ("on", PLATE, "flat_stove_1_cook_region")], {BOWL: PLATE, PLATE: STOVE}),
        ([("in", SOUP, "basket_1_contain_region")], {SOUP: BASKET}),
        ([("in", BOOK, "desk_caddy_1_left_contain_region")], {BOOK: "desk_caddy_1"}),
        ([("open", "wooden_cabinet_1_top_region")], {}),
        ([("in", BUTTER, "wooden_cabinet_1_top_region"), ("close", "wooden_cabinet_1_top_region")], {BUTTER: CABINET}),
        ([("close", "microwave_1")], {}),
        ([("turnon", "flat_stove_1"), ("on", POT, "flat_stove_1_cook_region")], {POT: STOVE}),
    ],
)
def test_a_goal_of_libero_90_is_read_and_done(goals: list[tuple[str, ...]], moved: dict[str, str]) -> None:
    room = furnished(list(dict.fromkeys([*moved, PLATE, BASKET])), [CABINET, STOVE, "desk_caddy_1"])
    room.goals, room.fixtures = tuple(goals), (CABINET,)
    follow(room, libero_90.by_goal)
    assert all(stands_at(room, *pair) for pair in moved.items())
