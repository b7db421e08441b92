"""Ingest: reproducible bytes, reuse, what changes when sources change, segments, quarantine."""

import filecmp
import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.ingest.config import IngestConfig, preview_ingest
from pipelines.ingest.driver import IngestSummary, ingest
from stores.disk.lock import lock
from stores.errors import SourceError, StoreLocked, StoreMissing, UsageError
from stores.reader import Store
from stores.verify import verify_store
from tests.pipelines.make_hdf5 import demo_arrays, make_world, write_file, write_suite

REAL = Path(__file__).parents[2].parent / "shared" / "libero" / "demos"


def run(source: Path, out: Path, workers: int = 0, **options: Any) -> IngestSummary:
    return ingest(IngestConfig("toy", source, out, language="hashed", **options), workers=workers)


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {name: ((root / name).stat().st_mtime_ns, (root / name).read_bytes()) for name in files(root)}


def assert_same_bytes(first: Path, second: Path) -> None:
    assert files(first) == files(second)
    different = filecmp.cmpfiles(first, second, files(first), shallow=False)[1:]
    assert different == ([], [])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "source", tasks=3, demos=2)


def test_store_holds_every_step_and_passes_verification(source: Path, tmp_path: Path) -> None:
    summary = run(source, tmp_path / "store")
    assert (summary.episodes, summary.quarantined, summary.units) == (6, 0, 3)
    assert verify_store(tmp_path / "store") == []
    store = Store.open(tmp_path / "store")
    assert summary.frames == len(store.frames["index"]) == sum(20 + 7 * n + t for n in range(2) for t in range(3))
    assert summary.bytes == sum(item.bytes for item in store.manifest.objects)
    assert store.language.vector("put the cup 1 away").shape == (512,)
    assert [row["alignment"] for row in store.manifest.sources] == [["after"]] * 3


@pytest.mark.parametrize("alignment", ["after", "before"])
def test_segments_hold_the_transitions_of_the_run(tmp_path: Path, alignment: str) -> None:
    """Every (o_t, a_t, o_{t+1}, chunk_t) read back from the shards, against a naive construction from the world."""
    world, window, chunk = make_world(7, steps=37), 8, 5
    write_file(tmp_path / "source" / "t_demo.hdf5", {"demo_0": demo_arrays(world, alignment)})
    run(tmp_path / "source", tmp_path / "store", window=window, chunk=chunk, codec="png")
    store = Store.open(tmp_path / "store")
    moments = np.arange(1, 38) if alignment == "after" else np.arange(0, 37)  # of each observation
    actions = world.actions[1:] if alignment == "after" else world.actions  # executed from observation 0, 1, ...
    seen: list[int] = []
    for number in range(len(store)):
        segment, images = store.read_segment(number), store.decode_segment(number)
        row = store.segments.slice(number, 1).to_pylist()[0]
        for step in range(row["steps"]):
            t = row["first_step"] + step
            seen.append(t)
            for offset in (0, 1):
                if t + offset >= len(moments):
                    assert row["observations"] == row["steps"]  # the last observation of a 'before' file
                    continue
                moment = moments[t + offset]
                np.testing.assert_array_equal(images[0][step + offset], world.agentview[moment, ::-1])
                np.testing.assert_array_equal(images[1][step + offset], world.eye_in_hand[moment, ::-1])
                np.testing.assert_allclose(segment.robot_state[step + offset, 7:], world.fingers[moment], atol=1e-7)
            naive = [actions[min(t + k, len(actions) - 1)] for k in range(chunk)]
            np.testing.assert_array_equal(segment.action[step : step + chunk], np.float32(naive))
            np.testing.assert_array_equal(
                segment.is_pad[step : step + chunk], [t + k >= len(actions) for k in range(chunk)]
            )
    assert seen == list(range(len(actions)))
    frames = store.frames
    np.testing.assert_array_equal(frames["action"][: len(actions)], actions.astype(np.float32))
    assert np.isnan(frames["action"][len(actions) :]).all()
    np.testing.assert_allclose(frames["robot_state"][:, 7:], world.fingers[moments], atol=1e-7)


def test_colours_at_half_the_size_are_another_store_and_a_smaller_one(source: Path, tmp_path: Path) -> None:
    for codec in ("jpeg", "jpeg-420"):
        run(source, tmp_path / codec, codec=codec)
    assert verify_store(tmp_path / "jpeg-420") == []
    stores = [Store.open(tmp_path / codec) for codec in ("jpeg", "jpeg-420")]
    assert stores[0].content_hash != stores[1].content_hash
    assert stores[1].manifest.config["codec"] == "jpeg-420"
    full, half = (sum(map(len, store.read_segment(0).images["agentview"])) for store in stores)
    assert half < full
    pictures = [store.decode_segment(0)[0].astype(int) for store in stores]
    assert 0 < np.abs(pictures[0] - pictures[1]).mean() < 8


def test_serial_and_two_workers_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "serial")
    run(source, tmp_path / "parallel", workers=2)
    assert_same_bytes(tmp_path / "serial", tmp_path / "parallel")


def test_a_store_does_not_depend_on_where_it_is_and_what_else_was_there(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "first")
    moved = tmp_path / "elsewhere"
    source.rename(moved)
    (moved / ".cache").touch()
    run(moved, tmp_path / "a" / "b" / "second")
    assert_same_bytes(tmp_path / "first", tmp_path / "a" / "b" / "second")


def test_rerun_changes_nothing(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path / "store")
    before = snapshot(tmp_path / "store")
    again = run(source, tmp_path / "store")
    assert first.changed
    assert not again.changed
    assert again.units_reused == again.units == 3
    assert snapshot(tmp_path / "store") == before


def test_another_task_leaves_the_other_shards_alone(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "store")
    before = snapshot(tmp_path / "store")
    write_file(source / "a_new_task_demo.hdf5", {"demo_0": demo_arrays(make_world(99))}, "a new task")
    summary = run(source, tmp_path / "store")
    after = snapshot(tmp_path / "store")
    assert summary.units_reused == 3
    kept = [name for name in before if name.startswith(("shards/", "units/"))]
    assert len(kept) == 6
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    run(source, tmp_path / "fresh")
    assert_same_bytes(tmp_path / "store", tmp_path / "fresh")


def test_removed_and_changed_sources_give_the_store_of_what_is_there_now(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "store")
    (source / "put_the_cup_0_away_demo.hdf5").unlink()
    with h5py.File(source / "put_the_cup_1_away_demo.hdf5", "r+") as file:
        file["data/demo_0/actions"][4, 0] = 0.123
    summary = ingest(IngestConfig("toy", source, tmp_path / "store", language="hashed"), prune=True)
    assert summary.units_reused == 1
    run(source, tmp_path / "fresh")
    assert_same_bytes(tmp_path / "store", tmp_path / "fresh")
    assert verify_store(tmp_path / "store") == []


def test_another_configuration_is_another_store(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "store")
    assert run(source, tmp_path / "store", split_seed=5).units_reused == 3  # the split is not in the shards
    assert run(source, tmp_path / "store", window=8).units_reused == 0
    run(source, tmp_path / "fresh", window=8)
    assert_same_bytes(tmp_path / "store", tmp_path / "fresh")


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("kind", ["shards", "units", "episodes.parquet", "frames.zarr", "manifest.json"])
def test_damage_is_repaired_to_the_same_bytes(source: Path, tmp_path: Path, damage: str, kind: str) -> None:
    run(source, tmp_path / "store")
    before = {name: data for name, (_, data) in snapshot(tmp_path / "store").items()}
    victim = next(tmp_path / "store" / name for name in sorted(before, reverse=True) if name.startswith(kind))
    data = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    else:
        data[len(data) // 2] ^= 1
        victim.write_bytes(data if damage == "flip" else data[:-1])
    assert run(source, tmp_path / "store").changed
    assert {name: data for name, (_, data) in snapshot(tmp_path / "store").items()} == before


def test_an_interrupted_ingest_is_no_store_and_resumes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, tmp_path / "fresh")
    import pipelines.ingest.driver

    real, calls = pipelines.ingest.driver.make_isolated, []

    def stop_at_second(task: Any) -> bytes:
        calls.append(task)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(task)

    monkeypatch.setattr(pipelines.ingest.driver, "make_isolated", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "store")
    with pytest.raises(StoreMissing):
        Store.open(tmp_path / "store")
    monkeypatch.undo()
    assert run(source, tmp_path / "store").units_reused == 1
    assert_same_bytes(tmp_path / "store", tmp_path / "fresh")


def test_bad_demos_are_quarantined_and_the_rest_is_ingested(source: Path, tmp_path: Path) -> None:
    arrays = {f"demo_{n}": demo_arrays(make_world(n, side=16)) for n in range(12)}
    arrays["demo_3"]["actions"] = arrays["demo_3"]["actions"].copy()
    arrays["demo_3"]["actions"][7, 2] = np.nan
    del arrays["demo_10"]["obs/gripper_states"]
    arrays["demo_11"] = demo_arrays(make_world(0, side=32))
    write_file(source / "put_the_cup_2_away_demo.hdf5", arrays)
    (source / "broken.hdf5").write_bytes(b"nonsense")
    summary = run(source, tmp_path / "store")
    assert summary.episodes == 2 + 2 + 9
    assert summary.quarantined == 4
    lines = (tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert tuple(rows) == summary.quarantine
    assert [(row["file"], row["demo"]) for row in rows] == [
        ("broken.hdf5", ""),
        *(("put_the_cup_2_away_demo.hdf5", demo) for demo in ("demo_3", "demo_10", "demo_11")),
    ]
    for row, word in zip(rows, ("HDF5", "NaN", "gripper_states", "(16, 16)"), strict=True):
        assert word in row["reason"]
    assert verify_store(tmp_path / "store") == []
    assert not run(source, tmp_path / "store").changed
    ids = Store.open(tmp_path / "store").episode_columns["id"].tolist()
    assert ids[-9:] == [f"put_the_cup_2_away_demo/demo_{n}" for n in (0, 1, 2, 4, 5, 6, 7, 8, 9)]


def test_nothing_usable_is_an_error_with_the_reason(tmp_path: Path) -> None:
    arrays = demo_arrays(make_world())
    arrays["actions"] = np.full_like(arrays["actions"], np.nan)
    write_file(tmp_path / "source" / "t_demo.hdf5", {"demo_0": arrays})
    with pytest.raises(SourceError, match=r"no usable demonstration.*NaN"):
        run(tmp_path / "source", tmp_path / "store")
    (tmp_path / "source" / "t_demo.hdf5").write_bytes(b"nonsense")
    with pytest.raises(SourceError, match=r"no usable demonstration.*HDF5"):
        run(tmp_path / "source", tmp_path / "store")


def test_missing_source_and_foreign_folders_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        run(tmp_path / "nowhere", tmp_path / "store")
    assert not (tmp_path / "store").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    with pytest.raises(UsageError, match=r"letter\.txt"):
        run(source, tmp_path / "home")


def test_a_second_writer_is_refused(source: Path, tmp_path: Path) -> None:
    with lock(tmp_path / "store", "another ingest"), pytest.raises(StoreLocked, match="another ingest"):
        run(source, tmp_path / "store")


def test_dry_run_says_what_will_be_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    config = IngestConfig("toy", source, tmp_path / "store", language="hashed")
    preview = ingest(config, dry_run=True)
    assert not (tmp_path / "store").exists()
    summary = ingest(config)
    for name in ("episodes", "frames", "quarantined", "store", "units"):
        assert preview.to_dict()[name] == summary.to_dict()[name]


def test_progress_ends_at_all_frames(source: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    ingest(IngestConfig("toy", source, tmp_path / "store", language="hashed"), progress=events.append)
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert events[-1].done == events[-1].total


@pytest.mark.parametrize(
    "option", [{"codec": "bmp"}, {"window": 0}, {"window": 100}, {"train_split": 0.0}, {"alignment": "during"}]
)
def test_wrong_configuration(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        IngestConfig("toy", tmp_path, tmp_path, **option)


@pytest.mark.skipif(not REAL.is_dir(), reason="real LIBERO demonstrations are not at ../shared/libero/demos")
def test_real_demonstrations(tmp_path: Path) -> None:
    """Two files: alignment detected, images within JPEG error of the flipped source, prediction within a tenth."""
    names = sorted(path.name for path in REAL.glob("*.hdf5"))[1:3]
    (tmp_path / "source").mkdir()
    for name in names:
        os.symlink(REAL / name, tmp_path / "source" / name)
    preview = preview_ingest(IngestConfig("libero_object", tmp_path / "source", tmp_path / "store", language="hashed"))
    summary = run(tmp_path / "source", tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert set(store.episode_columns["alignment"]) == {"after"}
    assert abs(preview.bytes / summary.bytes - 1) < 0.1
    segment = store.segments.slice(2, 1).to_pylist()[0]
    images = store.decode_segment(2)
    with h5py.File(REAL / names[0]) as file:
        demo = file["data/demo_0"]
        rows = slice(segment["first_step"], segment["first_step"] + segment["observations"])
        wanted = demo["obs/agentview_rgb"][rows][:, ::-1]
        # The action executed from observation t is the next row's.
        actions = demo["actions"][rows.start + 1 : rows.start + 1 + segment["steps"]]
    assert np.abs(images[0].astype(int) - wanted).mean() < 2.0
    assert np.abs(images[0].astype(int) - wanted[:, ::-1]).mean() > 20.0
    np.testing.assert_array_equal(store.read_segment(2).action[: segment["steps"]], actions.astype(np.float32))
