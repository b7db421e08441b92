"""The straight way between two states, where what is between is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.config import load_config
from statevla.data.batch import ObservationBatch
from statevla.evaluators.state import evaluate_states
from statevla.evaluators.state_between import POINTS, ends, kendall, mean_order, sheet, way
from statevla.evaluators.state_pictures import Seen
from statevla.systems.table import sections
from statevla.trainers.trainer import train
from stores.images import decode_image
from stores.reader import Store
from tests.evaluators.test_state import MICRO, SETTINGS
from tests.trainers.micro import micro_store


def a_square_that_moves(frames: int = 33, side: int = 40) -> Seen:
    pixels = np.zeros((frames, 1, side, side, 3), np.uint8)
    for t in range(frames):
        pixels[t, 0, 10:16, t : t + 6] = 255
    rows = np.arange(frames)
    obs = ObservationBatch((torch.from_numpy(pixels[:, 0]),), torch.zeros(frames, 9), torch.zeros(frames, 4))
    return Seen(pixels, ["go"] * frames, np.zeros(frames, np.int64), rows, obs)


@pytest.mark.parametrize(
    ("two", "tau"),
    [
        ([0, 1, 2, 3], 1.0),
        ([3, 2, 1, 0], -1.0),
        ([5, 5, 5, 5], 0.0),
        ([0, 0, 1, 1], 4 / np.sqrt(6 * 4)),  # of six pairs four agree, two are tied
        ([0, 2, 1, 3], 4 / 6),  # one of six disagrees
    ],
)
def test_kendall_by_hand(two: list[int], tau: float) -> None:
    assert kendall(np.arange(4), np.array(two)) == pytest.approx(tau)


def test_states_laid_out_as_time_is_pass_the_frames_between_and_a_blend_does_not() -> None:
    seen = a_square_that_moves()

    def decode(state: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(seen.pixels[state.round().long().numpy()])

    found = way(seen, (0, 32), lambda rows: rows.float(), decode)
    assert found.order["its state"] == pytest.approx(1.0)
    assert found.passed == {"its state": POINTS, "a blend": 2}
    np.testing.assert_array_equal(found.pictures[0], found.pictures[1])  # the true frames, evenly
    assert sheet(found, 0).shape == (3 * 40, POINTS * 40, 3)
    assert mean_order([found, found])["a blend"]["passed"] == 2

    backwards = way(seen, (0, 32), lambda rows: rows.float(), lambda state: decode(32 - state))
    assert backwards.order["its state"] == pytest.approx(-1.0)


def test_a_stretch_lies_in_the_middle_of_each_episode_that_has_one() -> None:
    episode = np.repeat([3, 5, 8], [60, 6, 20])
    assert ends(episode, 3) == [(9, 49), (66, 85)]
    assert len(ends(np.repeat(np.arange(10), 20), 4)) == 4


def test_a_stamo_draws_the_way(tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    config = load_config("tiny", None, (*SETTINGS, *MICRO, "training.max_steps=1"), sections())
    train("stamo", config, store, tmp_path / "run")
    found = evaluate_states(tmp_path / "run", Store.open(store), "cpu")
    assert set(found.between) == {"its state", "a blend"}
    found.save(tmp_path / "out")
    assert json.loads((tmp_path / "out/state.json").read_text())["between"] == found.between
    assert "Kendall" in (tmp_path / "out/state.md").read_text()
    size = config.section("stamo").image_size
    picture = decode_image((tmp_path / "out/between_0.png").read_bytes(), "png")
    assert picture.shape == (3 * size, POINTS * size, 3)
