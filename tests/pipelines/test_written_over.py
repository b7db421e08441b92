"""A source that is written over while it is read: no record may say that other bytes were read than were."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import IngestSummary, ingest
from pipelines.sources.lerobot.source import OpenLeRobot
from pipelines.sources.libero import OpenLibero
from stores.errors import SourceTrouble
from stores.reader import Store
from tests.pipelines import make_lerobot
from tests.pipelines.make_hdf5 import demo_arrays, make_world, write_file


def libero(folder: Path, changed: bool) -> Path:
    """Pictures in chunks, which are hashed as they lie in the file."""
    path = write_file(folder / "t_demo.hdf5", {f"demo_{n}": demo_arrays(make_world(n)) for n in range(2)}, "do it")
    with h5py.File(path, "r+") as file:
        for demo in ("demo_0", "demo_1"):
            pictures = file[f"data/{demo}/obs/agentview_rgb"][()]
            del file[f"data/{demo}/obs/agentview_rgb"]
            values = 255 - pictures if changed else pictures
            file[f"data/{demo}/obs"].create_dataset("agentview_rgb", data=values, chunks=(1, *values.shape[1:]))
    return path


def lerobot(folder: Path, changed: bool) -> Path:
    root = make_lerobot.write_dataset(folder / "ds")
    if changed:
        frames = np.concatenate([255 - make_lerobot.pictures(episode) for episode in range(4)])
        make_lerobot.write_video(root / make_lerobot.VIDEO, frames)
    return root / make_lerobot.VIDEO


@pytest.mark.parametrize(
    ("make", "opened", "told"),
    [(libero, OpenLibero, {}), (lerobot, OpenLeRobot, {"image_convention": "upright", "alignment": "before"})],
)
def test_the_rerun_is_a_fresh_ingest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, bool], Path],
    opened: Any,
    told: dict[str, str],
) -> None:
    file, other = make(tmp_path / "source", False), make(tmp_path / "other", True)
    source = tmp_path / "source" / "ds" if make is lerobot else tmp_path / "source"
    told_of = opened.fingerprint

    def run(out: str) -> IngestSummary:
        summary = ingest(IngestConfig("toy", source, tmp_path / out, language="hashed", **told), isolated=False)
        assert isinstance(summary, IngestSummary)
        return summary

    def meanwhile(self: Any, demo: str) -> Any:
        """The pictures of the first demonstration are read, their fingerprint is not."""
        monkeypatch.setattr(opened, "fingerprint", told_of)
        os.replace(other, file)
        return told_of(self, demo)

    def over(self: Any, demo: str) -> Any:
        """As `rsync --inplace` writes: the file that is open gets the new content."""
        monkeypatch.setattr(opened, "fingerprint", told_of)
        with file.open("r+b") as handle:
            handle.write(other.read_bytes())
            handle.truncate()
        return told_of(self, demo)

    monkeypatch.setattr(opened, "fingerprint", over if make is libero else meanwhile)
    with pytest.raises(SourceTrouble, match="changed while it was read; run the same command again"):
        run("store")
    assert run("store").units_reused == 0
    run("fresh")
    assert Store.open(tmp_path / "store").content_hash == Store.open(tmp_path / "fresh").content_hash
