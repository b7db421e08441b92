"""What files show of their conventions: gripper, pictures, masks, instructions, cameras, copies."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cli import app
from pipelines.collect.tabletop import collect_tabletop
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import IngestSummary, ingest
from pipelines.sources.evidence import Evidence, Told, gathered, grips_of, looks_of, weigh
from pipelines.sources.gripper import Grip, Reading, convert, decide, pool, require_agreement, see
from pipelines.sources.masks import split_of
from pipelines.sources.orientation import Look, brightness, from_motion, motion, turned
from pipelines.sources.texts import clean_instruction, near_identical
from stores.errors import SourceError, UsageError
from stores.manifest import Manifest
from stores.reader import Store
from tests.pipelines.make_hdf5 import World, demo_arrays, make_world, write_file


def grasping(seed: int = 0, steps: int = 36, low: float = -1.0, high: float = 1.0, wide: float = 0.035) -> World:
    """A world whose fingers follow the command: `high` closes, from a third to two thirds of the way."""
    world = make_world(seed, steps=steps)
    closing = np.arange(steps) % steps // (steps // 3) == 1
    width = np.full(steps + 1, wide)
    for t in range(steps):
        width[t + 1] = width[t] + np.clip((0.0 if closing[t] else wide) - width[t], -0.006, 0.006)
    world.actions[:, 6] = np.where(closing, high, low)
    return replace(world, fingers=np.stack([width, -width], 1))


def write_tasks(folder: Path, worlds: list[list[World]], **options: Any) -> Path:
    for number, of_task in enumerate(worlds):
        demos = {f"demo_{n}": demo_arrays(world) for n, world in enumerate(of_task)}
        text = "abcde"[number]
        write_file(folder / f"move_{text}_demo.hdf5", demos, f"move the {text} cup", **options)
    return folder


def run(source: Path, out: Path, strict: bool = False, **options: Any) -> IngestSummary:
    return ingest(IngestConfig("cups", source, out, language="hashed", **options), strict=strict, isolated=False)


def commands(out: Path) -> np.ndarray:
    store = Store.open(out)
    columns = store.episode_columns
    spans = zip(columns["first_frame"], columns["steps"], strict=True)
    return np.concatenate([store.frames["action"][int(first) : int(first + count)] for first, count in spans])[:, 6]


def besides_orientation(notes: Iterable[str]) -> list[str]:
    """The made-up pictures show no motion, which is said of every file."""
    assert any("nothing in the pictures shows it" in note for note in notes)
    return [note for note in notes if "nothing in the pictures shows it" not in note]


# Gripper


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 0.0), (1.0, -1.0), (-1.0, 1.0), (-0.5, 0.8)])
def test_any_gripper_convention_becomes_minus_one_open_plus_one_close(tmp_path: Path, low: float, high: float) -> None:
    worlds = [[grasping(10 * task + n, low=low, high=high) for n in range(2)] for task in range(2)]
    summary = run(write_tasks(tmp_path / "in", worlds), tmp_path / "out")
    wanted = np.concatenate([np.where(grasping().actions[1:, 6] > 0, 1.0, -1.0)] * 4)
    np.testing.assert_array_equal(commands(tmp_path / "out"), wanted)
    notes = [
        note for source in Manifest.load(tmp_path / "out").sources for note in besides_orientation(source["notes"])
    ]
    converted = (low, high) not in ((-1.0, 1.0), (-0.5, 0.8))
    assert len(notes) == (2 if converted else 0)  # of each file
    assert any("converted to -1 opens, +1 closes" in note for note in summary.notes) == converted


def test_a_wrong_gripper_flag_is_refused_with_both_readings(tmp_path: Path) -> None:
    source = write_tasks(tmp_path / "in", [[grasping(0, low=1.0, high=0.0)]])
    with pytest.raises(SourceError, match=r"told 'high-closes' \(0 opens, 1 closes\).*show 0 closes, 1 opens"):
        run(source, tmp_path / "out", gripper="high-closes")


def test_zero_and_one_without_evidence_are_refused_and_settable() -> None:
    blind = Grip(0.0, 1.0, 0.0, 0.0)
    with pytest.raises(SourceError, match=r"--gripper high-closes.*--gripper high-opens"):
        decide(blind, blind, "detect", "f")
    assert decide(blind, blind, "high-opens", "f")[0] == Reading(0.5, False)


def test_files_whose_fingers_do_not_tell_follow_the_others_else_the_canonical_and_say_so() -> None:
    blind, others = Grip(-1.0, 1.0, 0.0, 0.0), Grip(-1.0, 1.0, 0.2, 0.21)
    reading, note = decide(blind, others, "detect", "f")
    assert reading == Reading(0.0, False)
    assert "of the other files" in str(note)
    reading, note = decide(blind, blind, "detect", "f")
    assert reading.canonical
    assert "taken as -1 opens, +1 closes" in str(note)


def test_one_demonstration_the_other_way_round_is_quarantined(tmp_path: Path) -> None:
    worlds = [[grasping(n) for n in range(4)] + [grasping(9, low=1.0, high=-1.0)]]
    summary = run(write_tasks(tmp_path / "in", worlds), tmp_path / "out")
    assert [row["demo"] for row in summary.quarantine] == ["demo_4"]
    assert "the fingers of this one show" in summary.quarantine[0]["reason"]


def test_a_command_in_the_middle_goes_on_as_before() -> None:
    given = np.array([0.0, 1.0, 0.0, 0.0, -1.0, 0.0])
    assert convert(given, Reading(0.0, True)).tolist() == [1, 1, 1, 1, -1, -1]
    assert convert(np.zeros(3), Reading(0.0, True)).tolist() == [-1, -1, -1]
    for values, reading in (([-1.0, 1.0], Reading(0.5, True)), ([0.0, 1.0], Reading(0.0, True))):
        with pytest.raises(SourceError, match="expected"):
            convert(np.array(values), reading)


def test_noise_and_numbers_that_are_no_distance_are_no_evidence() -> None:
    command = np.where(np.arange(40) % 8 < 4, -1.0, 1.0)
    rng = np.random.default_rng(0)
    still = 0.02 + rng.normal(0, 2e-5, (41, 2))
    wild = np.cumsum(rng.normal(size=(41, 2)), 0)
    assert see(command, still).closes is None
    assert see(command, wild).closes is None
    together = pool([see(command, still), see(command, wild)])
    assert together is not None
    assert together.closes is None
    require_agreement(command, still)


# Pictures


def scene(upright: bool, frames: int = 30, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A hand that moves about in a picture, higher up when it is higher; and where it is."""
    rng = np.random.default_rng(5)
    hand = np.cumsum(rng.normal(0, 0.02, (frames, 3)), 0)
    pictures = np.full((frames, side, side, 3), 120, np.uint8)
    for t, (x, y, z) in enumerate(hand):
        row, column = int(side / 2 - 60 * z + 10 * x), int(side / 2 + 40 * y)
        pictures[t, max(row, 0) : max(row, 0) + 4, max(column, 0) : max(column, 0) + 4] = 250
    return (pictures if upright else pictures[:, ::-1]), hand


def test_motion_tells_which_way_up_a_view_from_the_front_is() -> None:
    for upright in (True, False):
        looks = [Look([], motion(*scene(upright)))] * 3
        assert from_motion(looks) == ("upright" if upright else "upside-down")
        assert from_motion(looks[:2]) is None  # too few
    pictures, hand = scene(True)
    assert motion(pictures[:1].repeat(30, 0), hand) is None
    assert from_motion([Look([], 0.9), Look([], 0.9), Look([], -0.9)]) is None


def gradient(first: float, last: float) -> Look:
    frames = np.linspace(first, last, 32)[None, :, None, None] * np.ones((2, 32, 8, 3))
    return Look(brightness(frames.astype(np.uint8)), None)


def test_brightness_tells_which_way_up_beside_other_files() -> None:
    assert turned([gradient(10, 200)], [gradient(180, 20)], over=False) is True
    assert turned([gradient(10, 200)], [gradient(20, 180)], over=False) is False
    assert turned([gradient(10, 200)], [gradient(180, 20)], over=True) is False
    assert turned([gradient(90, 90)], [gradient(180, 20)], over=False) is None
    hill = Look([float(v) for v in [*range(0, 80, 10), *range(80, 0, -10)]], None)
    assert turned([hill], [hill], over=False) is None  # either way up


def looking(convention: str | None, upright: bool) -> Evidence:
    return Evidence(True, convention, (), (gradient(200, 10) if upright else gradient(10, 200),))


def test_pictures_too_small_for_bands_tell_nothing(recwarn: pytest.WarningsRecorder) -> None:
    for rows in (8, 15, 16, 17, 33):
        frames = np.linspace(10, 200, rows)[None, :, None, None] * np.ones((2, rows, 8, 3))
        small = Look(brightness(frames.astype(np.uint8)), None)
        assert len(small.bands) == 16
        assert turned([small], [gradient(180, 20)], over=False) is (None if rows < 16 else True)
    assert not recwarn.list


def test_the_more_files_a_source_has_the_fewer_demonstrations_of_each_are_looked_at() -> None:
    assert [looks_of(files) for files in (1, 2, 3, 5, 6, 100)] == [3, 3, 2, 2, 1, 1]
    names = [f"demo_{n}" for n in range(50)]
    clear, blind = Grip(-1.0, 1.0, -0.02, 0.021), Grip(-1.0, 1.0, 0.0, 0.0)
    assert grips_of(names, {"demo_0": clear, "demo_49": clear}.get) == (clear, clear)
    assert len(grips_of(names, lambda name: blind)) == 8
    assert grips_of(names, lambda name: None) == ()
    turned_round = {"demo_0": Grip(-1.0, 1.0, 0.02, 0.021)}
    pooled = pool(grips_of(names, lambda name: turned_round.get(name, clear)))
    assert pooled is not None
    assert pooled.closes  # one demonstration the other way round does not decide for its file


def test_a_file_without_the_attribute_is_read_as_the_others_show_and_named() -> None:
    files = {"a": looking("opengl", False), "b": looking("opengl", False), "c": looking(None, True)}
    verdict = weigh(files, [], Told())
    assert verdict.facts["c"].convention == "upright"
    assert any("no macros_image_convention" in line and line.startswith("c") for line in gathered(verdict.notes))


def test_a_wrong_attribute_beside_others_is_refused_and_settable() -> None:
    files = {name: looking("opengl", name == "c") for name in "abc"}
    verdict = weigh(files, [], Told())
    assert set(verdict.facts) == {"a", "b"}
    assert "--image-convention opengl or --image-convention upright" in verdict.refused["c"]
    told = weigh({"c": files["c"]}, [], Told(image_convention="upright"))
    assert told.facts["c"].convention == "upright"
    assert any("images taken as told" in line for line in gathered(told.notes))


def test_a_wrong_attribute_of_all_files_is_seen_by_motion() -> None:
    look = Look([], motion(*scene(True)))
    verdict = weigh({"a": Evidence(True, "opengl", (), (look,) * 3)}, [], Told())
    assert "shows 'upright'" in verdict.refused["a"]
    assert weigh({"a": Evidence(True, None, (), (look,) * 3)}, [], Told()).facts["a"].convention == "upright"


def test_pictures_are_turned_as_told(tmp_path: Path) -> None:
    source = write_tasks(tmp_path / "in", [[grasping(n) for n in range(2)]], convention=None)
    for told in ("opengl", "upright"):
        run(source, tmp_path / told, image_convention=told, codec="png")
    shards = [(tmp_path / told / "shards/move_a_demo-000.tar").read_bytes() for told in ("opengl", "upright")]
    assert shards[0] != shards[1]
    assert Manifest.load(tmp_path / "upright").sources[0]["image_convention"] == "upright"


# Masks


def test_masks_are_the_split_and_what_they_leave_out_is_named(tmp_path: Path) -> None:
    source = write_tasks(tmp_path / "in", [[grasping(n) for n in range(6)]])
    with h5py.File(source / "move_a_demo.hdf5", "r+") as file:
        file["mask/train"], file["mask/valid"] = np.array([b"demo_0", b"demo_4"]), np.array([b"demo_1", b"demo_2"])
        file["mask/20_percent"] = np.array([b"demo_0"])
        file.create_group("meta")
    summary = run(source, tmp_path / "out")
    columns = Store.open(tmp_path / "out").episode_columns
    assert dict(zip(columns["demo"], columns["split"], strict=True)) == {
        "demo_0": "train", "demo_1": "val", "demo_2": "val", "demo_4": "train",
    }  # fmt: skip
    told = " ".join(summary.notes)
    assert "demo_3, demo_5 left out" in told
    assert "20_percent" in told
    assert "/meta beside /data" in told
    everything = run(source, tmp_path / "all", masks="ignore")
    assert everything.episodes == 6
    assert any("--masks ignore" in note for note in everything.notes)


def test_masks_that_are_no_split_need_a_choice_and_a_contradiction_is_quarantined() -> None:
    demos = ["demo_0", "demo_1"]
    with pytest.raises(UsageError, match=r"good \(1\).*--masks ignore"):
        split_of({"good": ["demo_0"]}, demos, "ask", "f")
    split = split_of({"train": demos, "valid": ["demo_1", "demo_9"]}, demos, "ask", "f")
    assert split.parts == {"demo_0": "train"}
    assert [demo for demo, _ in split.refused] == ["demo_1"]
    assert any("demo_9" in note for note in split.notes)


# Instructions


@pytest.mark.parametrize(
    "value",
    ["stack the pots", ' "stack the pots" ', "\u201cstack the pots\u201d", "'\"stack the pots\"'",
     list("stack the pots"), ["stack", "the", "pots"], "stack\tthe  pots\n"],
)  # fmt: skip
def test_instructions_are_read_as_people_mean_them(value: Any) -> None:
    assert clean_instruction(value) == "stack the pots"


def test_quotation_marks_inside_stay_and_no_text_is_refused() -> None:
    assert clean_instruction('press "on" and "off"') == 'press "on" and "off"'
    assert clean_instruction('"a" and "b"') == '"a" and "b"'
    for value in ("", '""', [], [1], None, "x" * 1001):
        with pytest.raises(SourceError, match="expected text"):
            clean_instruction(value)


def test_instructions_that_read_alike_are_listed_and_different_tasks_are_not() -> None:
    alike = ["Stack the pots.", "stack the pots", "stack the  pots", "move the basket", "move the baskets"]
    apart = ["take mug 1", "take mug 2", "open the top drawer", "open the low drawer", "put it left", "put it right"]
    groups = near_identical([*alike, *apart])
    assert sorted(map(len, groups)) == [2, 3]
    assert not {text for group in groups for text in group} & set(apart)


def test_an_instruction_missing_beside_others_is_damage(tmp_path: Path) -> None:
    source = write_tasks(tmp_path / "in", [[grasping(n)] for n in range(3)])
    with h5py.File(source / "move_b_demo.hdf5", "r+") as file:
        attributes = file["data"].attrs
        attributes["problem_infos"] = attributes["problem_info"]
        del attributes["problem_info"]
    summary = run(source, tmp_path / "out")
    assert [(row["file"], row["demo"]) for row in summary.quarantine] == [("move_b_demo.hdf5", "")]
    assert "no attribute problem_info" in summary.quarantine[0]["reason"]


# Copies, initial states


def test_copies_are_named_and_stand_on_one_side(tmp_path: Path) -> None:
    worlds = [[grasping(n, steps=30 + n) for n in range(6)], [grasping(20 + n) for n in range(3)]]
    source = write_tasks(tmp_path / "in", worlds)
    with h5py.File(source / "again_demo.h5", "w") as copy, h5py.File(source / "move_a_demo.hdf5") as file:
        data = copy.create_group("data")
        data.attrs.update(file["data"].attrs)
        for name in ("demo_0", "demo_1", "demo_2", "demo_3", "demo_4", "demo_5"):
            group = data.create_group(name)
            group.attrs.update(file["data"][name].attrs)
            for key in ("actions", "states", "obs/agentview_rgb", "obs/eye_in_hand_rgb", "obs/joint_states",
                        "obs/gripper_states"):  # fmt: skip
                group.create_dataset(key, data=file["data"][name][key][()], compression="gzip")
    for seed in range(4):
        summary = run(source, tmp_path / f"out{seed}", train_split=0.5, split_seed=seed)
        columns = Store.open(tmp_path / f"out{seed}").episode_columns
        parts = dict(zip(columns["id"], columns["split"], strict=True))
        assert len(parts) == 15
        assert all(parts[f"move_a_demo/demo_{n}"] == parts[f"again_demo.h5/demo_{n}"] for n in range(6))
        assert sum("are the same episode" in note for note in summary.notes) == 6


def test_initial_states_are_in_the_manifest_by_episode(tmp_path: Path) -> None:
    source = write_tasks(tmp_path / "in", [[grasping(n) for n in range(3)]])
    with h5py.File(source / "move_a_demo.hdf5", "r+") as file:
        file["data/demo_0"].attrs["init_state_index"] = 7
        file["data/demo_1"].attrs["init_state"] = np.arange(5.0)
    run(source, tmp_path / "out")
    states = Manifest.load(tmp_path / "out").sources[0]["init_states"]["move_a"]
    assert states["demo_0"] == "7"
    assert states["demo_1"].startswith("sha256:")
    assert "demo_2" not in states
    json.dumps(states)


@pytest.mark.parametrize(("said", "steps"), [((), 16), (("--window", "8"), 8)])
def test_steps_of_a_segment_are_said_at_ingest(tmp_path: Path, said: tuple[str, ...], steps: int) -> None:
    source = write_tasks(tmp_path / "in", [[grasping(0)]])
    command = ["ingest", "cups", "--source", str(source), "--out", str(tmp_path / "out"), "--language", "hashed", *said]
    app(command, standalone_mode=False)
    store = Store.open(tmp_path / "out")
    assert store.manifest.config["window"] == steps
    assert max(store.segment_columns["steps"]) == steps


def test_scenes_that_differ_among_themselves_quarantine_nothing(tmp_path: Path) -> None:
    collect_tabletop(tmp_path / "source", 12, seed=0, image_size=32)  # three layouts a task, seen from above
    summary = ingest(IngestConfig("tabletop", tmp_path / "source", tmp_path / "store", language="hashed"))
    assert not summary.quarantined


def test_more_demonstrations_are_read_until_their_fingers_tell_beyond_doubt() -> None:
    def asked(grip: Grip) -> list[str]:
        names: list[str] = []

        def read(name: str) -> Grip:
            names.append(name)
            return grip

        grips_of([f"demo_{number}" for number in range(20)], read)
        return names

    assert asked(Grip(-1.0, 1.0, toward=-0.05, moved=0.055)) == ["demo_0", "demo_19"]
    assert len(asked(Grip(-1.0, 1.0, toward=-0.05, moved=0.08))) == 8  # too much against it
    assert len(asked(Grip(-1.0, 1.0, toward=-0.006, moved=0.006))) == 5  # 30 mm together
