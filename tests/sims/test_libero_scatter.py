"""Other places for the things of a scene: apart, within reach, the receptacle where it was; in a world of discs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from statevla.sims.libero import scatter
from statevla.sims.libero.scatter import GAP, MARGIN, Disc, arrange, check_scatter, seed_of_places, shifts
from statevla.sims.libero.scene import Points
from stores.errors import UsageError

RADIUS = 0.05


@dataclass
class Discs:
    """A scene of discs 1 cm high, and a wall of four points."""

    centers: dict[str, tuple[float, float]]
    goals: tuple[tuple[str, ...], ...] = (("in", "soup_1", "basket_1_contain_region"),)
    fixtures: Sequence[str] = ()
    of_interest: Sequence[str] = ()
    base: Points = field(default_factory=lambda: np.zeros(3))

    def _never(self, name: str) -> Any:
        raise AssertionError(f"asked about {name}")

    parts = position = rotation = site = joint = _never

    @property
    def movable(self) -> list[str]:
        return list(self.centers)

    def surface(self, name: str) -> Points:
        if name == "wall":
            return np.array([[x, y, z] for x in (-0.1, 0.1) for y in (-0.02, 0.02) for z in (0.0, 0.3)])
        angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        circle = RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1) + self.centers[name]
        return np.concatenate([np.insert(circle, 2, z, axis=1) for z in (0.0, 0.01)])


CENTERS = {"soup_1": (-0.12, -0.24), "basket_1": (0.01, 0.26), "milk_1": (0.1, -0.2), "butter_1": (-0.2, -0.07)}


def placed(world: Any, seed: int) -> dict[str, np.ndarray]:
    moved = shifts(world, np.random.default_rng(seed))
    return {name: np.array(world.centers[name]) + shift for name, shift in moved.items()}


@pytest.mark.parametrize("seed", range(30))
def test_things_stand_apart_within_their_rectangle(seed: int) -> None:
    world = Discs(CENTERS)
    places = placed(world, seed)
    assert set(places) == {"soup_1", "milk_1", "butter_1"}, "the basket, which things are put into, stays"
    old = np.array([CENTERS[name] for name in places])
    for place in places.values():
        assert (place >= old.min(axis=0) - MARGIN - 1e-9).all()
        assert (place <= old.max(axis=0) + MARGIN + 1e-9).all()
    for a, b in combinations([*places.values(), np.array(CENTERS["basket_1"])], 2):
        assert np.linalg.norm(a - b) >= 2 * RADIUS + GAP - 1e-3


def test_every_part_of_the_rectangle_is_reached_and_the_seed_decides() -> None:
    world = Discs(CENTERS)
    found = np.array([placed(world, seed)["soup_1"] for seed in range(200)])
    low, high = np.array([-0.2, -0.24]) - MARGIN, np.array([0.1, -0.07]) + MARGIN
    quarters = {tuple(row) for row in ((found - low) / (high - low) * 2).astype(int).tolist()}
    assert quarters == {(0, 0), (0, 1), (1, 0), (1, 1)}
    np.testing.assert_array_equal(placed(world, 3)["milk_1"], placed(world, 3)["milk_1"])


@pytest.mark.parametrize("seed", range(20))
def test_a_thing_keeps_off_what_stays(seed: int) -> None:
    corners = {"soup_1": (-0.25, -0.2), "milk_1": (0.25, 0.2)}
    for place in placed(Discs(corners, goals=(), fixtures=("wall",)), seed).values():
        assert np.linalg.norm(place) >= np.hypot(0.1, 0.02) + RADIUS + GAP - 1e-3
    for place in placed(Discs(corners | {"basket_1": (0.0, 0.0)}), seed).values():
        assert np.linalg.norm(place) >= 2 * RADIUS + GAP - 1e-3


def test_without_room_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scatter, "ROUNDS", 5)
    big = {name: Disc(np.array([x, 0.0]), 0.2) for name, x in (("a", 0.0), ("b", 0.1))}
    with pytest.raises(UsageError, match="no room for 2 things"):
        arrange(big, [], np.random.default_rng(0).uniform)


def test_of_many_attempts_the_share_is_scattered_each_otherwise() -> None:
    seeds = [seed_of_places((0, 2, k, 0), 0.3) for k in range(2000)]
    assert sum(seed is not None for seed in seeds) == pytest.approx(600, abs=60)
    told = [seed for seed in seeds if seed is not None]
    assert len(set(told)) == len(told)
    assert all(seed_of_places((0, k), 0.0) is None for k in range(50))
    assert all(seed_of_places((0, k), 1.0) is not None for k in range(50))


def test_only_suites_that_name_no_place_are_scattered() -> None:
    check_scatter("libero_object", 1.0)
    check_scatter("libero_spatial", 0.0)
    with pytest.raises(UsageError, match=r"--scatter 0\.5: expected libero_object, got libero_spatial"):
        check_scatter("libero_spatial", 0.5)
    with pytest.raises(UsageError, match=r"from 0 to 1, got 1\.5"):
        check_scatter("libero_object", 1.5)
