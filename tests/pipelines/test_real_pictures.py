"""Real LIBERO frames come out of a store as a person sees the scene.

The two fixtures are thumbnails of the first frame of a demonstration, looked at once: in `agentview` the robot stands
at the top in front of the wall and the basket is on the right; in `eye_in_hand` the fingers are at the bottom.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from stores.reader import Store
from stores.spec import LIBERO

DEMOS = Path(__file__).parents[2].parent / "shared" / "libero" / "demos"
FILE = "pick_up_the_milk_and_place_it_in_the_basket_demo.hdf5"
FIXTURES = Path(__file__).parents[1] / "fixtures"

pytestmark = pytest.mark.skipif(
    not (DEMOS / FILE).is_file(), reason="no LIBERO demonstrations in ../shared/libero/demos"
)


def thumbnail(image):
    return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BOX), np.float64)


def test_first_frame_is_upright_and_not_mirrored(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / FILE).symlink_to(DEMOS / FILE)
    out = tmp_path / "store"
    ingest(IngestConfig(suite="libero_object", source=source, out=out, language="hashed"))
    store = Store.open(out)
    first = store.read_segment(0)
    images = [frames[0] for frames in store.decode_segment(0)]
    assert first.meta["first_step"] == 0
    for camera, image in zip(LIBERO.camera_names, images, strict=True):
        seen = np.asarray(Image.open(FIXTURES / f"libero_milk_{camera}_upright.png"), np.float64)
        right = np.abs(thumbnail(image) - seen).mean()
        wrong = [np.abs(thumbnail(turned) - seen).mean() for turned in (image[::-1], image[:, ::-1], image[::-1, ::-1])]
        assert right < 2, camera
        assert min(wrong) > 5 * right, camera
