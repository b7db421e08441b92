"""Where things are, for the probes: read from the recordings behind a store, and only from those."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from cli import app
from pipelines.collect.tabletop import collect_tabletop
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from pipelines.sources.places import named_things, places_of
from statevla.evaluators import probes
from statevla.sims.tabletop.environment import TASKS
from statevla.trainers.trainer import train
from stores.errors import SourceError, UsageError
from stores.reader import Store
from tests.trainers.micro import config_of_all


def make(root: Path, align: str = "after", episodes: int = 24) -> tuple[Path, Store]:
    collect_tabletop(root / "raw", episodes, image_size=32, align=align)  # type: ignore[arg-type]
    config = IngestConfig("tabletop", root / "raw", root / "store", language="hashed", train_split=0.5)
    ingest(config, isolated=False)
    return root / "raw", Store.open(root / "store")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store]:
    return make(tmp_path_factory.mktemp("places"))


def test_things_are_those_whose_whole_name_is_said_in_the_order_of_the_words() -> None:
    free = (
        "basket_1_joint0",
        "alphabet_soup_1_joint0",
        "soup_1_joint0",
        "milk_1_joint0",
        "bowl_1_joint0",
        "bowl_2_joint0",
    )
    said = "Pick up the alphabet soup, and place it in the basket beside the bowl"
    assert named_things(said, free) == ["alphabet_soup_1_joint0", "soup_1_joint0", "basket_1_joint0"]
    assert named_things("milky way", free) == []


@pytest.mark.parametrize("align", ["after", "before"])
def test_places_stand_beside_the_frames_of_the_store(tmp_path: Path, align: str) -> None:
    """Against the states by hand: the world's block and bowl are four free joints in a known order."""
    source, store = make(tmp_path, align, 4)
    read = places_of(store, source)
    joints = ("red block", "green block", "blue bowl", "yellow bowl")
    for episode in range(len(store.episode_columns["id"])):
        file, demo = (str(store.episode_columns[name][episode]) for name in ("source", "demo"))
        with h5py.File(source / file) as opened:
            states = opened["data"][demo]["states"][:]
        things = sorted((j for j in joints if j in TASKS[[t.replace(" ", "_") in file for t in TASKS].index(True)]),
                        key=file.replace("_", " ").index)  # fmt: skip
        found = read(episode)
        seen = states[1:] if align == "after" else states
        for name, thing in zip(("object", "goal"), things, strict=True):
            at = 1 + 9 + 7 * joints.index(thing)
            np.testing.assert_array_equal(found[name][: len(seen)], seen[:, at : at + 3])
            assert np.isnan(found[name][len(seen) :]).all()
        assert np.ptp(found["object"][:-1], axis=0).max() > 0.05  # it is carried
        assert np.ptp(found["goal"][:-1], axis=0).max() == 0  # it stands


def test_another_folder_of_recordings_is_refused(made: tuple[Path, Store], tmp_path: Path) -> None:
    source, store = made
    with pytest.raises(UsageError, match="expected the recording of episode"):
        places_of(store, tmp_path)(0)
    shutil.copytree(source, tmp_path / "raw")
    file, demo = (str(store.episode_columns[name][0]) for name in ("source", "demo"))
    with h5py.File(tmp_path / "raw" / file, "r+") as opened:
        opened["data"][demo]["states"][:, 1:8] += 0.2
    with pytest.raises(UsageError, match=r"another recording than the store was made of: .*got 0\.2"):
        places_of(store, tmp_path / "raw")(0)
    with h5py.File(tmp_path / "raw" / file, "r+") as opened:
        opened["data"][demo].attrs["model_file"] = "<mujoco/>"
    with pytest.raises(SourceError, match=f"{file}/{demo}: model_file: expected an element worldbody"):
        places_of(store, tmp_path / "raw")(0)
    with h5py.File(tmp_path / "raw" / file, "r+") as opened:
        del opened["data"][demo].attrs["model_file"]
    with pytest.raises(UsageError, match=f"{demo}: no model_file"):
        places_of(store, tmp_path / "raw")(0)


def test_probes_of_places_by_the_command_see_every_task(
    made: tuple[Path, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--frames` smaller than the split: the frames still come from all of it, not from its first task."""
    seen: list[set[int]] = []
    told = probes.tell_instruction

    def watch(fitted: probes.Frames, test: probes.Frames) -> tuple[float, float]:
        seen.append(set(fitted.task.tolist()))
        return told(fitted, test)

    monkeypatch.setattr(probes, "tell_instruction", watch)
    source, store = made
    assert CliRunner().invoke(app, ["stats", "--store", str(store.root)]).exit_code == 0
    config = config_of_all("training.max_steps=1", f"data.store={store.root}")
    train("temporal_jepa", config, Path(str(store.root)), tmp_path / "run")
    command = ["eval", "probes", "--checkpoint", str(tmp_path / "run"), "--device", "cpu", "--frames", "100", "--json"]
    result = CliRunner().invoke(app, [*command, "--source", str(source), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found["probes"]) == {"robot_state", "action", "progress", "object", "goal"}
    assert (found["probes"]["object"]["width"], found["probes"]["goal"]["within"]) == (3, 0)
    assert found["frames"]["train"] < len(store.segment_columns["steps"]) * 16 / 2
    (fitted,) = seen
    assert len(fitted) >= 3, "store order is task by task: the first frames of the split are of one"
