"""Decisions that are recorded once and replayed, of every policy of the table: a new row is tested by being there."""

import pytest
import torch

from statevla.policies import prepare
from statevla.policies.prepare import Actor
from statevla.systems.acting import Scene
from statevla.systems.system import Objective
from tests.models.build import batch
from tests.models.test_acting import capture_without_a_gpu
from tests.systems.build import CASES, Case
from tests.systems.test_policies import scene_of

ACTING = [case for case in CASES if not any("world_" in option for option in case.options)]
"""Acting never asks a world head."""
LIMIT = 1e-3
"""Replayed against eager: the same kernels, though a library may choose others while it records."""

devices = pytest.mark.parametrize("device", [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")),
])  # fmt: skip


def scenes_of(model: Objective, seed: int, device: str) -> list[Scene]:
    """What a policy may be asked in one place: told by its instruction and, where it takes them, by a picture."""
    data = batch(3, seed=seed).to(torch.device(device))
    scene = scene_of(model, data)
    goal = torch.stack(tuple(frames.flip(0) for frames in data.next_obs.images), dim=1)
    return [scene, scene._replace(goal=goal)] if hasattr(model, "told_by") else [scene]


@devices
@pytest.mark.parametrize("case", ACTING, ids=str)
def test_a_replayed_decision_is_the_eager_one(case: Case, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU a stand-in replays: it keeps a graph's rule, that inputs and outputs stay where they were."""
    model = case.make().to(device).eval()
    eager, recorded = Actor(model, graphs=False), Actor(model)
    if device == "cpu":
        monkeypatch.setattr(prepare, "capture", capture_without_a_gpu)
        recorded._graphs = True
    with torch.inference_mode():
        scenes = [scenes_of(model, seed, device) for seed in (1, 2, 1)]
    for told in zip(*scenes, strict=True):
        wanted = [eager.act(scene) for scene in told]
        got = [recorded.act(scene) for scene in told]
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one.chunk, other.chunk, rtol=0, atol=LIMIT)
            torch.testing.assert_close(one.closing, other.closing, rtol=0, atol=LIMIT)
        assert torch.equal(got[0].chunk, got[2].chunk)
        assert (got[0].chunk - got[1].chunk).abs().max() > LIMIT
    assert len(recorded._captured) == len(scenes[0])


@pytest.mark.parametrize("case", ACTING, ids=str)
def test_a_decision_reads_no_number_back(case: Case) -> None:
    """A graph can be recorded of what never waits for a tensor's value, and numbers on ``meta`` cannot be read."""
    options = (*case.options, "model.mamba_backend=loop")
    model = Case(case.row, options).make().eval()
    with torch.inference_mode():
        scenes = scenes_of(model, 0, "cpu")
        model.to("meta")
        for scene in scenes:
            there = [None if tensor is None else tensor.to("meta") for tensor in scene.tensors()]
            acted = model.decide(Scene.of_tensors(there, len(scene.images)))
            assert acted.chunk.device.type == "meta"
            assert acted.chunk.shape == (3, 10, 7)
