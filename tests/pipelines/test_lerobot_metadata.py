"""What ``meta/`` of a LeRobot dataset may have wrong: statistics, counts, missing tables, odd types, odd texts."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("av")

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from pipelines.sources.fields import Fields
from stores.errors import SourceError, SourceTrouble
from tests.pipelines.make_lerobot import DATA, EPISODES, TOP, WRIST, edit_json, edit_table, write_dataset
from tests.pipelines.test_lerobot import INFO, config, run
from tests.stores.faults import read_tree


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("lerobot") / "cloths")


@pytest.fixture
def dataset(sound: Path, tmp_path: Path) -> Path:
    """A copy, to be spoiled."""
    return shutil.copytree(sound, tmp_path / "cloths")


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda told: told["action"]["mean"].__setitem__(1, 9.0), r"action, mean of dimension 1 \(right\): it says 9"),
        (lambda told: told["observation.state"]["max"].__setitem__(0, 0.5), r"observation.state, max of dimension 0"),
        (lambda told: told["action"].update(count=[7]), r"action, count: it says 7, the data have 30 rows"),
        (lambda told: told.pop("action"), r"stats.json says nothing of action"),
        (lambda told: told["action"].update(std=["x", "y"]), r"action, std: expected numbers"),
        (lambda told: told["action"].update(count="abc"), r"action, count: expected a number, got 'abc'"),
        (lambda told: told["action"].update(count=None), r"action, count: it says nan, the data have 30 rows"),
        (lambda told: told["action"].update(count=float("nan")), r"action, count: it says nan"),
        (lambda told: told["action"].update(count=[[30], [30, 3]]), r"action, count: expected a number, got \[\[30\]"),
    ],
)  # fmt: skip
def test_statistics_that_disagree_with_the_data_are_named(
    dataset: Path, change: Callable[[dict[str, object]], object], note: str
) -> None:
    edit_json(dataset / "meta/stats.json", lambda told: change(told) and None)
    summary = run(dataset)
    assert summary.quarantined == 0
    assert any(pytest.raises(AssertionError, match=note).matches(AssertionError(text)) for text in summary.notes)


def test_a_dataset_without_statistics_is_ingested(dataset: Path) -> None:
    (dataset / "meta/stats.json").unlink()
    summary = run(dataset)
    assert (summary.episodes, summary.quarantined) == (4, 0)
    assert any("meta/stats.json is missing; statistics are made by `statevla stats`" in text for text in summary.notes)


def test_counts_that_the_tables_contradict_are_named(dataset: Path) -> None:
    edit_json(dataset / INFO, lambda info: info.update(total_episodes=3, total_frames=31))
    notes = run(dataset).notes
    assert any("total_episodes declares 3, meta/episodes has 4" in note for note in notes)
    assert any("total_frames declares 31, meta/episodes has 30" in note for note in notes)


def split_episodes(root: Path, *parts: int) -> None:
    """The table of episodes in several files, from these rows on."""
    table = pq.read_table(root / EPISODES)
    for number, (first, end) in enumerate(itertools.pairwise((*parts, len(table)))):
        pq.write_table(table.slice(first, end - first), root / f"meta/episodes/chunk-000/file-{number:03d}.parquet")


@pytest.mark.parametrize(
    ("gone", "declared", "said"),
    [
        (2, 4, r"episodes 3 of the 4 that \S+, total_episodes, declares are missing; fetch the whole"),
        (1, 4, r"episodes 1, 2 of the 4 .* are missing \(meta/episodes/chunk-000/file-001.parquet\); fetch the whole"),
        (1, None, r"episodes 1, 2 of the 4 .* are missing \(meta/episodes/chunk-000/file-001.parquet\)"),
    ],
)
def test_a_missing_table_of_episodes_leaves_the_store_as_it_was(
    dataset: Path, gone: int, declared: int | None, said: str
) -> None:
    split_episodes(dataset, 0, 1, 3)
    assert run(dataset).episodes == 4
    before = read_tree(dataset.parent / "store")
    (dataset / f"meta/episodes/chunk-000/file-{gone:03d}.parquet").unlink()
    edit_json(dataset / INFO, lambda info: info.update(total_episodes=declared))
    with pytest.raises(SourceTrouble, match=f"cloths: meta/episodes: {said}"):
        ingest(config(dataset))  # in the child
    assert read_tree(dataset.parent / "store") == before
    edit_json(dataset / INFO, lambda info: info.update(total_episodes=10**12))
    with pytest.raises(SourceTrouble, match=r"and 9999999999\d\d more"):
        run(dataset)


def test_tables_of_episodes_by_several_writers_are_one(dataset: Path) -> None:
    split_episodes(dataset, 0, 2)
    path = dataset / "meta/episodes/chunk-000/file-001.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("length")
    table = table.set_column(at, "length", table["length"].cast(pa.int32()))
    tasks = table["tasks"].cast(pa.large_list(pa.large_string()))
    pq.write_table(table.set_column(table.schema.get_field_index("tasks"), "tasks", tasks), path)
    assert (run(dataset).episodes, run(dataset).quarantined) == (4, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"codebase_version": "v2.1"}, r"convert it in place: python -m lerobot\S+ .* --push-to-hub=false"),
        ({"codebase_version": "v2.0"}, r"codebase_version v2.0, expected v3.0; convert it with lerobot"),
        ({"fps": 0}, r"fps: expected a number above 0, got 0"),
        ({"features": {}}, r"features: expected an object"),
        ({"splits": {"train": "all"}}, r"splits, train: expected a range of episodes as 'first:end', got 'all'"),
        ({"data_path": None}, r"data_path: expected a path, got None"),
        ({"data_path": ""}, r"data_path: expected a path, got ''"),
        ({"video_path": None}, r"video_path: expected a path, got None"),
        ({"data_path": "../{file_index}.parquet"}, r"data_path: expected a path below the dataset"),
        ({"video_path": "{video_key.__class__}"}, r"video_path: expected chunk_index, file_index, video_key"),
    ],
)  # fmt: skip
def test_info_that_cannot_be_used_is_one_line(dataset: Path, change: dict[str, object], reason: str) -> None:
    edit_json(dataset / INFO, lambda info: info.update(change))
    with pytest.raises(SourceError, match=reason) as error:
        run(dataset)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("feature", "reason"),
    [
        ({"info": [1]}, r"observation.images.top, info: expected an object, got \[1\]"),
        ({"video_info": "abc"}, r"observation.images.top, video_info: expected an object, got 'abc'"),
        ({"shape": [5000, 32, 3]}, r"camera top: expected sides of 1 to 4096"),
    ],
)
def test_a_dataset_of_no_use_costs_no_other(
    sound: Path, tmp_path: Path, feature: dict[str, object], reason: str
) -> None:
    for name in ("good", "bad"):
        shutil.copytree(sound, tmp_path / "all" / name)
    edit_json(tmp_path / "all/bad" / INFO, lambda info: info["features"][TOP].update(feature))
    summary = ingest(IngestConfig("lerobot", tmp_path / "all", tmp_path / "store", codec="png", language="hashed"))
    assert summary.episodes == 4
    (row,) = summary.quarantine
    assert row["file"] == "bad"
    assert pytest.raises(AssertionError, match=reason).matches(AssertionError(row["reason"]))


@pytest.mark.parametrize("key", [WRIST, "observation.state"])
def test_a_feature_that_the_rows_have_not_is_one_line(dataset: Path, key: str) -> None:
    edit_json(dataset / INFO, lambda info: info["features"].update({f"{key}s": info["features"].pop(key)}))
    with pytest.raises(SourceError, match=rf"columns {key}s are missing"):
        run(dataset)


def cameras_of_other_names(info: dict[str, Any]) -> None:
    info["features"]["observation.other"] = info["features"].pop(WRIST)


def numbers_in_another_order(info: dict[str, Any]) -> None:
    info["features"]["observation.state"]["names"]["motors"].reverse()


@pytest.mark.parametrize("change", [cameras_of_other_names, numbers_in_another_order])
def test_a_dataset_of_other_frames_is_not_mixed_in(
    sound: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(sound, tmp_path / "all" / name)
    edit_json(tmp_path / "all/b" / INFO, change)
    summary = ingest(
        IngestConfig("lerobot", tmp_path / "all", tmp_path / "store", codec="png", language="hashed"), isolated=False
    )
    assert summary.episodes == 4
    assert [row["file"] for row in summary.quarantine] == ["b"]
    assert "in most demonstrations of this source" in summary.quarantine[0]["reason"]


def test_a_task_that_steers_a_terminal_costs_its_episodes(dataset: Path) -> None:
    text = "\x1b[2Jfold"
    edit_table(dataset / "meta/tasks.parquet", "__index_level_0__", 0, text)
    for row in (0, 2):
        edit_table(dataset / EPISODES, "tasks", row, [text])
    summary = ingest(config(dataset))
    assert (summary.episodes, summary.quarantined) == (2, 2)
    assert all("expected printable text" in row["reason"] for row in summary.quarantine)
    assert all(text.isprintable() for text in (*summary.notes, *(row["reason"] for row in summary.quarantine)))


def test_tasks_that_are_no_lists_of_texts_are_no_traceback(dataset: Path) -> None:
    table = pq.read_table(dataset / EPISODES)
    at = table.schema.get_field_index("tasks")
    for column in (pa.array([1, 2, 3, 4]), pa.array([[None, "a"]] * 4)):
        pq.write_table(table.set_column(at, "tasks", column), dataset / EPISODES)
        with pytest.raises(SourceError, match=r"no usable demonstration in 1 files: cloths/episode_000000"):
            run(dataset)


def test_a_dataset_without_instructions_is_told_how_to_say_one(dataset: Path) -> None:
    """A recording for one task often has an empty text."""
    for row in range(4):
        edit_table(dataset / EPISODES, "tasks", row, [""])
    tasks = pa.table({"task_index": [0, 1], "__index_level_0__": ["", ""]})
    pq.write_table(tasks, dataset / "meta/tasks.parquet")
    with pytest.raises(SourceError, match=r"expected text, got ''; say it by --spec, instruction"):
        run(dataset)
    assert run(dataset, fields=Fields.from_dict({"instruction": "fold the cloth"})).episodes == 4


def rename_state(root: Path) -> None:
    state, other = "observation.state", "observation.environment_state"
    edit_json(root / INFO, lambda info: info["features"].update({other: info["features"].pop(state)}))
    table = pq.read_table(root / DATA)
    pq.write_table(table.rename_columns([other if name == state else name for name in table.column_names]), root / DATA)


def test_what_stands_for_a_robot_state_that_is_missing_is_named(dataset: Path) -> None:
    assert not any("robot state taken from" in note for note in run(dataset).notes)
    rename_state(dataset)
    assert any(
        "no observation.state: robot state taken from observation.environment_state (--spec says otherwise)" in note
        for note in run(dataset).notes
    )


@pytest.mark.parametrize("key", ["observation.state", "action"])
def test_numbers_that_are_not_float_are_named_with_their_type(dataset: Path, key: str) -> None:
    edit_json(dataset / INFO, lambda info: info["features"][key].update(dtype="int64"))
    with pytest.raises(SourceError, match=rf"expected {key} as a list of float numbers, got int64 \[[23]\]"):
        run(dataset)
