"""A store as a LeRobot dataset and back: the same numbers, tasks and split; pictures within the codec's tolerance."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("av")

from cli import main
from pipelines.export.lerobot import export_lerobot
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from pipelines.sources.lerobot.videos import video_facts
from stores.disk.seam import Operation, set_hook
from stores.errors import StoreMissing, UsageError
from stores.reader import Store
from tests.pipelines.make_hdf5 import write_suite
from tests.stores.make_store import make_tiny_store

DECIBELS = 40.0
"""Least peak signal-to-noise ratio of a lossy picture against the store's, as docs/sources.md states it."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of LIBERO's layout, observations after their actions: the last frame of an episode has no action."""
    folder = tmp_path_factory.mktemp("export")
    write_suite(folder / "raw")
    ingest(IngestConfig("cups", folder / "raw", folder / "store", language="hashed", train_split=0.5), isolated=False)
    return folder


def back(dataset: Path, out: Path) -> Store:
    summary = ingest(IngestConfig("cups", dataset, out, codec="png", language="hashed"), isolated=False)
    assert (summary.quarantined, [note for note in summary.notes if "splits" not in note]) == (0, [])
    return Store.open(out)


def pictures(store: Store, episode: int) -> list[np.ndarray]:
    columns = store.episode_columns
    first, count = int(columns["first_segment"][episode]), int(columns["segments"][episode])
    shown = [store.decode_segment(number) for number in range(first, first + count)]
    steps = store.segment_columns["steps"][first : first + count]
    parts = [[camera[: None if at == count - 1 else steps[at]] for camera in cut] for at, cut in enumerate(shown)]
    return [np.concatenate([part[camera] for part in parts]) for camera in range(len(store.spec.cameras))]


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean(np.square(one.astype(float) - other.astype(float)))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("lossless", [False, True])
def test_there_and_back_is_the_same_but_for_the_codec(root: Path, tmp_path: Path, lossless: bool) -> None:
    exported = export_lerobot(root / "store", tmp_path / "cups", lossless)
    before, after = Store.open(root / "store"), back(tmp_path / "cups", tmp_path / "store")
    assert (exported.episodes, exported.frames) == (len(before.episodes), before.manifest.counts["frames"])
    assert after.spec == before.spec
    held = before.episode_columns["split"] != "train"
    assert exported.splits == {"train": f"0:{(~held).sum()}", "val": f"{(~held).sum()}:{len(held)}"}
    for new, old in enumerate(np.argsort(held, kind="stable").tolist()):
        for name in ("task", "instruction", "split", "frames", "steps"):
            assert after.episode_columns[name][new] == before.episode_columns[name][old], name
        there, here = (int(s.episode_columns["first_frame"][e]) for s, e in ((before, old), (after, new)))
        frames, steps = (int(before.episode_columns[name][old]) for name in ("frames", "steps"))
        assert steps == frames - 1
        for name, rows in (("robot_state", frames), ("action", steps)):
            wanted, came = before.frames[name][there : there + rows], after.frames[name][here : here + rows]
            assert wanted.tobytes() == came.tobytes()
        for wanted, came in zip(pictures(before, old), pictures(after, new), strict=True):
            least = min(decibels(a, b) for a, b in zip(wanted, came, strict=True))
            assert least == float("inf") if lossless else least >= DECIBELS


def test_the_dataset_says_what_it_holds(root: Path, tmp_path: Path) -> None:
    export_lerobot(root / "store", tmp_path / "cups")
    store = Store.open(root / "store")
    info = json.loads((tmp_path / "cups/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_tasks"]) == ("v3.0", 20, 2)
    assert info["features"]["action"]["names"] == list(store.spec.action_names)
    assert info["features"]["observation.images.agentview"]["shape"] == [*store.spec.image_sizes[0], 3]
    rows = pq.read_table(tmp_path / "cups/data/chunk-000/file-000.parquet")
    assert pq.ParquetFile(tmp_path / "cups/data/chunk-000/file-000.parquet").num_row_groups == info["total_episodes"]
    told = json.loads((tmp_path / "cups/meta/stats.json").read_text())["action"]
    action = np.stack(rows["action"].to_pylist())
    np.testing.assert_allclose(told["mean"], action.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(told["std"], action.std(axis=0), atol=1e-6)
    assert told["count"] == [len(action)]
    table = pq.read_table(tmp_path / "cups/meta/episodes/chunk-000/file-000.parquet")
    last = [stop - 1 for stop in table["dataset_to_index"].to_pylist()]
    np.testing.assert_array_equal(action[last], action[[row - 1 for row in last]])  # repeated, as statevla/steps says
    pandas = json.loads(pq.read_schema(tmp_path / "cups/meta/tasks.parquet").metadata[b"pandas"])
    assert pandas["index_columns"] == ["task"]


def test_files_end_at_an_episode_once_they_are_large(root: Path, tmp_path: Path) -> None:
    export_lerobot(root / "store", tmp_path / "cups", data_bytes=3000, video_bytes=500)
    data = sorted((tmp_path / "cups/data").rglob("*.parquet"))
    films = sorted((tmp_path / "cups/videos/observation.images.agentview").rglob("*.mp4"))
    assert len(data) > 1
    assert len(films) > 1
    frames = [video_facts(tmp_path / "cups", path.relative_to(tmp_path / "cups").as_posix(), "")[0] for path in films]
    assert sum(frames) == Store.open(root / "store").manifest.counts["frames"]
    assert len(back(tmp_path / "cups", tmp_path / "store").episodes) == 4


def test_the_same_store_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_lerobot(root / "store", tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_what_no_export_wrote_is_left_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("all of it")
    with pytest.raises(UsageError, match=r"mine: expected an empty folder or none; it holds something"):
        export_lerobot(root / "store", tmp_path / "mine", replace=True)
    assert (tmp_path / "mine/thesis.tex").read_text() == "all of it"
    with pytest.raises(UsageError, match="expected a folder, or none yet, got a file"):
        export_lerobot(root / "store", tmp_path / "mine/thesis.tex")


def test_an_export_of_another_store_goes_only_when_told(root: Path, tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "tiny", 2, 20)
    for _ in range(2):  # of the same store: made anew
        export_lerobot(tmp_path / "tiny", tmp_path / "out")
    with pytest.raises(UsageError, match="holds an export of another store; replace it with --replace"):
        export_lerobot(root / "store", tmp_path / "out")
    assert export_lerobot(root / "store", tmp_path / "out", replace=True).tasks == 2


def all_of(folder: Path) -> dict[str, bytes | str]:
    return {str(p): p.read_bytes() if p.is_file() else "" for p in folder.rglob("*")}


@pytest.mark.parametrize(
    "name",
    ["README.md", ".git/HEAD", ".git/refs/", "data/chunk-000/file-001.parquet", "meta/notes.txt", "meta/info.json"],
)
@pytest.mark.parametrize("replace", [False, True])
def test_what_somebody_added_to_an_export_is_not_lost(root: Path, tmp_path: Path, name: str, replace: bool) -> None:
    export_lerobot(root / "store", tmp_path / "out")
    added = tmp_path / "out" / name
    if name.endswith("/"):
        added.mkdir(parents=True)
    else:
        added.parent.mkdir(exist_ok=True)
        added.write_text("mine")
    before = all_of(tmp_path)
    with pytest.raises(UsageError, match="not as an export has written them, so they are not removed"):
        export_lerobot(root / "store", tmp_path / "out", replace=replace)
    assert all_of(tmp_path) == before


def test_what_is_added_while_an_export_runs_is_not_lost(root: Path, tmp_path: Path) -> None:
    export_lerobot(root / "store", tmp_path / "out")
    mine = tmp_path / "out" / "README.md"
    with pytest.raises(UsageError, match=r"README\.md"):
        export_lerobot(root / "store", tmp_path / "out", progress=lambda event: mine.write_text("mine") and None)
    assert mine.read_text() == "mine"


def test_an_export_that_lists_no_files_is_left_alone(root: Path, tmp_path: Path) -> None:
    export_lerobot(root / "store", tmp_path / "out")
    own = tmp_path / "out/meta/statevla.json"
    told = json.loads(own.read_text())
    own.write_text(json.dumps({name: told[name] for name in ("format", "obs_spec", "content_hash")}))
    assert len(back(tmp_path / "out", tmp_path / "store").episodes) == 4
    with pytest.raises(UsageError, match="do not list their files"):
        export_lerobot(root / "store", tmp_path / "out", replace=True)


def test_no_dataset_goes_into_a_store(root: Path) -> None:
    with pytest.raises(UsageError, match=r"lies in the store .*; choose a folder outside"):
        export_lerobot(root / "store", root / "store/features/lerobot")
    assert not (root / "store/features").exists()


def test_a_link_to_a_folder_stays_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to("large")
    for _ in range(2):
        export_lerobot(root / "store", tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "large/meta/info.json").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines.export.lerobot import export_lerobot
from stores.disk.seam import set_hook
store, out = map(Path, sys.argv[1:])
set_hook(lambda done: os.kill(os.getpid(), signal.SIGKILL) if (done.kind, done.target) == ("rename", out) else None)
export_lerobot(store, out)
"""
"""A process of its own: a fork would inherit threads of libraries that it has no use for."""


def test_a_killed_export_leaves_nothing_that_looks_complete(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(root / "store"), str(tmp_path / "cups")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "cups").exists()
    assert [path.name.startswith(".tmp-") for path in tmp_path.iterdir()] == [True]
    with pytest.raises(UsageError):
        ingest(IngestConfig("lerobot", tmp_path, tmp_path / "s", language="hashed"), isolated=False)


def test_an_export_that_fails_leaves_the_one_before(root: Path, tmp_path: Path) -> None:
    export_lerobot(root / "store", tmp_path / "cups")
    before = (tmp_path / "cups/meta/info.json").read_bytes()

    def fail(operation: Operation) -> None:
        if operation.path.name == "info.json" or operation.path.name.endswith("-info.json"):
            raise OSError(28, "No space left on device")

    set_hook(fail)
    try:
        with pytest.raises(OSError, match="No space"):
            export_lerobot(root / "store", tmp_path / "cups", lossless=True)
    finally:
        set_hook(None)
    assert (tmp_path / "cups/meta/info.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["cups"]


def test_a_store_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing):
        export_lerobot(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_one_object(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["statevla", "export", "lerobot", str(root / "store"), str(tmp_path / "c"), "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)["episodes"] == 4
