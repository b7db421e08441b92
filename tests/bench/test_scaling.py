"""What is said on paper of a store is what a real one is."""

from pathlib import Path

import pytest

from pipelines.bench.scaling import PLANS, bench_scaling, compare, predict
from stores.reader import Store
from tests.stores.make_store import make_tiny_store


@pytest.mark.parametrize(("frames", "image"), [(40, 32), (70, 64)])
def test_a_real_store_is_what_its_plan_says(tmp_path: Path, frames: int, image: int) -> None:
    make_tiny_store(tmp_path / "store", episodes=8, frames=frames, image=image)
    for name, both in compare(Store.open(tmp_path / "store")).items():
        if name in ("frames", "segments"):
            assert both["predicted"] == pytest.approx(both["is"], rel=0.15), name  # episodes differ by some frames
        else:
            assert both["predicted"] == pytest.approx(both["is"], rel=0.1), name


def test_everything_grows_with_the_data_and_what_is_held_does_not() -> None:
    small, large = predict(PLANS["LIBERO-130"]), predict(PLANS["1M episodes"])
    assert large["ram_blocks"] == small["ram_blocks"] < 400e6
    assert large["bytes"] / large["frames"] == pytest.approx(small["bytes"] / small["frames"], rel=0.05)
    assert large["ram_ready"] < 8e9
    assert bench_scaling()["details"].keys() == PLANS.keys()
