"""libero_spatial: take the bowl that the task is about by its rim, put it on the plate. One program for all tasks."""

from statevla.sims.libero.experts.program import Steps, World
from statevla.sims.libero.experts.skills import ABOVE_ALL, by_rim, pick, place

PLATE_INSIDE = 0.004  # [m] of a plate's surface above its origin
CARRY = 0.19  # [m] of the hand above the plate


def bowl_on_plate(world: World) -> Steps:
    """For every task; which bowl it is, the task says."""
    bowl, plate = world.scene.of_interest[:2]
    yield from pick(world, bowl, by_rim, lift=0.13, over=world.top(bowl) + ABOVE_ALL, hasty=True)
    where = world.scene.position(plate)
    surface = float(where[2]) + PLATE_INSIDE
    yield from place(world, bowl, where, surface, carry=surface + CARRY)


PROGRAMS = (bowl_on_plate,) * 10
