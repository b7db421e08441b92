"""libero_object: take the thing that the task is about around its body, drop it into the basket."""

import numpy as np

from statevla.sims.libero import rotations
from statevla.sims.libero.experts.program import CLOSED, Go, Steps, World
from statevla.sims.libero.experts.skills import at, let_go, pick

BASKET = "basket_1"
RIM = 0.145  # [m] of the basket's rim above its origin


def into_basket(world: World) -> Steps:
    """For every task. Speeds, heights and drop points differ from episode to episode."""
    scene, rng = world.scene, world.rng
    name = scene.of_interest[0]
    swerve = rng.normal(0, 0.02, 2)
    yield from pick(world, name, lift=rng.uniform(0.12, 0.17), hover=rng.uniform(0.07, 0.12))
    basket = scene.position(BASKET)
    rotation = rotations.pointing_down(rng.normal(0, 0.08))
    hanging = world.hand[2] - world.bottom(name)
    high = max(float(basket[2]) + RIM + 0.025 + hanging + rng.uniform(0.0, 0.05), 0.22)
    yield Go("raise", at(world.hand[:2] + 0.3 * swerve, high), rotation, CLOSED, 0.9, 40, 0.03)
    drop = basket[:2] + rng.uniform(-0.012, 0.012, 2)
    # What must land in the basket is the object's origin, which hangs beside the grip point.
    there = drop - (scene.position(name) - world.hand)[:2] + 0.2 * swerve
    yield Go("carry", at(there, high), rotation, CLOSED, 0.9, 90, 0.02)
    over_rim = float(basket[2]) + RIM + 0.012
    low = at(drop - (scene.position(name) - world.hand)[:2], max(over_rim, hanging + 0.075 + rng.uniform(0.0, 0.02)))
    yield Go("lower", low, rotation, CLOSED, 0.6, 40)
    yield from let_go(world, low, rotation, away=np.clip(high - low[2] + 0.03, 0.05, 0.12))


PROGRAMS = (into_basket,) * 10
