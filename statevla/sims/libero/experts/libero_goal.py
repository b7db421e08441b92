"""libero_goal: one scene, ten goals: bowls by the rim, boxes and bottles around the body, drawers, a knob, a plate."""

import numpy as np

from statevla.sims.libero import rotations
from statevla.sims.libero.experts.fixtures import handle, open_drawer, outward, turn_on
from statevla.sims.libero.experts.grasps import Grasp
from statevla.sims.libero.experts.libero_spatial import PLATE_INSIDE
from statevla.sims.libero.experts.program import CLOSED, OPEN, Go, Program, Steps, World
from statevla.sims.libero.experts.skills import ABOVE_ALL, at, by_rim, deep, let_go, pick, place, raised

BOWL, PLATE, BOTTLE, CHEESE = "akita_black_bowl_1", "plate_1", "wine_bottle_1", "cream_cheese_1"
CABINET, STOVE, RACK = "wooden_cabinet_1", "flat_stove_1", "wine_rack_1"

BURNER = 0.026  # [m] of a stove's surface above its origin
BOTTLE_DEPTH = 0.045  # [m] of the grip below the bottle's top
DRAWER_FLOOR = 1.064  # [m] of the top drawer's
DRAWS = (80, 15, 15)  # steps of each pull at the plate
OVER_DRAWER = 1.26  # [m] of the hand that carries over it


def _take_bowl(world: World) -> Steps:
    yield from pick(world, BOWL, by_rim, over=world.top(BOWL) + ABOVE_ALL)


def bowl_on_plate(world: World) -> Steps:
    """Task 8."""
    yield from _take_bowl(world)
    where = world.scene.position(PLATE)
    surface = float(where[2]) + PLATE_INSIDE
    yield from place(world, BOWL, where, surface, carry=surface + 0.19)


def bowl_on_stove(world: World) -> Steps:
    """Task 1."""
    yield from _take_bowl(world)
    surface = float(world.scene.position(STOVE)[2]) + BURNER
    burner = world.scene.site(f"{STOVE}_cook_region").position
    yield from place(world, BOWL, burner, surface, carry=surface + 0.16)


def bowl_on_cabinet(world: World) -> Steps:
    """Task 4."""
    yield from _take_bowl(world)
    top = world.scene.site(f"{CABINET}_top_side").position
    yield from place(world, BOWL, top[:2] + np.array([0.0, 0.03]), float(top[2]), carry=float(top[2]) + 0.16)


def cheese_in_bowl(world: World) -> Steps:
    """Task 6."""
    yield from pick(world, CHEESE)
    bowl = world.scene.position(BOWL)
    yield from place(world, CHEESE, bowl, float(bowl[2]) + 0.03, carry=float(bowl[2]) + 0.17)


def bottle_on_cabinet(world: World) -> Steps:
    """Task 2."""
    yield from pick(world, BOTTLE, deep(BOTTLE_DEPTH))
    top = world.scene.site(f"{CABINET}_top_side").position
    where = top[:2] + np.array([-0.03, 0.045])
    yield from place(world, BOTTLE, where, float(top[2]), carry=float(top[2]) + 0.19, rotation=world.turn, drop=0.004)


def bottle_on_rack(world: World) -> Steps:
    """Task 9: stood between the rack's upper shelf and its lip."""
    yield from pick(world, BOTTLE, deep(BOTTLE_DEPTH), lift=0.30)
    region = world.scene.site(f"{RACK}_top_region").position
    where = region[:2] + np.array([0.0, -0.008])
    shelf = float(world.scene.position(RACK)[2]) + 0.222
    yield from place(world, BOTTLE, where, shelf, carry=float(region[2]) + 0.24, drop=-0.004, jitter=0.0)


def middle_drawer(world: World) -> Steps:
    """Task 0."""
    yield from open_drawer(world, CABINET, "middle", to=-0.150)


def bowl_in_top_drawer(world: World) -> Steps:
    """Task 3: the open drawer hangs over the bowl, so the bowl is taken from the far side and drawn out first."""
    yield from open_drawer(world, CABINET, "top", to=-0.145)
    aside = world.hand + np.array([-0.05, 0.05, 0.0])
    down = rotations.pointing_down(0.0)
    yield Go("up", at(aside, 1.25), down, OPEN, 0.9, 40, 0.05, turned=0.6, turn=0.6)
    yield from pick(world, BOWL, _far_side, over=1.05, lift=0.05, lean=0.30)
    out = outward(world, CABINET)
    bar = handle(world, CABINET, "top")
    where = np.array([world.scene.site(f"{CABINET}_top_region").position[0], bar[1]]) - out[:2] * 0.096
    clear = np.array([min(world.hand[0], -0.15), max(world.hand[1], 0.12), world.hand[2] + 0.01])
    yield Go("clear", clear, rotations.upright(world.turn), CLOSED, 0.8, 40, 0.03)
    yield Go("raise", at(world.hand, OVER_DRAWER), rotations.upright(world.turn), CLOSED, 0.9, 40, 0.03)
    yield from place(world, BOWL, where, DRAWER_FLOOR, carry=OVER_DRAWER)


def _far_side(world: World, name: str) -> list[Grasp]:
    """Rim grips on the side away from the drawer."""
    center = world.scene.position(name)

    def direction(grasp: Grasp) -> float:
        return float(np.arctan2(grasp.center[1] - center[1], grasp.center[0] - center[0]))

    return [grasp for grasp in by_rim(world, name) if abs(direction(grasp) - np.pi / 2 - 0.25) < 0.2]


def draw_plate(world: World) -> Steps:
    """Task 5: there is no room to push from behind, so the plate is held by its near rim and drawn, flat."""
    goal = world.scene.site("main_table_stove_front_region").position[:2]
    center = world.scene.position(PLATE)[:2]
    ahead = (goal - center) / np.linalg.norm(goal - center)
    every = by_rim(world, PLATE, depth=0.007)
    grasp = min([g for g in every if (g.center[:2] - center) @ ahead > 0.03] or every, key=lambda g: g.cost)
    rotation = rotations.pointing_down(grasp.yaw)
    yield Go("above", raised(grasp.center, 0.09), rotation, OPEN, 0.9, 80, 0.015, turned=0.1)
    yield Go("down", grasp.center, rotation, OPEN, 0.5, 50, 0.005)
    yield Go("close", grasp.center, rotation, CLOSED, 0.3, 12, 0.0)
    height = world.hand[2] + 0.003
    for steps in DRAWS:  # the plate turns in the fingers, so where it hangs is looked at again
        offset = world.scene.position(PLATE)[:2] - world.hand[:2]
        yield Go("draw", np.append(goal - offset, height), rotation, CLOSED, 0.5, steps, 0.008)
    yield from let_go(world, world.hand, rotation, away=0.12)


def stove_on(world: World) -> Steps:
    """Task 7."""
    yield from turn_on(world, STOVE)


PROGRAMS: tuple[Program, ...] = (
    middle_drawer,
    bowl_on_stove,
    bottle_on_cabinet,
    bowl_in_top_drawer,
    bowl_on_cabinet,
    draw_plate,
    cheese_in_bowl,
    stove_on,
    bowl_on_plate,
    bottle_on_rack,
)
