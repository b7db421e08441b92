"""What every policy of the table must do: a new row is tested by being there."""

import pytest
import torch
from torch import Tensor, nn

from statevla.data.batch import Batch
from statevla.policies.prepare import convert
from statevla.systems.acting import Scene
from statevla.systems.system import Objective
from tests.models.build import batch
from tests.systems.build import CASES, Case, noise_of, train, with_states


def scene_of(model: Objective, data: Batch) -> Scene:
    shape = model.noise_shape
    noise = None if shape is None else torch.randn(len(data), *shape, generator=torch.Generator().manual_seed(1))
    return Scene(data.obs.images, data.obs.robot_state, model.condition(data.obs.language), noise)


def one_row(scene: Scene, number: int) -> Scene:
    part = slice(number, number + 1)
    images = tuple(frames[part] for frames in scene.images)
    noise = None if scene.noise is None else scene.noise[part]
    return Scene(images, scene.robot_state[part], scene.condition[part], noise)


pytestmark = pytest.mark.parametrize("case", CASES, ids=str)


def test_rows_do_not_see_each_other(case: Case) -> None:
    model = case.make().eval()
    data = batch(6)
    with torch.inference_mode():
        scene = scene_of(model, data)
        together = model.decide(scene)
        for number in range(6):
            alone = model.decide(one_row(scene, number))
            torch.testing.assert_close(alone.chunk[0], together.chunk[number], rtol=1e-4, atol=1e-5)


def test_validation_tells_how_well_changes_of_the_gripper_are_foretold(case: Case) -> None:
    model, data = case.make().eval(), batch(6)
    with torch.no_grad():
        terms = dict(model.terms(with_states(model, data), noise_of(model, 6)))
        terms["logits"] = torch.where(terms["closing"], 1.0, -1.0)
        assert model.monitors(terms)["gripper_change_f1"] == 1


def test_what_the_policy_sees_changes_what_it_does(case: Case) -> None:
    if any("world_" in option for option in case.options):
        pytest.skip("acting never asks that head; tests/systems/test_world.py")
    model = case.make()
    data = batch(8)
    if case.row.name == "flow_matching":  # sees all through an encoder that has learned nothing, and tells it faintly
        train(model, data, 120, rate=5e-3)
    else:
        train(model, data, 8 if "act.vision=resnet18" in case.options else 25)  # a step of a ResNet takes half a second
    model.eval()
    with torch.inference_mode():
        scene = scene_of(model, data)
        before = model.decide(scene).chunk
        changes = {"language": scene._replace(condition=scene.condition.roll(1, 0))}
        changes["robot_state"] = scene._replace(robot_state=scene.robot_state.roll(1, 0))
        for camera in range(2):
            flipped = (255 - frames if number == camera else frames for number, frames in enumerate(scene.images))
            changes[f"camera {camera}"] = scene._replace(images=tuple(flipped))
        for name, other in changes.items():
            assert (model.decide(other).chunk - before).abs().max() > 1e-4, name


def require_one_dtype(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
    """As CUDA does; a CPU takes float32 weights beside bfloat16."""
    assert norm.weight is None or norm.weight.dtype == given[0].dtype, norm


def test_bfloat16_is_near(case: Case) -> None:
    model = case.make().eval()
    data = batch(4)
    with torch.inference_mode():
        exact = model.decide(scene_of(model, data)).chunk
        convert(model, torch.bfloat16)
        for part in model.modules():
            if isinstance(part, nn.GroupNorm | nn.LayerNorm):
                part.register_forward_pre_hook(require_one_dtype)
        near = model.decide(scene_of(model, data)).chunk
    assert any(weight.dtype == torch.bfloat16 for weight in model.parameters())
    assert (exact - near)[..., :6].abs().max() < 2e-2 * exact[..., :6].abs().max() + 2e-2


def test_chunks_are_in_action_units_with_a_binary_gripper(case: Case) -> None:
    model = case.make().eval()
    with torch.inference_mode():
        chunk, closing, _ = model.decide(scene_of(model, batch(3)))
    assert chunk.shape == (3, 10, 7)
    assert chunk.dtype == torch.float32
    assert set(chunk[..., 6].unique().tolist()) <= {-1.0, 1.0}
    assert closing is not None
    assert torch.equal(closing > 0.5, chunk[..., 6:] > 0)
