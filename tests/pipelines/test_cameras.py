"""Cameras that show nothing: named, and refused with --strict."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.sources.cameras import CameraWatch
from stores.errors import SourceError
from stores.manifest import Manifest
from tests.pipelines.test_evidence import besides_orientation, grasping, run, write_tasks


def watch(frames: np.ndarray, joints: np.ndarray) -> tuple[str, ...]:
    seen = CameraWatch("wrist", joints)
    for start in range(0, len(frames), 7):
        block = frames[start : start + 7].copy()
        seen.see(block)
        block[:] = 0  # the caller uses its memory again
    return seen.findings([frame.tobytes() for frame in frames], lambda at: frames[at])


def test_cameras_that_show_nothing_are_named() -> None:
    rng = np.random.default_rng(0)
    sound = rng.integers(0, 255, (40, 16, 16, 3), np.uint8)
    joints = np.cumsum(rng.normal(0, 0.02, (40, 7)), 0)
    still = np.zeros((40, 7))
    assert watch(sound, joints) == ()
    assert watch(sound * 0, joints) == ("camera wrist is black in all 40 frames",)
    white = sound.copy()
    white[12:20] = 255
    assert watch(white, joints) == ("camera wrist is blank in 8 of 40 frames, from 12 on",)
    dotted = white.copy()
    dotted[13, 0, 0] = 0  # outside of the rows that are looked at first
    assert watch(dotted, joints) == ("camera wrist is blank in 7 of 40 frames, from 12 on",)
    frozen = sound.copy()
    frozen[15:] = frozen[15]
    assert watch(frozen, joints) == ("camera wrist is frozen in 25 of 40 frames, from 15 on",)
    assert watch(frozen, still) == ()  # nothing moves: a still picture is right
    assert watch(sound[:1].repeat(40, 0), still) == ("camera wrist is frozen in all 40 frames",)
    halved = sound[::2].repeat(2, 0)
    assert "repeats pictures" in watch(halved, joints)[0]


def test_strict_refuses_cameras_that_show_nothing(tmp_path: Path) -> None:
    black = replace(grasping(1), eye_in_hand=np.zeros_like(grasping(1).eye_in_hand))
    source = write_tasks(tmp_path / "in", [[grasping(0), black]])
    with pytest.raises(SourceError, match=r"demo_1: camera eye_in_hand is black in all 36 frames"):
        run(source, tmp_path / "out", strict=True)
    summary = run(source, tmp_path / "out")
    told = "move_a_demo.hdf5/demo_1: camera eye_in_hand is black in all 36 frames"
    assert besides_orientation(summary.notes) == [told]
    assert run(source, tmp_path / "out").notes == summary.notes  # of reused units too
    assert Manifest.load(tmp_path / "out").sources[0]["notes"] == list(summary.notes)
