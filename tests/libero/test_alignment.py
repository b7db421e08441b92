"""The same demonstration, recorded after and before the action, is the same episode once ingested."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.collect.libero import collect_libero
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from stores.reader import Store

pytestmark = pytest.mark.libero

BUTTER = 6


def ingested(folder: Path, align: str) -> Store:
    raw, out = folder / f"raw-{align}", folder / f"store-{align}"
    collect_libero("libero_object", raw, tasks=[BUTTER], episodes=1, first_init=31, align=align)  # type: ignore[arg-type]
    ingest(IngestConfig(suite="libero_object", source=raw, out=out, language="hashed", codec="png"))
    return Store.open(out)


def test_both_alignments_give_the_same_transitions(simulator_installed: None, tmp_path: Path) -> None:
    after, before = ingested(tmp_path, "after"), ingested(tmp_path, "before")
    assert after.episode_columns["alignment"][0] == "after"
    assert before.episode_columns["alignment"][0] == "before"
    frames = len(after.frames["robot_state"])
    assert len(before.frames["robot_state"]) == frames
    # The file recorded after has no observation before its first action, the one recorded before none after its last:
    # what is frame t in one is frame t + 1 in the other.
    np.testing.assert_array_equal(after.frames["robot_state"][:-1], before.frames["robot_state"][1:])
    np.testing.assert_array_equal(after.frames["action"][:-1], before.frames["action"][1:])
    assert np.isnan(after.frames["action"][-1]).all()
    mine, theirs = (np.stack(store.decode_segment(0), axis=1) for store in (after, before))
    np.testing.assert_array_equal(mine[:-1], theirs[1:])
