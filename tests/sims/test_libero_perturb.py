"""Cameras, lamps and noise: what is changed, by how much, and that everything comes back."""

from types import SimpleNamespace

import numpy as np
import pytest

from statevla.sims.libero.perturb import NONE, Eyes, Perturbation
from stores.errors import UsageError


class Model(SimpleNamespace):
    """What :class:`Eyes` touches of a MuJoCo model: two cameras, two lamps, a headlight."""

    def __init__(self) -> None:
        head = SimpleNamespace(ambient=np.full(3, 0.1), diffuse=np.full(3, 0.4), specular=np.full(3, 0.5))
        super().__init__(
            cam_pos=np.ones((2, 3)),
            cam_quat=np.tile([1.0, 0, 0, 0], (2, 1)),
            light_pos=np.ones((2, 3)),
            light_ambient=np.full((2, 3), 0.2),
            light_diffuse=np.full((2, 3), 0.8),
            light_specular=np.full((2, 3), 0.3),
            vis=SimpleNamespace(headlight=head),
        )

    def camera_name2id(self, name: str) -> int:
        return {"agentview": 1}[name]


def test_nothing_is_changed_by_default_and_everything_comes_back() -> None:
    model, was = Model(), Model()
    eyes = Eyes(model)
    eyes.take(Perturbation(camera_shift=0.1, camera_turn=5.0, light=0.5, light_shift=0.3, noise=9.0, seed=3))
    assert not np.array_equal(model.cam_pos, was.cam_pos)
    eyes.take(NONE)
    for name in ("cam_pos", "cam_quat", "light_pos", "light_ambient", "light_diffuse", "light_specular"):
        np.testing.assert_array_equal(getattr(model, name), getattr(was, name), err_msg=name)
    np.testing.assert_array_equal(model.vis.headlight.diffuse, was.vis.headlight.diffuse)
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert eyes.spoil(image, 0, 1.0) is image


def test_each_number_does_what_it_says() -> None:
    model = Model()
    eyes = Eyes(model)
    eyes.take(Perturbation(camera_shift=0.1, camera_turn=10.0, light=0.5, light_shift=0.3, seed=1))
    assert np.linalg.norm(model.cam_pos[1] - 1) == pytest.approx(0.1)
    assert (model.cam_pos[0] == 1).all()  # the hand's camera stays
    assert 2 * np.degrees(np.arccos(model.cam_quat[1, 0])) == pytest.approx(10)
    assert (model.light_diffuse == 0.4).all()
    assert (model.vis.headlight.ambient == 0.05).all()
    assert np.linalg.norm(model.light_pos[0] - 1) == pytest.approx(0.3)
    assert (model.light_pos[:, 2] == 1).all()
    moved = model.cam_pos.copy()
    eyes.take(Perturbation(camera_shift=0.1, camera_turn=10.0, seed=2))
    assert not np.array_equal(model.cam_pos, moved)  # another seed, another direction


def test_noise_is_of_the_moment_not_of_how_often_one_looks() -> None:
    eyes = Eyes(Model())
    eyes.take(Perturbation(noise=10.0, seed=1))
    image = np.full((64, 64, 3), 128, np.uint8)
    first = eyes.spoil(image, 0, 1.0)
    eyes.spoil(image, 1, 1.0)
    np.testing.assert_array_equal(eyes.spoil(image, 0, 1.0), first)
    assert not np.array_equal(eyes.spoil(image, 0, 1.05), first)
    assert not np.array_equal(eyes.spoil(image, 1, 1.0), first)
    assert float(first.astype(float).std()) == pytest.approx(10, abs=0.5)
    dark = eyes.spoil(np.zeros((8, 8, 3), np.uint8), 0, 1.0)
    assert dark.dtype == np.uint8
    assert dark.max() < 128  # clipped, not wrapped


@pytest.mark.parametrize("wrong", [{"light": -1.0}, {"noise": np.nan}, {"camera_shift": np.inf}])
def test_numbers_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Perturbation(**wrong)  # type: ignore[arg-type]
