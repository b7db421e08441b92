"""What is said on paper of a store is what a real one is."""

import re
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


ROWS = {
    "segments = rows of the index": "segments", "shards (16 episodes each)": "shards", "store": "bytes",
    "objects the manifest names": "objects", "latents (D 256)": "latents_bytes",
    "SigLIP features, float16, two cameras": "features_bytes",
    "decoded pictures (`data.cache=decoded`)": "decoded_bytes",
    "memory of the open store, ready for its first batch": "ram_ready", "memory of the stream's blocks": "ram_blocks",
}  # fmt: skip
UNITS = {"": 1.0, "million": 1e6, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def test_the_page_says_what_is_computed() -> None:
    page = (Path(__file__).parents[2] / "docs/scaling.md").read_text()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    said = {name: dict(zip(PLANS, cells, strict=True)) for name, *cells in table}
    for name, key in ROWS.items():
        for plan, text in said[name].items():
            found = re.fullmatch(r"([\d.,]+) ?(\w*)", text)
            assert found is not None, text
            number = float(found[1].replace(",", "")) * UNITS[found[2]]
            assert number == pytest.approx(predict(PLANS[plan])[key], rel=0.05), (name, plan)
