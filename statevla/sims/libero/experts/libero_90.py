"""libero_90: no program a task, but one that reads the task's goal and does it with the skills of the other suites.

Which of the ninety tasks these skills do is measured (docs/results-libero.md), and `PROGRAMS` has no others.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from statevla.sims.libero.experts.fixtures import TURNED_ON, close_drawer, inside_drawer, open_drawer, outward, turn_on
from statevla.sims.libero.experts.libero_10 import book_in_compartment, into_basket
from statevla.sims.libero.experts.libero_goal import BOTTLE_DEPTH, BURNER, bottle_on_rack
from statevla.sims.libero.experts.libero_spatial import PLATE_INSIDE
from statevla.sims.libero.experts.microwave import close_door
from statevla.sims.libero.experts.program import Program, Steps, Vector, World
from statevla.sims.libero.experts.skills import Grips, by_body, by_knob, by_rim, deep, pick, place

PULLED = -0.148
"""[m] of a drawer's joint, beyond which LIBERO calls it open."""
OVER, CARRY = 0.08, 0.20
"""[m] of the hand over everything on its way to a thing, and over where the thing shall stand."""
BEHIND_FRONT = 0.096
"""[m] from a drawer's bar to where a thing is put down."""
BOWL_INSIDE = 0.03
"""[m] of a bowl's inner floor above its origin, with another bowl in it."""
FORWARD = 0.03
"""[m] from the middle of a cabinet's top to its front: further back the arm does not reach over."""


def by_goal(world: World) -> Steps:
    """Makes every predicate of the goal true, one after the other; what something shall stand on comes before it."""
    for verb, *names in in_order(world.scene.goals):
        yield from DEEDS[verb](world, *names)


def in_order(goals: tuple[tuple[str, ...], ...]) -> list[tuple[str, ...]]:
    """The predicates, so that a thing is put down before another is put on it."""
    moved = {goal[1]: goal for goal in goals if len(goal) == 3}
    later = [goal for goal in goals if len(goal) == 3 and goal[2] in moved]
    return [*(goal for goal in goals if goal not in later), *later]


def grips_of(name: str) -> Grips:
    """How a thing is taken, by its kind."""
    if "bowl" in name or "mug" in name:
        return by_rim
    if "moka_pot" in name:
        return by_knob
    return deep(BOTTLE_DEPTH) if "bottle" in name else by_body


def put(world: World, name: str, target: str) -> Steps:
    """``on`` and ``in``: takes a thing and lets go of it where the goal wants it."""
    if target.startswith("basket"):
        yield from into_basket(name)(world)
        return
    if target.startswith("desk_caddy"):
        yield from book_in_compartment(world, name, target)
        return
    if target.startswith("wine_rack"):
        yield from bottle_on_rack(world)
        return
    table = world.bottom(name)
    over = world.top(*world.scene.movable) + OVER
    yield from pick(world, name, grips_of(name), lift=0.16, over=over)
    where, surface = place_for(world, target, table)
    hanging = world.hand[2] - world.bottom(name)
    rotation = world.turn if "bottle" in name else None
    yield from place(
        world, name, where, surface, carry=max(surface + hanging + 0.06, surface + CARRY), rotation=rotation, away=0.14
    )


def place_for(world: World, target: str, table: float) -> tuple[Vector, float]:
    """Where ``[2]`` and how high [m] a thing stands that is on or in `target`. table: [m], where it stood before."""
    scene = world.scene
    if target in scene.movable:
        where = scene.position(target)
        return where[:2], float(where[2]) + (BOWL_INSIDE if "bowl" in target else PLATE_INSIDE)
    fixture, drawer = drawer_of(target)
    if fixture in scene.fixtures and "cabinet" in fixture and target.endswith("_region"):
        return inside_drawer(world, fixture, drawer, behind_front=BEHIND_FRONT)
    region = scene.site(target).position
    if target.endswith("_cook_region"):
        return region[:2], float(scene.position(target.removesuffix("_cook_region"))[2]) + BURNER
    if target.endswith("_top_side"):
        forward = outward(world, fixture)[:2] * FORWARD if "cabinet" in fixture else np.zeros(2)
        return region[:2] + forward, float(region[2])
    if "tray" in target:
        return region[:2], table + 0.012
    return region[:2], table + 0.002


def drawer_of(target: str) -> tuple[str, str]:
    """``white_cabinet_1_top_region`` -> the cabinet and ``top``."""
    fixture, _, drawer = target.removesuffix("_region").removesuffix("_side").rpartition("_")
    return fixture, drawer


def open_it(world: World, target: str) -> Steps:
    """``open``: drawers alone."""
    cabinet, drawer = drawer_of(target)
    yield from open_drawer(world, cabinet, drawer, to=PULLED)


def close_it(world: World, target: str) -> Steps:
    """``close``: drawers and the microwave."""
    if target.startswith("microwave"):
        yield from close_door(world, target)
        return
    cabinet, drawer = drawer_of(target)
    yield from close_drawer(world, cabinet, drawer, height=max(1.12, world.top(cabinet) + 0.02))


def light(world: World, stove: str) -> Steps:
    """``turnon``, where it is not on already."""
    if world.scene.joint(f"{stove}_button") < TURNED_ON:
        yield from turn_on(world, stove)


DEEDS: Final[dict[str, Callable[..., Steps]]] = {
    "on": put,
    "in": put,
    "open": open_it,
    "close": close_it,
    "turnon": light,
}

TASKS: Final = 90
WITHOUT_A_SKILL: Final = frozenset({35, 39, 40, 42, 86, 88, 89})
"""Open a microwave, turn a stove off, reach between two shelves."""
FAILED: Final = frozenset({5, 6, 8, 12, 21, 23, 29, 31, 32, 76, 85})
"""Tried from their first initial state, without success that held."""
PROGRAMS: tuple[Program | None, ...] = tuple(
    None if task in WITHOUT_A_SKILL | FAILED else by_goal for task in range(TASKS)
)
