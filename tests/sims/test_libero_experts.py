"""The scripted experts, without a simulator: grasps, waypoints, programs in a world of boxes."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from statevla.sims.libero import experts, rotations, scene
from statevla.sims.libero.experts import grasps, libero_10, libero_90, skills
from statevla.sims.libero.experts.program import CLOSED, DONE, OPEN, POSITION_UNIT, Follower, Go, Program, Steps, World
from statevla.sims.libero.scene import Site, box_points
from stores.errors import UsageError

Array = NDArray[np.float64]
NOTHING = np.zeros((0, 3))
BASE = np.array([-0.5, 0.0, 0.0])
DOWN = np.array([1.0, 0.0, 0.0, 0.0])  # half a turn about x


def box(x: float, y: float, half: tuple[float, float, float], yaw: float = 0.0, floor: float = 0.0) -> Array:
    """A box standing on the floor."""
    return box_points(np.array([x, y, floor + half[2]]), rotations.about_z(yaw), np.array(half))


def ring(radius: float, height: float) -> Array:
    """The wall of a bowl."""
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    circle = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return np.concatenate([np.insert(circle, 2, z, axis=1) for z in np.linspace(0, height, 8)])


def best(found: list[grasps.Grasp]) -> grasps.Grasp:
    return min(found, key=lambda grasp: grasp.cost)


# --- grasps -----------------------------------------------------------------------------------------------------------


@given(st.floats(-1.2, 1.2))
def test_a_long_box_is_taken_across(yaw: float) -> None:
    found = best(grasps.around_body(box(0.1, -0.2, (0.06, 0.02, 0.03), yaw), NOTHING, BASE))
    assert np.hypot(*(found.center[:2] - [0.1, -0.2])) < 0.01
    short_side = np.array([-np.sin(yaw), np.cos(yaw)])
    assert abs(grasps.axes(found.yaw)[0] @ short_side) > np.cos(np.deg2rad(20))


def test_fingers_go_where_there_is_room() -> None:
    target = box(0.0, 0.0, (0.025, 0.025, 0.04))
    alone = best(grasps.around_body(target, NOTHING, BASE))
    beside = np.concatenate([box(0.0, side * 0.065, (0.02, 0.02, 0.04)) for side in (-1, 1)])
    crowded = best(grasps.around_body(target, beside, BASE))
    assert abs(alone.yaw) < np.deg2rad(10)  # fingers close along y
    assert abs(crowded.yaw) > np.deg2rad(30)  # where the neighbours stand
    assert crowded.gap > 0


def test_what_is_too_wide_has_no_grip_around_it_but_one_on_its_rim() -> None:
    bowl = ring(0.06, 0.05)
    assert grasps.around_body(bowl, NOTHING, BASE) == []
    found = best(grasps.over_rim(bowl, NOTHING, np.zeros(3), BASE))
    assert np.hypot(*found.center[:2]) == pytest.approx(0.06, abs=0.008)
    outward = found.center[:2] / np.hypot(*found.center[:2])
    assert abs(grasps.axes(found.yaw)[0] @ outward) > 0.99  # one finger inside, one outside
    assert found.center[2] == pytest.approx(0.05 - grasps.RIM_DEPTH)


def test_a_rim_is_taken_where_nothing_stands() -> None:
    wall = box(0.0, 0.11, (0.1, 0.02, 0.1))
    found = best(grasps.over_rim(ring(0.06, 0.05), wall, np.zeros(3), BASE))
    assert found.center[1] < 0.04
    assert found.gap > 0


def test_an_arm_is_not_stretched_where_it_need_not_be() -> None:
    far = grasps.over_rim(ring(0.06, 0.05) + np.array([0.3, 0, 0]), NOTHING, np.array([0.3, 0, 0]), BASE)
    assert best(far).center[0] < 0.3
    assert grasps.stretch(np.array([0.4, 0.0, 0.0]), BASE) > grasps.stretch(np.array([0.0, 0.0, 0.0]), BASE) == 0


@pytest.mark.parametrize(("half_height", "expected"), [(0.015, 0.015), (0.06, 0.12 - grasps.DEPTH)])
def test_low_objects_are_taken_at_half_height_and_tall_ones_below_the_top(half_height: float, expected: float) -> None:
    assert grasps.grip_height(box(0, 0, (0.02, 0.02, half_height))) == pytest.approx(expected)


def test_another_try_is_another_grip() -> None:
    every = grasps.around_body(box(0.0, 0.0, (0.02, 0.02, 0.04)), NOTHING, BASE)
    rng = np.random.default_rng(0)
    first = grasps.choose(every, [], rng)
    second = grasps.choose(every, [first], rng)
    assert np.linalg.norm(first.center - second.center) > 0.02 or abs(first.yaw - second.yaw) > 0.3
    with pytest.raises(ValueError, match="wider than the hand"):
        grasps.choose([], [], rng)


# --- shapes -----------------------------------------------------------------------------------------------------------


@given(st.floats(0.001, 0.4), st.floats(0.001, 0.4), st.floats(0.001, 0.4))
def test_no_finger_fits_between_the_points_of_a_shape(x: float, y: float, z: float) -> None:
    points = box_points(np.zeros(3), np.eye(3), np.array([x, y, z]))
    for axis, half in enumerate((x, y, z)):
        steps = np.diff(np.unique(np.round(points[:, axis], 9)))
        assert steps.max() <= max(scene.SPACING + 1e-9, 2 * half / (scene.MOST - 1) + 1e-9)
        assert points[:, axis].max() == pytest.approx(half)


def test_round_shapes_are_boxes_around_them() -> None:
    size = np.array([0.02, 0.05, 0.0])
    assert scene.half_size(scene.SPHERE, size, 0.02).tolist() == [0.02, 0.02, 0.02]
    assert scene.half_size(scene.CYLINDER, size, 0.06).tolist() == [0.02, 0.02, 0.05]
    assert scene.half_size(scene.MESH, size, 0.1).tolist() == pytest.approx([0.06] * 3)
    assert scene.half_size(6, size, 0.1).tolist() == size.tolist()


# --- a world of boxes -------------------------------------------------------------------------------------------------


@dataclass
class Boxes:
    """Things that stand where they are put; the one that is held moves with the hand."""

    places: dict[str, Array]
    of_interest: list[str]
    half: tuple[float, float, float] = (0.02, 0.02, 0.04)
    base: Array = field(default_factory=lambda: BASE)
    fixtures: tuple[str, ...] = ()
    goals: tuple[tuple[str, ...], ...] = ()

    @property
    def movable(self) -> list[str]:
        return list(self.places)

    def surface(self, name: str) -> Array:
        x, y, z = self.places[name]
        return box(x, y, self.half, floor=z - self.half[2])

    def parts(self, body: str) -> list[Array]:
        return []

    def position(self, name: str) -> Array:
        return self.places[name].copy()

    def rotation(self, name: str) -> Array:
        return np.eye(3)

    def site(self, name: str) -> Site:
        raise KeyError(name)

    def joint(self, name: str) -> float:
        raise KeyError(name)


def follow(
    world: Boxes, program: Program, seed: int = 0, slips: int = 0, steps: int = 400, rises: float = 1.0,
    stopped_at: float = -1.0,
) -> tuple[list[str], list[Array]]:  # fmt: skip
    """The hand moves by half of what each action asks for; a closed hand near the first thing takes it along, but for
    the first ``slips`` times that it closes. rises: of the hand's way up, what the thing does until it is higher by
    0.1. stopped_at: height below which the hand does not come the first time that it goes down.
    """
    hand = np.array([-0.1, 0.0, 0.3])
    expert = Follower(world, (hand, DOWN), program, np.random.default_rng(seed))
    target = world.of_interest[0]
    stages: list[str] = []
    actions: list[Array] = []
    closings, held, before = 0, False, OPEN
    while len(stages) < steps and stages[-1:] != [DONE]:
        action = expert.act((hand, DOWN))
        stages.append(expert.stage)
        actions.append(action)
        if action[6] != before:
            closings += action[6] == CLOSED
            near = np.linalg.norm(world.places[target] - hand) < 0.05
            held = bool(action[6] == CLOSED and near and closings > slips)
            before = action[6]
        moved = action[:3] * POSITION_UNIT * 0.5
        if [stage for stage, _ in itertools.groupby(stages)].count("down") < 2:
            moved[2] = max(moved[2], stopped_at - hand[2])
        hand = hand + moved
        if held:
            along = moved * [1, 1, rises] if moved[2] > 0 and hand[2] < 0.2 else moved
            world.places[target] = world.places[target] + along
    return stages, actions


def pick_and_place(world: World) -> Steps:
    yield from skills.pick(world, "can")
    yield from skills.place(world, "can", world.scene.position("plate"), 0.0)


def hasty(world: World) -> Steps:
    yield from skills.pick(world, "can", hasty=True)
    yield from skills.place(world, "can", world.scene.position("plate"), 0.0)


def two_boxes() -> Boxes:
    return Boxes({"can": np.array([0.0, -0.1, 0.04]), "plate": np.array([0.1, 0.2, 0.04])}, ["can", "plate"])


@pytest.mark.parametrize("seed", range(5))
def test_what_is_picked_is_placed(seed: int) -> None:
    world = two_boxes()
    stages, actions = follow(world, pick_and_place, seed)
    assert list(dict.fromkeys(stages)) == ["above", "down", "close", "lift", "carry", "lower", "open", "away", DONE]
    assert np.abs(actions).max() <= 1
    assert world.places["can"][:2] == pytest.approx([0.1, 0.2], abs=0.02)
    assert world.places["can"][2] == pytest.approx(0.04 + skills.DROP, abs=0.015)


def test_what_slipped_is_gripped_again_otherwise() -> None:
    world = two_boxes()
    stages, _ = follow(world, pick_and_place, slips=1)
    assert "retry" in stages
    assert stages.count(DONE) == 1
    assert world.places["can"][:2] == pytest.approx([0.1, 0.2], abs=0.02)


def test_what_tilts_in_the_hand_is_held() -> None:
    """A bowl by its rim: its middle comes up by less than half of the hand's way."""
    world = two_boxes()
    stages, _ = follow(world, pick_and_place, rises=0.45)
    assert "retry" not in stages
    assert world.places["can"][:2] == pytest.approx([0.1, 0.2], abs=0.02)


def test_a_hand_that_is_stopped_on_its_way_down_closes_where_there_is_time() -> None:
    stages, _ = follow(two_boxes(), pick_and_place, stopped_at=0.09)
    assert [stage for stage, _ in itertools.groupby(stages)][:3] == ["above", "down", "close"]


def test_a_hand_that_something_holds_does_not_wait_out_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many equal pictures a policy without memory learns to stand still."""
    monkeypatch.setattr(skills, "DOWN_STEPS", 200)
    held, _ = follow(two_boxes(), pick_and_place, stopped_at=0.09)
    assert held.count("down") < 30


def test_a_hasty_hand_that_is_stopped_on_its_way_down_does_not_close() -> None:
    world = two_boxes()
    stages, actions = follow(world, hasty, stopped_at=0.09)  # the grip is at 0.048
    order = [stage for stage, _ in itertools.groupby(stages)]
    assert order[:2] == ["above", "down"]
    assert order.index("close") > [place for place, stage in enumerate(order) if stage == "down"][1]
    assert all(action[6] == OPEN for action in actions[: stages.index("close")])
    assert world.places["can"][:2] == pytest.approx([0.1, 0.2], abs=0.02)


def test_the_seed_decides() -> None:
    first, again, other = (follow(two_boxes(), pick_and_place, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
    ("go", "elapsed", "over"),
    [
        ({}, 0, True),
        ({"near": 0.0}, 59, False),
        ({"near": 0.0}, 60, True),
        ({"stay": 5}, 4, False),
        ({"turned": 0.1}, 1, False),
        ({"turned": 0.3}, 1, True),
        ({"near": 0.0, "until": lambda: True}, 1, True),
        ({"near": 0.0, "until": lambda: True, "stay": 3}, 1, False),
    ],
)
def test_when_a_waypoint_is_left(go: dict[str, float | Callable[[], bool]], elapsed: int, over: bool) -> None:
    """The hand is there, turned by 0.2 rad too far."""
    way = Go("x", np.zeros(3), np.eye(3), OPEN, **go)  # type: ignore[arg-type]
    assert way.over(elapsed, np.array([0.005, 0, 0]), rotations.about_z(0.2)) is over


# --- programs that read the goal --------------------------------------------------------------------------------------


def test_what_something_shall_stand_on_is_put_down_first() -> None:
    stacked, below = ("on", "bowl_1", "bowl_2"), ("in", "bowl_2", "wooden_tray_1_contain_region")
    assert libero_90.in_order((stacked, below)) == [below, stacked]
    drawer = (("in", "butter_1", "wooden_cabinet_1_top_region"), ("close", "wooden_cabinet_1_top_region"))
    assert libero_90.in_order(drawer) == list(drawer)


def test_a_goal_says_which_drawer() -> None:
    assert libero_90.drawer_of("white_cabinet_1_bottom_region") == ("white_cabinet_1", "bottom")
    assert libero_90.drawer_of("wooden_cabinet_1_top_side") == ("wooden_cabinet_1", "top")


def test_a_goal_is_enough_for_a_program() -> None:
    world = Boxes(
        {"can_1": np.array([0.0, -0.1, 0.04]), "plate_1": np.array([0.1, 0.2, 0.04])}, ["can_1"],
        goals=(("on", "can_1", "plate_1"),),
    )  # fmt: skip
    follow(world, libero_90.by_goal)
    assert world.places["can_1"][:2] == pytest.approx([0.1, 0.2], abs=0.02)
    # The boxes' origins are their middles: the can's bottom is over the plate's, 4 mm and what it is dropped from.
    assert world.places["can_1"][2] == pytest.approx(0.04 + 0.04 + 0.004 + skills.DROP, abs=0.015)


@pytest.mark.parametrize("yaw", [-80, -30, 0, 45, 90])
@pytest.mark.parametrize("narrow", ["x", "y"])
def test_a_books_thin_side_comes_along_the_compartments(narrow: str, yaw: float) -> None:
    turned = np.deg2rad(yaw)
    book = box(0.0, 0.0, (0.015, 0.08, 0.1), turned)  # thin along x before it is turned
    region = Site(np.zeros(3), np.eye(3), np.array([0.03, 0.1, 0.05] if narrow == "x" else [0.1, 0.03, 0.05]))
    after = book @ rotations.about_z(-libero_10.out_of_line(book, region)).T
    along_x, along_y = np.ptp(after[:, :2], axis=0)
    assert bool(along_x < along_y) == (narrow == "x")
    assert min(along_x, along_y) == pytest.approx(0.03, abs=1e-6)


def test_where_a_goal_wants_things() -> None:
    sites = {
        "flat_stove_1_cook_region": (0.2, 0.1, 0.99), "white_cabinet_1_top_side": (0.0, -0.3, 1.2),
        "wooden_tray_1_contain_region": (0.1, 0.2, 0.5), "table_plate_right_region": (0.3, 0.0, 0.4),
    }  # fmt: skip

    class Furnished(Boxes):
        def site(self, name: str) -> Site:
            return Site(np.array(sites[name]), np.eye(3), np.zeros(3))

    scene = Furnished({"plate_1": np.array([0.1, 0.2, 0.4]), "flat_stove_1": np.array([0.2, 0.1, 0.9])}, ["plate_1"])
    scene.fixtures = ("white_cabinet_1",)
    world = World(scene, (np.zeros(3), DOWN), np.random.default_rng(0))
    wanted = {
        "plate_1": (0.1, 0.2, 0.404), "flat_stove_1_cook_region": (0.2, 0.1, 0.926),
        "white_cabinet_1_top_side": (0.0, -0.33, 1.2),  # a cabinet's front is along its -y
        "wooden_tray_1_contain_region": (0.1, 0.2, 0.412), "table_plate_right_region": (0.3, 0.0, 0.402),
    }  # fmt: skip
    for target, (x, y, height) in wanted.items():
        where, surface = libero_90.place_for(world, target, table=0.4)
        assert (*where, surface) == pytest.approx((x, y, height)), target


# --- the table --------------------------------------------------------------------------------------------------------


def test_four_suites_have_experts_and_most_of_libero_90() -> None:
    assert {suite: len(programs) for suite, programs in experts.EXPERTS.items()} == {
        "libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90,
    }  # fmt: skip
    there = {suite: sum(program is not None for program in programs) for suite, programs in experts.EXPERTS.items()}
    assert there == {
        "libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 72,
    }  # fmt: skip


def test_a_variant_with_the_same_goal_has_the_same_expert() -> None:
    assert experts.programs_of("libero_goal_swap") is experts.EXPERTS["libero_goal"]
    assert experts.programs_of("libero_object_temp_x0.2") is experts.EXPERTS["libero_object"]
    assert experts.programs_of("libero_goal_task") is None


def test_what_has_no_expert_says_what_has() -> None:
    with pytest.raises(UsageError, match="libero_goal_task has no scripted expert; there is one for libero_spatial"):
        experts.check_expert("libero_goal_task", [0])
    with pytest.raises(
        UsageError, match=r"libero_90: no scripted expert for task \[35\]; there is one for tasks \[0, 1"
    ):
        experts.check_expert("libero_90", [34, 35])
    experts.check_expert("libero_10", [0, 8])
