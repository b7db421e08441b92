"""Leaving out what a camera cannot see changes no pixel, and does leave something out."""

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statevla.sims.libero import assets, suites
from statevla.sims.libero.perturb import Perturbation
from statevla.sims.libero.protocol import IMAGE_KEYS, Demonstrate, Reset, WorkerSpec
from tests.libero.conftest import require_assets

pytestmark = pytest.mark.libero

EVERY = 25
"""Steps between the pictures that are compared."""


Comparison = tuple[str, bool, int, bool]
"""Camera, whether the two pictures are equal, geoms hidden, whether mirrors were drawn."""


def child(answer: Connection, task: suites.Task, log: Path) -> None:
    """A process of its own: there may be one context of OpenGL, and its exit handlers can hang."""
    try:
        answer.send(drawn_twice(task, log))
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)


def drawn_twice(task: suites.Task, log: Path) -> list[Comparison]:
    """An expert's episode, its pictures drawn with culling and by MuJoCo alone."""
    from statevla.sims.libero import environment

    spec = WorkerSpec(task.suite, task.index, task.name, task.bddl, assets.find(task.suite), 64, 1, log)
    world = environment.Environment(spec)
    culling = world._culling
    found = []
    for perturbation in (Perturbation(), Perturbation(camera_shift=0.2, camera_turn=30.0, seed=1)):
        world.reset(Reset(suites.init_states(task)[0], 5, expert_seed=(0,), perturbation=perturbation))
        track = world.demonstrate(Demonstrate(steps=150, hold=5)).track
        assert track is not None
        context = world._env.sim._render_context_offscreen
        for moment in range(0, len(track.drawn), EVERY):
            world._recorder.restore(track.drawn[moment], track.glow[moment])
            for key in IMAGE_KEYS:
                culled, hidden, mirrors = watched(world, key, context)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(culling, "only_seen_by", lambda camera: contextlib.nullcontext())
                    whole = np.array(world._drawers[key]({}))
                found.append((key, bool(np.array_equal(culled, whole)), hidden, mirrors))
    return found


def watched(world: Any, key: str, context: Any) -> tuple[np.ndarray[Any, Any], int, bool]:
    """A picture; how many of the geoms that it could show were hidden; whether mirrors were drawn."""
    inner, seen = world._culling.only_seen_by, []

    @contextlib.contextmanager
    def noted(camera: str) -> Iterator[None]:
        before = np.array(world._env.sim.model.geom_group)
        with inner(camera):
            seen.append((int((world._env.sim.model.geom_group != before).sum()), bool(context.scn.flags[2])))
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world._culling, "only_seen_by", noted)
        picture = np.array(world._drawers[key]({}))
    return picture, *seen[0]


@pytest.mark.parametrize("suite", ["libero_object", "libero_goal"])
def test_pictures_are_those_of_the_whole_scene(suite: str, simulator_installed: None, tmp_path: Path) -> None:
    require_assets(suite)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=child, args=(theirs, suites.tasks(suite)[0], tmp_path / "log"), daemon=True)
    process.start()
    theirs.close()
    found: list[Comparison] = ours.recv()  # EOFError where the child failed: its trace is on standard error
    process.join()
    different = [entry for entry in found if not entry[1]]
    assert not different
    hidden = {key: [entry[2] for entry in found if entry[0] == key] for key in IMAGE_KEYS}
    assert np.mean(hidden["robot0_eye_in_hand_image"]) > 50  # the arm is behind this camera
    if suite == "libero_goal":  # the stove's plate mirrors: seen by the scene's camera, mostly not by the hand's
        assert {entry[3] for entry in found} == {True, False}
