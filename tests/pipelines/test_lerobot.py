"""LeRobot datasets as a source: what is read bit for bit, what is kept of a dataset's split, every fault by name."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("av")

from cli import main
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from pipelines.sources.fields import Fields
from pipelines.sources.lerobot import videos
from stores.errors import SourceError, SourceTrouble, UsageError
from stores.reader import Store
from stores.verify import verify_store
from tests.pipelines.make_lerobot import (
    DATA,
    EPISODES,
    FPS,
    SIZE,
    TASKS,
    TOP,
    VIDEO,
    edit_json,
    edit_table,
    lengths,
    numbers,
    pictures,
    png,
    write_dataset,
    write_video,
)

INFO = "meta/info.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("lerobot") / "cloths")


@pytest.fixture
def dataset(sound: Path, tmp_path: Path) -> Path:
    """A copy, to be spoiled."""
    return shutil.copytree(sound, tmp_path / "cloths")


def config(root: Path, **options: object) -> IngestConfig:
    return IngestConfig("lerobot", root, root.parent / "store", codec="png", language="hashed", **options)  # type: ignore[arg-type]


def run(root: Path, **options: object):  # type: ignore[no-untyped-def]
    return ingest(config(root, **options), isolated=False)


def test_rows_pictures_tasks_and_rate_are_the_datasets_own(dataset: Path) -> None:
    summary = ingest(config(dataset))  # in the child, as the command does
    assert (summary.episodes, summary.quarantined) == (4, 0)
    store = Store.open(dataset.parent / "store")
    assert verify_store(dataset.parent / "store") == []
    spec = store.spec
    assert (spec.camera_names, spec.image_sizes, spec.control_hz) == (("top", "image"), (SIZE, SIZE), FPS)
    assert spec.state_names == ("pan_pos", "lift_pos", "roll_pos")
    assert spec.action_names == ("left", "right")
    columns = store.episode_columns
    assert columns["id"].tolist() == [f"cloths/episode_{number:06d}" for number in range(4)]
    assert columns["instruction"].tolist() == [TASKS[number % 2] for number in range(4)]
    assert columns["frames"].tolist() == columns["steps"].tolist() == lengths(4)
    for episode, first in enumerate(columns["first_frame"].tolist()):
        state, action = numbers(episode)
        np.testing.assert_array_equal(store.frames["robot_state"][first : first + len(state)], state)
        np.testing.assert_array_equal(store.frames["action"][first : first + len(state)], action)
        top, wrist = store.decode_segment(int(columns["first_segment"][episode]))
        np.testing.assert_array_equal(top, pictures(episode))
        np.testing.assert_array_equal(wrist, pictures(episode)[:, ::-1])
    assert ingest(config(dataset), dry_run=True).to_dict()["bytes"] > 0
    assert "av" in store.manifest.provenance["libraries"]
    again = ingest(config(dataset))
    assert (again.changed, again.units_reused) == (False, 1)


def test_nothing_shows_the_alignment_which_is_said_and_a_flag_says_otherwise(dataset: Path) -> None:
    assert any("--alignment after" in note for note in run(dataset).notes)
    summary = run(dataset, alignment="after")
    store = Store.open(dataset.parent / "store")
    assert not any("--alignment" in note for note in summary.notes)
    assert store.episode_columns["steps"].tolist() == [length - 1 for length in lengths(4)]
    np.testing.assert_array_equal(store.frames["action"][:5], numbers(0)[1][1:])


@pytest.mark.parametrize(("splits", "kept"), [({"train": "0:3", "test": "3:4"}, "train train train val"), ({}, "")])
def test_the_datasets_own_held_out_split_is_kept(dataset: Path, splits: dict[str, str], kept: str) -> None:
    edit_json(dataset / INFO, lambda info: info.update(splits=splits))
    summary = run(dataset, train_split=0.5)
    found = Store.open(dataset.parent / "store").episode_columns["split"].tolist()
    assert found == kept.split() if kept else sorted(found) == ["train", "train", "val", "val"]
    assert any("splits train 0:3, test 3:4 are kept" in note for note in summary.notes) is bool(kept)
    summary = run(dataset, train_split=0.5, masks="ignore")
    assert sorted(Store.open(dataset.parent / "store").episode_columns["split"]) == ["train", "train", "val", "val"]


def test_an_episode_in_no_split_is_left_out_and_named(dataset: Path) -> None:
    edit_json(dataset / INFO, lambda info: info.update(splits={"train": "0:2", "val": "2:3"}))
    summary = run(dataset)
    assert summary.episodes == 3
    assert any("episode_000003 left out: in no split" in note for note in summary.notes)


def test_pictures_that_nothing_turns_round_cannot_be_said_to_be_turned(dataset: Path) -> None:
    with pytest.raises(UsageError, match=r"--image-convention opengl: of format lerobot .* leave --image-convention"):
        run(dataset, image_convention="opengl")


def test_a_spec_file_picks_entries_and_says_kinds(dataset: Path, tmp_path: Path) -> None:
    fields = Fields.from_dict(
        {
            "cameras": {"front": "top"},
            "robot_state": {"arm": {"key": "state", "unit": "rad"}},
            "action": [{"name": "both", "width": 2, "kind": "continuous", "unit": "rad"}],
            "instruction": "do the laundry",
        }
    )
    summary = run(dataset, fields=fields)
    store = Store.open(dataset.parent / "store")
    assert (store.spec.camera_names, store.spec.robot_state[0].unit) == (("front",), "rad")
    assert set(store.episode_columns["instruction"]) == {"do the laundry"}
    assert any("features observation.image are not used" in note for note in summary.notes)
    with pytest.raises(SourceError, match=r"cameras 'rear': expected one of observation.image, observation.images.top"):
        run(dataset, fields=Fields.from_dict({"cameras": {"rear": "rear"}}))
    with pytest.raises(SourceError, match=r"--spec, action: 3 numbers, the dataset's action has 2"):
        run(dataset, fields=Fields.from_dict({"action": [{"name": "a", "width": 3, "kind": "continuous"}]}))


EPISODE_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "wrong from": (
        lambda root: edit_table(root / EPISODES, "dataset_from_index", 1, 5),
        r"cloths/episode_000001: dataset_from_index 5 to dataset_to_index 13, but its rows in data/\S+ are 6 to 13",
    ),
    "wrong to": (
        lambda root: edit_table(root / EPISODES, "dataset_to_index", 1, 14),
        r"episode_000001: dataset_from_index 6 to dataset_to_index 14, but its rows in data/\S+ are 6 to 13",
    ),
    "wrong length": (
        lambda root: edit_table(root / EPISODES, "length", 1, 8),
        r"episode_000001: length says 8 rows, data/\S+ has 7 of it",
    ),
    "wrong file": (
        lambda root: (
            shutil.copy(root / DATA, root / "data/chunk-000/file-001.parquet"),
            pq.write_table(pq.read_table(root / DATA).slice(0, 6), root / "data/chunk-000/file-001.parquet"),
            edit_table(root / EPISODES, "data/file_index", 1, 1),
        ),
        r"episode_000001: data/chunk-000/file-001.parquet: expected its rows together, got no pieces",
    ),
    "a row of another episode": (
        lambda root: edit_table(root / DATA, "episode_index", 9, 3),
        r"episode_000001: data/\S+: expected its rows together, got 2 pieces",
    ),
    "a wrong frame_index": (
        lambda root: edit_table(root / DATA, "frame_index", 9, 4),
        r"episode_000001: data/\S+, row 3 of it: frame_index 4, expected 3",
    ),
    "a late timestamp": (
        lambda root: edit_table(root / DATA, "timestamp", 9, 0.35),
        r"episode_000001: data/\S+, row 3 of it: timestamp 0.35 s, expected 0.3 s at 10 frames a second",
    ),
    "two tasks in an episode": (
        lambda root: edit_table(root / EPISODES, "tasks", 1, list(TASKS)),
        r"episode_000001: 2 tasks in one episode \(fold the cloth, hang the cloth up\), expected one",
    ),
    "another task in its rows": (
        lambda root: edit_table(root / EPISODES, "tasks", 1, [TASKS[0]]),
        r"episode_000001: its rows have task_index 1, 'hang the cloth up'; its tasks are \['fold the cloth'\]",
    ),
    "a clip too short for its rows": (
        lambda root: edit_table(root / EPISODES, f"videos/{TOP}/to_timestamp", 1, 1.1),
        rf"episode_000001: {VIDEO}: from_timestamp 0.6000 to to_timestamp 1.1000 are 5.0 frames at 10 a second, length "
        r"says 7 rows",
    ),
    "a clip between frames": (
        lambda root: (
            edit_table(root / EPISODES, f"videos/{TOP}/from_timestamp", 3, 2.14),
            edit_table(root / EPISODES, f"videos/{TOP}/to_timestamp", 3, 3.04),
        ),
        r"episode_000003: \S+: row 0 of episode_000003: expected its frame 0.0000 s after from_timestamp 2.1400, got "
        r"one at 0.0600 s: frames are out of step",
    ),
    "a picture of another size": (
        lambda root: edit_table(
            root / DATA, "observation.image", 9, {"bytes": png(np.zeros((8, 8, 3), np.uint8)), "path": None}
        ),
        r"episode_000001: data/\S+, observation.image, row 6: expected \(24, 32\), got \(8, 8\) pixels",
    ),
    "a picture that is none": (
        lambda root: edit_table(root / DATA, "observation.image", 9, {"bytes": b"no", "path": None}),
        r"episode_000001: .*2 bytes are no PNG or JPEG",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", EPISODE_FAULTS)
def test_a_fault_of_one_episode_costs_that_episode_and_is_named(dataset: Path, fault: str) -> None:
    spoil, reason = EPISODE_FAULTS[fault]
    spoil(dataset)
    summary = run(dataset)
    assert summary.quarantined >= 1
    assert pytest.raises(AssertionError, match=reason).matches(AssertionError(summary.quarantine[0]["reason"]))
    assert summary.episodes + summary.quarantined == 4
    assert verify_store(dataset.parent / "store") == []


@pytest.mark.parametrize(("number", "frames", "first", "second"), [
    (1, -2, "episode_000000: .* 0.6000 ends after episode 1 begins, at 0.4000",
     "episode_000001: .*from_timestamp 0.4000 to to_timestamp 1.1000 begins before episode 0 ends, at 0.6000"),
    (2, 1, "episode_000002: .*from_timestamp 1.4000 to to_timestamp 2.2000 ends after episode 3 begins, at 2.1000",
     "episode_000003: .* begins before episode 2 ends, at 2.2000"),
])  # fmt: skip
def test_of_two_clips_that_share_frames_neither_is_believed(
    dataset: Path, number: int, frames: int, first: str, second: str
) -> None:
    """The one that was moved shows another episode's pictures, and nothing says which one that is."""
    for end in ("from", "to"):
        column = f"videos/{TOP}/{end}_timestamp"
        edit_table(dataset / EPISODES, column, number, pq.read_table(dataset / EPISODES)[column][number].as_py() +
                   frames / FPS)  # fmt: skip
    summary = run(dataset)
    assert (summary.episodes, summary.quarantined) == (2, 2)
    for row, reason in zip(summary.quarantine, (first, second), strict=True):
        assert re.search(reason, row["reason"])


def test_a_clip_of_the_wrong_length_costs_no_other_episode(dataset: Path) -> None:
    edit_table(dataset / EPISODES, f"videos/{TOP}/to_timestamp", 0, 3.0)
    assert [row["demo"] for row in run(dataset).quarantine] == ["episode_000000"]


def test_a_video_with_too_few_frames_costs_the_episodes_that_need_them(dataset: Path) -> None:
    write_video(dataset / VIDEO, np.concatenate([pictures(episode) for episode in range(4)])[:-2])
    summary = run(dataset)
    assert [row["demo"] for row in summary.quarantine] == ["episode_000003"]
    assert f"{VIDEO}: from_timestamp 2.1000 to to_timestamp 3.0000 needs 30 frames, it has 28" in str(
        summary.quarantine
    )


@pytest.mark.parametrize(
    ("fps", "step", "reason"), [(5, 1, "5 frames a second, meta/info.json says 10"), (10, 2, "pictures of (12, 16)")]
)
def test_a_video_of_another_rate_or_size_is_of_no_use(dataset: Path, fps: float, step: int, reason: str) -> None:
    frames = np.concatenate([pictures(episode) for episode in range(4)])[:, ::step, ::step]
    write_video(dataset / VIDEO, frames, fps)
    with pytest.raises(SourceError) as error:
        run(dataset)
    assert reason in str(error.value)


def test_a_damaged_video_is_content_and_quarantined(dataset: Path) -> None:
    whole = (dataset / VIDEO).read_bytes()
    (dataset / VIDEO).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=rf"{VIDEO}: cannot be read"):
        run(dataset)


@pytest.mark.parametrize("name", [VIDEO, DATA, "meta/tasks.parquet", EPISODES])
def test_what_is_absent_stops_the_run_and_quarantines_nothing(dataset: Path, name: str) -> None:
    (dataset / name).unlink()
    with pytest.raises(SourceTrouble, match=r"no such file|no tables of episodes") as error:
        run(dataset)
    assert Path(name).name in str(error.value) or "meta/episodes" in str(error.value)
    assert "fetch the whole dataset" in str(error.value)
    assert not (dataset.parent / "store/manifest.json").exists()


def test_a_missing_video_names_the_episode_that_needs_it(dataset: Path) -> None:
    (dataset / VIDEO).unlink()
    with pytest.raises(SourceTrouble, match=rf"cloths: {VIDEO}: no such file, which episode_000000 needs"):
        run(dataset)


def test_a_dangling_link_and_a_pointer_are_the_surroundings(dataset: Path) -> None:
    (dataset / VIDEO).unlink()
    (dataset / VIDEO).symlink_to(dataset / "blobs/none")
    with pytest.raises(SourceTrouble, match="no such file"):
        run(dataset)
    (dataset / VIDEO).unlink()
    (dataset / VIDEO).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(SourceTrouble, match="Git LFS pointer"):
        run(dataset)


def test_a_damaged_file_of_rows_or_no_json_is_content(dataset: Path) -> None:
    (dataset / DATA).write_bytes(b"PAR1 no more")
    with pytest.raises(SourceError, match=rf"{DATA}: cannot be read"):
        run(dataset)
    (dataset / INFO).write_text("{")
    with pytest.raises(SourceError, match=r"meta/info.json: expected JSON"):
        run(dataset)


def test_a_folder_of_datasets_is_read_as_several_sources(sound: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(sound, tmp_path / "all" / name)
    summary = ingest(IngestConfig("cloth", tmp_path / "all", tmp_path / "store", language="hashed"), isolated=False)
    assert (summary.episodes, summary.quarantined) == (8, 0)
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    assert [source["file"] for source in manifest["sources"]] == ["one", "two"]
    assert any("are the same episode" in note for note in summary.notes)


def test_a_folder_without_a_dataset_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a dataset of format lerobot .* got none"):
        run(tmp_path)


def test_hashing_sources_covers_every_file_of_the_dataset(dataset: Path) -> None:
    found = set()
    for _ in range(2):
        run(dataset, hash_sources=True)
        found.add(json.loads((dataset.parent / "store/manifest.json").read_text())["sources"][0]["sha256"])
        edit_json(dataset / "meta/stats.json", lambda told: told.update(more={}))
    assert len(found) == 2


def test_without_pyav_one_line_says_what_to_install(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install 'statevla\[lerobot\]'"):
        videos.pyav()


def test_the_command_ends_with_the_right_status(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_table(dataset / EPISODES, "length", 1, 8)
    command = ["statevla", "ingest", "lerobot", "--source", str(dataset), "--out", str(dataset.parent / "store"),
               "--language", "hashed"]  # fmt: skip
    for version, status in (("v3.0", 3), ("v2.1", 1)):
        edit_json(dataset / INFO, lambda info, version=version: info.update(codebase_version=version))
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == status
    assert "error: " in capsys.readouterr().err
