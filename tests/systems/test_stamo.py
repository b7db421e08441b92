"""StaMo by itself: closed forms of the painter, what the state is, and that training makes the painter use it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from statevla.config.load import load_config
from statevla.models.dit import Dit, DitBlock, patches_of, pixels_of
from statevla.systems.stamo import StamoModel, build
from statevla.systems.system import Given
from statevla.systems.table import sections
from statevla.trainers.trainer import train
from stores.errors import UsageError
from tests.models.build import batch, observations
from tests.trainers.micro import SETTINGS, micro_store

MICRO = (
    "stamo.image_size=16", "stamo.patch_size=4", "stamo.stages=8-16", "stamo.stem_width=16", "stamo.width=32",
    "stamo.depth=1", "stamo.state_width=8", "stamo.decoder_width=32", "stamo.decoder_depth=1",
)  # fmt: skip


def model(*changes: str) -> StamoModel:
    torch.manual_seed(0)
    return build(load_config("tiny", None, (*MICRO, *changes), sections()), Given())


def test_patches_and_back() -> None:
    pixels = torch.randn(2, 3, 16, 16)
    patches = patches_of(pixels, 4)
    assert patches.shape == (2, 16, 48)
    assert torch.equal(patches[1, 5].view(3, 4, 4), pixels[1, :, 4:8, 4:8])
    assert torch.equal(pixels_of(patches, 4, 16), pixels)


def test_a_block_is_the_identity_and_the_painter_gives_nothing_before_training() -> None:
    x, c = torch.randn(2, 5, 32), torch.randn(2, 32)
    assert torch.equal(DitBlock(32, 4)(x, c), x)
    dit = Dit(16, 4, 32, 4, 2, 8, 2)
    out = dit(torch.randn(2, 3, 16, 16), torch.rand(2), torch.randn(2, 2, 8), torch.zeros(2, 32))
    assert torch.equal(out, torch.zeros_like(out))


def test_the_first_loss_of_a_predicted_velocity_is_one_and_the_pictures_square() -> None:
    made, data = model("stamo.predict=v"), batch(16)
    noise = made.draw(16, torch.Generator().manual_seed(0))
    expected = sum(
        (noise["epsilon"][:, camera] - pixels).square().mean() for camera, pixels in enumerate(_pixels(data.obs.images))
    )
    loss = made.loss(made.terms(data, noise)).total
    torch.testing.assert_close(loss, expected / 2)
    squares = torch.stack([pixels.square().mean() for pixels in _pixels(data.obs.images)]).mean()
    assert loss.item() == pytest.approx(1 + squares.item(), rel=0.05)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_painter_that_knows_the_picture_paints_it_exactly(steps: int) -> None:
    made = model()
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    made.decoder.forward = lambda noisy, *rest: picture.expand(len(noisy), -1, -1, -1)  # type: ignore[method-assign]
    painted = made.decode(torch.randn(3, 4, 8), torch.Generator().manual_seed(5), steps)
    wanted = ((picture[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    assert painted.shape == (3, 2, 16, 16, 3)
    assert (painted.int() - wanted.int()).abs().max() <= 1


def test_states_are_normalized_by_token_and_rows_do_not_see_each_other() -> None:
    made = model().eval()
    obs = observations(4)
    with torch.inference_mode():
        state = made.state(obs)
        alone = made.state(obs.each(lambda tensor: tensor[2:3]))
    assert state.shape == (4, *made.state_shape) == (4, 4, 8)
    torch.testing.assert_close(state.mean(dim=-1), torch.zeros(4, 4), rtol=0, atol=1e-5)
    assert (state.var(dim=-1, unbiased=False) - 1).abs().max() < 0.3  # 1 but for the norm's ε
    torch.testing.assert_close(alone[0], state[2], rtol=1e-4, atol=1e-5)
    m = state[1:] - state[:-1]
    torch.testing.assert_close(m.sum(dim=0), state[-1] - state[0])


def test_state_tokens_may_be_permuted_together_with_their_positions() -> None:
    torch.manual_seed(0)
    dit = Dit(16, 4, 32, 4, 2, 8, 2)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    noisy, sigma, state, camera = torch.randn(2, 3, 16, 16), torch.rand(2), torch.randn(2, 2, 8), torch.zeros(2, 32)
    before = dit(noisy, sigma, state, camera)
    with torch.no_grad():
        dit.state_position.copy_(dit.state_position.flip(0))
        dit.whole_state.weight.copy_(dit.whole_state.weight.view(32, 2, 8).flip(1).flatten(1))
    torch.testing.assert_close(dit(noisy, sigma, state.flip(1), camera), before, rtol=1e-4, atol=1e-4)


def test_a_dropped_state_is_one_that_no_picture_has() -> None:
    state = torch.randn(3, 2, 8)
    drop = torch.tensor([True, False, True])
    kept = StamoModel.without(state, drop)
    assert torch.equal(kept[1], state[1])
    assert not kept[drop].any()


def test_the_loss_reaches_the_compressor_and_another_state_paints_another_picture() -> None:
    made, data = model("stamo.state_dropout=0"), batch(4)
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    for step in range(4):  # the painter's last layer is zero at first: it takes two steps until anything else learns
        optimizer.zero_grad()
        made.loss(made.terms(data, made.draw(4, torch.Generator().manual_seed(step)))).total.backward()
        optimizer.step()
    assert made.compressor.queries.grad is not None
    assert made.compressor.queries.grad.abs().sum() > 0
    assert made.stem.out.weight.grad.abs().sum() > 0
    noisy, sigma, camera = torch.randn(1, 3, 16, 16), torch.full((1,), 0.5), 0
    one, other = (made.velocity(noisy, sigma, torch.randn(1, 2, 8) * scale, camera) for scale in (1, -1))
    assert not torch.allclose(one, other)


def test_it_trains_from_a_store(tmp_path: Path) -> None:
    config = load_config("tiny", None, (*SETTINGS, *MICRO, "training.max_steps=3"), sections())
    summary = train("stamo", config, micro_store(tmp_path / "store"), tmp_path / "run")
    assert summary.steps == 3
    last = json.loads((tmp_path / "run" / "metrics_stamo.jsonl").read_text().splitlines()[-1])
    assert {"velocity_mse", "shuffled_ratio", "null_ratio", "z_rank", "z_std"} <= set(last)


def test_from_noise_alone_the_painter_is_told_by_the_pictures_own_error() -> None:
    made, data = model("stamo.levels=noise", "stamo.state_dropout=0"), batch(4)
    torch.nn.init.normal_(made.decoder.out.weight, std=0.1)
    noise = made.draw(4, torch.Generator().manual_seed(0))
    assert torch.equal(noise["sigma"], torch.ones(4, 2))
    state, expected = made.state(data.obs).chunk(2, dim=1), []
    for camera, pixels in enumerate(_pixels(data.obs.images)):
        where = made.camera[camera].expand(4, -1)
        told = made.decoder(noise["epsilon"][:, camera], torch.ones(4), state[camera], where)
        expected.append((told - pixels).square().mean())
    loss = made.loss(made.terms(data, noise))
    torch.testing.assert_close(loss.total, (expected[0] + expected[1]) / 2)
    made.eval()
    with torch.no_grad():
        terms = made.terms(data, noise)
        fixed = made.error(_pixels(data.obs.images)[0], torch.ones(4), noise["epsilon"][:, 0], state[0], 0)
        fixed = fixed + made.error(_pixels(data.obs.images)[1], torch.ones(4), noise["epsilon"][:, 1], state[1], 1)
    torch.testing.assert_close(terms["own"], fixed)
    one, many = (made.decode(torch.cat(state, 1), torch.Generator().manual_seed(1), steps) for steps in (1, 25))
    assert torch.equal(one, many)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.5])
def test_guidance_goes_from_no_state_to_the_state_and_past_it(guidance: float) -> None:
    made = model("stamo.predict=v")
    made.decoder.forward = lambda noisy, sigma, state, camera: (  # type: ignore[method-assign]
        noisy - state.mean(dim=(1, 2))[:, None, None, None]
    )
    state = torch.full((1, 4, 8), 0.3)
    painted = made.decode(state, torch.Generator().manual_seed(0), 1, guidance)
    assert torch.equal(painted, torch.full_like(painted, round((0.3 * guidance + 1) * 127.5)))


def test_cameras_that_are_not_named_are_not_seen() -> None:
    made, data = model("stamo.cameras=agentview").eval(), batch(3)
    assert made.state_shape == (2, 8)
    noise = made.draw(3, torch.Generator().manual_seed(0))
    assert noise["epsilon"].shape == (3, 1, 3, 16, 16)
    first, second = data.obs.images
    for images, same in (((first, 255 - second), True), ((255 - first, second), False)):
        other = dataclasses.replace(data, obs=dataclasses.replace(data.obs, images=images))
        with torch.no_grad():
            assert torch.equal(made.state(other.obs), made.state(data.obs)) is same
            assert torch.equal(made.terms(other, noise)["error"], made.terms(data, noise)["error"]) is same
    assert made.decode(made.state(data.obs), torch.Generator()).shape == (3, 1, 16, 16, 3)
    with pytest.raises(UsageError, match=r"stamo\.cameras: attic; the store has agentview, "):
        model("stamo.cameras=agentview,attic")


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(UsageError, match=r"stamo.image_size: 18 is not a multiple of stamo.patch_size 4"):
        model("stamo.image_size=18")


def _pixels(images: tuple[Tensor, ...]) -> list[Tensor]:
    from statevla.models.pixels import prepare_pixels

    return [prepare_pixels(frames, 16) for frames in images]
