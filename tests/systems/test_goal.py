"""The policy that is told by language or by a picture: whom it listens to, and what its loss and decision see."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statevla.config.load import load_config
from statevla.data.batch import Batch
from statevla.models.tokenizer import FrozenFeatures
from statevla.systems import goal as goal_module
from statevla.systems.acting import Scene
from statevla.systems.describe import describe_system
from statevla.systems.frozen import ENCODERS, FrozenEncoder
from statevla.systems.goal import FUSIONS, GoalNet, GoalPolicy, build
from statevla.systems.system import Given
from statevla.systems.table import find_system, sections
from statevla.trainers.trainer import train
from stores.errors import UsageError
from stores.spec import LIBERO
from tests.models.build import batch, normalization, observations
from tests.systems.build import SMALL as MICRO
from tests.systems.build import TOWER, Squares
from tests.trainers.micro import SETTINGS, micro_store

WAYS = [
    pytest.param(fusion, encoder, id="-".join(filter(None, (fusion, encoder))))
    for fusion in FUSIONS
    for encoder in (ENCODERS if fusion == "state" else (None,))
]


def net(fusion: str, encoder: str | None = None, **changes: Any) -> GoalNet:
    sizes = {"size": 64, "patch": 8, "width": 64, "heads": 4, "blocks": 2, **changes}
    given = Given(statistics=normalization())
    frozen = None if encoder is None else FrozenEncoder(encoder, load_config("tiny", None, MICRO, sections()), given)
    return GoalNet(fusion=fusion, chunk=10, spec=LIBERO, encoder=frozen, **sizes)


def pictures(rows: int, seed: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 256, (2, rows, 64, 64, 3), dtype=torch.uint8, generator=g))


def policy(*changes: str) -> GoalPolicy:
    torch.manual_seed(0)
    config = load_config("tiny", None, changes, sections())
    return build(config, Given(statistics=normalization()))


def with_goal(data: Batch) -> Batch:
    return dataclasses.replace(data, goal=observations(len(data), seed=9), goal_frame=data.frame + 3)


def test_the_chapters_count() -> None:
    """Its own head, of one action, 512 → 256 → 7, in the place of ours, and no norm after the blocks."""
    config = load_config("base", None, ("goal.vision=siglip", "model.vision=siglip", "goal.fusion=late"), sections())
    parts = describe_system(find_system("goal"), config)["parts"]
    head = 512 * 256 + 256 + 256 * 7 + 7
    assert parts["kind"] + parts["backbone"] - 2 * 512 + head == 12_743_687


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_by_a_tower_rows_told_by_language_do_not_see_the_goal(fusion: str) -> None:
    torch.manual_seed(0)
    config = load_config("tiny", None, TOWER, sections())
    seen = net(fusion, tower=FrozenFeatures(config.model, Squares()))
    now, goal, other = (torch.randn(3, 2, 4, 24, generator=torch.Generator().manual_seed(n)) for n in range(3))
    by_image = torch.tensor([True, False, True])
    rest = torch.randn(3, 9), seen.condition(torch.randn(3, 512))
    changed = (seen(now, *rest, goal, by_image).pose - seen(now, *rest, other, by_image).pose).abs().amax(dim=(1, 2))
    assert changed[1] == 0
    assert changed[0] > 1e-4
    assert changed[2] > 1e-4
    swapped = seen(now, *rest, goal.roll(1, 0), by_image).pose
    assert not torch.allclose(swapped[0], seen(now, *rest, goal, by_image).pose[0])


def test_counts() -> None:
    with torch.device("meta"):
        sizes = [net("late"), net("late", size=128, patch=16, width=192, heads=6, blocks=6)]
        early = net("early")
    assert [sum(p.numel() for p in each.parameters()) for each in sizes] == [179_718, 3_178_630]
    assert sum(p.numel() for p in early.parameters()) == 179_718 + 2 * 3 * 64 * 64  # three more channels a camera


@pytest.mark.parametrize(("fusion", "encoder"), WAYS)
def test_each_row_listens_to_its_own_kind_only(fusion: str, encoder: str | None) -> None:
    torch.manual_seed(0)
    model = net(fusion, encoder)
    images, there = pictures(4, 0), pictures(4, 1)
    robot, language = torch.randn(4, 9), torch.randn(4, 512)
    by_image = torch.tensor([True, False, True, False])
    one = model(images, robot, model.condition(language), there, by_image).pose
    two = model(images, robot, model.condition(language), tuple(255 - frames for frames in there), by_image).pose
    assert torch.equal(one[~by_image], two[~by_image])
    assert not torch.isclose(one[by_image], two[by_image]).all()
    other = model(images, robot, model.condition(-language), there, by_image).pose
    assert torch.equal(one[by_image], other[by_image])
    assert not torch.isclose(one[~by_image], other[~by_image]).all()


@pytest.mark.parametrize(("fusion", "encoder"), WAYS)
def test_what_a_row_told_by_language_does_has_no_gradient_to_the_goals_picture(
    fusion: str, encoder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the goal's pixels, or of the state that a frozen encoder made of them."""
    torch.manual_seed(0)
    model = net(fusion, encoder)
    images, there = pictures(4, 0), pictures(4, 1)
    goals: list[Tensor] = []
    if encoder is None:
        prepared = goal_module.prepare_pixels

        def seen(frames: Tensor, size: int) -> Tensor:
            pixels = prepared(frames, size)
            if not any(frames is picture for picture in there):
                return pixels
            goals.append(pixels.requires_grad_())
            return goals[-1]

        monkeypatch.setattr(goal_module, "prepare_pixels", seen)
    else:
        made = FrozenEncoder.state_of_pictures

        def told(self: FrozenEncoder, frames: tuple[Tensor, ...]) -> Tensor:
            state = made(self, frames)
            if frames is not there:
                return state
            goals.append(state.requires_grad_())
            return goals[-1]

        monkeypatch.setattr(FrozenEncoder, "state_of_pictures", told)
    by_image = torch.tensor([True, False, True, False])
    pose = model(images, torch.randn(4, 9), model.condition(torch.randn(4, 512)), there, by_image).pose
    for gradient in torch.autograd.grad(pose.square().sum(), goals):
        assert not gradient[~by_image].any()
        assert gradient[by_image].flatten(1).any(dim=1).all()
    assert len(goals) == (2 if encoder is None else 1)


def test_a_state_that_both_pictures_have_is_told_alike() -> None:
    """Current and goal tokens differ by learned embeddings alone, so that equal pictures can be seen to be equal."""
    torch.manual_seed(0)
    model = net("state", "temporal_jepa")
    images = pictures(3, 0)
    assert model.states is not None
    told = model.states(images, images, torch.ones(3, dtype=torch.bool), model.kind)
    now, there = told.chunk(2, dim=1)
    apart = model.states.time[1] + model.kind[1] - model.states.time[0]
    torch.testing.assert_close(there - now, apart.expand_as(now), rtol=1e-4, atol=1e-5)


def test_a_frozen_encoder_stays_as_it_is() -> None:
    model = policy("goal.fusion=state", "goal.image_share=1", *MICRO)
    assert model.encoder is not None
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    data = with_goal(batch(4))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    assert not any(module.training for module in model.encoder.modules())
    model.loss(model.terms(data, {"kind": torch.zeros(4)})).total.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    assert all(p.grad is None for p in model.encoder.parameters())
    assert model.net.states is not None
    assert all(p.grad is not None for p in model.net.states.parameters())


@pytest.mark.parametrize(("fusion", "encoder"), WAYS)
def test_swapping_two_rows_goals_swaps_what_they_do(fusion: str, encoder: str | None) -> None:
    torch.manual_seed(0)
    model = net(fusion, encoder)
    images = tuple(frames[:1].expand(2, -1, -1, -1) for frames in pictures(1, 0))
    there, robot = pictures(2, 1), torch.randn(1, 9).expand(2, -1)
    told = torch.ones(2, dtype=torch.bool)
    condition = model.condition(torch.randn(2, 512))
    one = model(images, robot, condition, there, told).pose
    two = model(images, robot, condition, tuple(frames.flip(0) for frames in there), told).pose
    torch.testing.assert_close(one.flip(0), two)
    assert not torch.allclose(one[0], one[1])


def test_the_share_of_pictures_is_that_of_the_noise() -> None:
    model, data = policy("goal.image_share=0.25"), with_goal(batch(6))
    kinds: list[Tensor] = []
    read = model.net.read
    model.net.read = lambda *given: (kinds.append(given[4]), read(*given))[1]  # type: ignore[method-assign]
    noise = {"kind": torch.tensor([0.0, 0.2, 0.3, 0.9, 0.24, 0.26])}
    model.terms(data, noise)
    assert kinds[0].tolist() == [True, True, False, False, True, False]
    drawn = model.draw(4000, torch.Generator().manual_seed(0))["kind"]
    assert (drawn < 0.25).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_validation_tells_each_kind_apart() -> None:
    model, data = policy().eval(), with_goal(batch(6))
    noise = model.draw(6, torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = model.monitors(model.terms(data, noise))
        alone = model.monitors(model.terms(batch(6), noise))
    assert set(told) == {"by_language", "by_image", "disagreement", "gripper_change_f1"}
    assert told["disagreement"] > 0
    assert set(alone) == {"gripper_change_f1"}


def test_it_learns_where_to_go_from_a_picture_alone() -> None:
    """Two goals, one scene: only the goal's picture says which way, and where nothing is left to do it stays."""
    model = policy("goal.image_share=1", "model.action_seq_len=2")
    nn.init.zeros_(model.net.head[2].weight)
    data = batch(3, chunk=2)
    still = {name: torch.zeros(3, 2, 7) for name in ("chunk",)}["chunk"]
    still[..., 6] = -1
    still[1, :, 0], still[2, :, 0] = 1.5, -1.5
    same = tuple(frames[:1].expand(3, -1, -1, -1) for frames in data.obs.images)
    seen = tuple(frames[:2] for frames in observations(2, seed=5).images)
    obs = dataclasses.replace(data.obs, images=same, robot_state=torch.zeros(3, 9), language=torch.zeros(3, 512))
    goal = dataclasses.replace(obs, images=tuple(torch.cat([a[:1], b]) for a, b in zip(same, seen, strict=True)))
    data = dataclasses.replace(data, obs=obs, goal=goal, chunk=still, is_pad=torch.zeros(3, 2, dtype=torch.bool))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(model.terms(data, {"kind": torch.zeros(3)})).total.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        scene = Scene(obs.images, obs.robot_state, model.condition(obs.language), None, torch.stack(goal.images, 1))
        x = model.decide(scene).chunk[..., 0].mean(dim=1)
    assert x[0].abs() < 0.4
    assert x[1] > 1
    assert x[2] < -1


def test_a_kind_that_it_was_not_trained_on_is_refused() -> None:
    data = batch(2)
    for share, goal, complaint in (
        (1, None, "told by image alone, and is told by language"),
        (0, torch.zeros(2, 2, 24, 24, 3, dtype=torch.uint8), "told by language alone, and is told by image"),
    ):
        model = policy(f"goal.image_share={share}").eval()
        scene = Scene(data.obs.images, data.obs.robot_state, model.condition(data.obs.language), None, goal)
        with pytest.raises(UsageError, match=complaint):
            model.decide(scene)


def test_it_trains_from_a_store(tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    config = load_config("tiny", None, (*SETTINGS, "training.max_steps=3"), sections())
    summary = train("goal", config, store, tmp_path / "run")
    assert summary.steps == 3
    lines = (tmp_path / "run" / "metrics_goal.jsonl").read_text()
    assert '"by_image"' in lines
