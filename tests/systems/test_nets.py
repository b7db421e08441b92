"""The networks of the systems by themselves: exact counts, closed forms, traps of published code."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statevla.models.act import ActNet, Gaussian, Seen, divergence
from statevla.models.stems import PATCH_STEMS
from statevla.systems.film import FilmNet
from statevla.systems.vla import FUSIONS, VlaNet
from stores.errors import UsageError
from stores.spec import LIBERO

SPEC: dict[str, Any] = {"chunk": 10, "spec": LIBERO}
ACT_TINY: dict[str, Any] = {
    "size": 64, "width": 64, "heads": 4, "hidden": 256, "chunk_blocks": 1, "blocks": 1, "decoder_blocks": 1,
    "latent": 8, "stages": (16, 32, 64), **SPEC,
}  # fmt: skip
ACT_SMALL: dict[str, Any] = {
    "size": 128, "width": 256, "heads": 8, "hidden": 1024, "chunk_blocks": 2, "blocks": 4, "decoder_blocks": 2,
    "latent": 32, "stages": (32, 64, 128, 256), **SPEC,
}  # fmt: skip


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def film(hidden: int = 64) -> FilmNet:
    return FilmNet(64, hidden, (16, 32, 64), **SPEC)


def vla(preset: str = "tiny", fusion: str = "concat", head: str = "continuous") -> VlaNet:
    sizes = {"tiny": (64, 8, 64, 4, 1, 2), "small": (128, 16, 192, 6, 4, 4), "document": (224, 14, 768, 12, 12, 6)}
    names = ("size", "patch", "width", "heads", "vision_blocks", "blocks")
    return VlaNet(fusion=fusion, head=head, **dict(zip(names, sizes[preset], strict=True)), **SPEC)


def scene(rows: int = 3, seed: int = 0) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, rows, 64, 64, 3), dtype=torch.uint8, generator=g)
    return tuple(images), torch.randn(rows, 9, generator=g), torch.randn(rows, 512, generator=g)


@pytest.mark.parametrize(
    ("fusion", "head", "tiny", "small", "document"),
    [
        ("concat", "continuous", 229_766, 4_068_550, 130_523_206),
        ("cross_attention", "chunked", 326_535, 4_948_807, 144_661_255),
        ("perceiver", "chunked", 277_447, 4_506_631, 137_584_135),
        ("concat", "discrete", 1_224_266, 7_021_450, 142_288_906),
    ],
)
def test_vla_counts(fusion: str, head: str, tiny: int, small: int, document: int) -> None:
    with torch.device("meta"):
        assert [count(vla(name, fusion, head)) for name in ("tiny", "small", "document")] == [tiny, small, document]


def test_act_counts() -> None:
    with torch.device("meta"):
        counts = [count(ActNet(**sizes, prior=p)) for sizes in (ACT_TINY, ACT_SMALL) for p in ("standard", "learned")]
    assert counts == [232_791, 271_399, 7_471_431, 7_687_303]


def test_film_counts() -> None:
    with torch.device("meta"):
        assert count(film()) == 191_590
        assert count(FilmNet(128, 256, (32, 64, 128, 256), **SPEC)) == 2_625_030


def test_film_starts_as_the_same_net_without_it() -> None:
    torch.manual_seed(0)
    net = film()
    images, _, language = scene()
    plain = net.see(images[0], net.condition(language))
    for generator in net.generators:
        generator.forward = lambda x, g=generator: x.new_zeros(len(x), g.out_features)  # type: ignore[method-assign]
    assert torch.equal(plain, net.see(images[0], net.condition(language)))


def test_every_film_generator_learns() -> None:
    torch.manual_seed(0)
    net = film()
    images, robot, language = scene()
    pose, logits = net(images, robot, net.condition(language))
    (pose.sum() + logits.sum()).backward()
    assert all(generator.weight.grad.abs().sum() > 0 for generator in net.generators)


def test_film_is_one_plus_gamma_times_x_plus_beta() -> None:
    torch.manual_seed(0)
    net = FilmNet(16, 8, (8,), **SPEC)
    stage, generator = net.stages[0], net.generators[0]
    nn.init.normal_(generator.weight)
    images, condition = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8), torch.randn(2, 8)
    gamma, beta = (condition @ generator.weight.T).chunk(2, dim=1)
    channels_last = stage(images.permute(0, 3, 1, 2) / 127.5 - 1).permute(0, 2, 3, 1)
    modulated = (channels_last * (1 + gamma[:, None, None]) + beta[:, None, None]).relu().permute(0, 3, 1, 2)
    expected = net.camera(nn.functional.adaptive_avg_pool2d(modulated, 4).flatten(1))
    torch.testing.assert_close(net.see(images, condition), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("head", ["continuous", "chunked"])
def test_a_vla_action_depends_on_instruction_robot_and_each_camera(fusion: str, head: str) -> None:
    torch.manual_seed(0)
    net = vla(fusion=fusion, head=head)
    images, robot, language = scene()
    robot.requires_grad_()
    language.requires_grad_()
    before = net(images, robot, net.condition(language)).pose
    before.square().sum().backward()
    assert robot.grad.abs().sum() > 0
    assert language.grad.abs().sum() > 0
    for camera in range(2):
        other = tuple(255 - frames if number == camera else frames for number, frames in enumerate(images))
        assert not torch.allclose(before, net(other, robot, net.condition(language)).pose)


@pytest.mark.parametrize("kind", PATCH_STEMS)
def test_what_a_patch_sees(kind: str) -> None:
    """With ``conv`` three stages of 3 × 3 and stride 2 reach 7 pixels to the left of a patch of 8, and none to its
    right; the norms of a stage see a little of everything, so they stand still here.
    """
    torch.manual_seed(0)
    stem = PATCH_STEMS[kind](64, 8, 64)
    for each in (each for each in stem.modules() if isinstance(each, nn.GroupNorm)):
        each.forward = lambda x: x  # type: ignore[method-assign]
    pixels = torch.randn(1, 3, 64, 64, requires_grad=True)
    out = stem(pixels)
    assert out.shape == (1, 64, 64)
    out[0, 8 * 3 + 4].square().sum().backward()  # the patch of rows 24 to 31, columns 32 to 39
    assert pixels.grad is not None
    seen = pixels.grad[0].abs().sum(dim=0) > 0
    rows, columns = seen.any(dim=1).nonzero().flatten().tolist(), seen.any(dim=0).nonzero().flatten().tolist()
    before = 7 if kind == "conv" else 0
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (24 - before, 31, 32 - before, 39)


def test_counts_of_stems_that_halve() -> None:
    def halving(widths: tuple[int, ...], out: int) -> int:
        return sum(b * (9 * a + 1) + 2 * b for a, b in itertools.pairwise(widths)) + out * (widths[-1] + 1)

    for patch, width, widths in ((8, 64, (16, 32, 64)), (16, 192, (24, 48, 96, 192)), (8, 192, (48, 96, 192))):
        for channels in (3, 6):
            assert count(PATCH_STEMS["conv"](64, patch, width, channels)) == halving((channels, *widths), width)
    with pytest.raises(UsageError, match=r"patch_size: .* expected 2, 4, 8, .* got 14"):
        PATCH_STEMS["conv"](224, 14, 768)


def test_patches_may_be_permuted_together_with_their_positions() -> None:
    torch.manual_seed(0)
    net = vla(fusion="perceiver")
    images, robot, language = scene(2)
    before = net(images, robot, net.condition(language)).pose
    order = torch.randperm(64)
    with torch.no_grad():
        net.vision.position[0] = net.vision.position[0][order]
    tiles = images[0].view(2, 8, 8, 8, 8, 3).permute(0, 1, 3, 2, 4, 5).reshape(2, 64, 8, 8, 3)[:, order]
    moved = tiles.view(2, 8, 8, 8, 8, 3).permute(0, 1, 3, 2, 4, 5).reshape(2, 64, 64, 3)
    images = (moved, images[1])
    torch.testing.assert_close(net(images, robot, net.condition(language)).pose, before, rtol=1e-4, atol=1e-5)


def test_divergence_is_torchs() -> None:
    torch.manual_seed(0)
    q, p = (Gaussian(torch.randn(4, 3), torch.randn(4, 3)) for _ in range(2))
    normal = [torch.distributions.Normal(g.mean, (0.5 * g.log_variance).exp()) for g in (q, p)]
    torch.testing.assert_close(divergence(q, p), torch.distributions.kl_divergence(*normal), rtol=1e-4, atol=1e-5)
    assert torch.equal(divergence(p, p), torch.zeros(4, 3))
    shifted = Gaussian(torch.full((1, 1), 3.0), torch.zeros(1, 1))
    assert divergence(shifted, Gaussian.standard(torch.zeros(1, 1))).item() == pytest.approx(4.5)


def test_reparametrized_samples_have_the_gaussians_moments() -> None:
    torch.manual_seed(0)
    gaussian = Gaussian(torch.tensor([[2.0]]), torch.tensor([[0.25]]).log())
    samples = gaussian.sample(torch.randn(100_000, 1))
    assert samples.mean().item() == pytest.approx(2, abs=0.01)
    assert samples.var().item() == pytest.approx(0.25, abs=0.01)


def test_padded_steps_are_hidden_from_acts_chunk_encoder() -> None:
    torch.manual_seed(0)
    net = ActNet(**ACT_TINY)
    robot, chunk = torch.randn(2, 9), torch.randn(2, 10, 7)
    is_pad = torch.zeros(2, 10, dtype=torch.bool)
    is_pad[:, 6:] = True
    other = chunk.clone()
    other[:, 6:] = 99
    torch.testing.assert_close(net.chunk_encoder(robot, chunk, is_pad)[0], net.chunk_encoder(robot, other, is_pad)[0])


def test_acts_queries_may_hold_the_instruction() -> None:
    """So that one layer can look for what it names; as many parameters."""
    torch.manual_seed(0)
    net, plain = ActNet(**ACT_TINY, ask=True), ActNet(**ACT_TINY)
    plain.load_state_dict(net.state_dict())
    images, robot, language = scene()
    latent = torch.randn(3, 8)
    memories: list[torch.Tensor] = []
    net.encoder.register_forward_hook(lambda module, given, out: memories.append(out))
    read = net.read(Seen(net.see(images), robot, language), latent)
    asked = net.queries(3) + net.language(language).unsqueeze(1)
    torch.testing.assert_close(read, net.norm(net.decoder[0](asked, memories[0])))
    assert not torch.allclose(read, plain.read(Seen(plain.see(images), robot, language), latent), atol=1e-3)


@pytest.mark.parametrize("head", ["continuous", "discrete", "chunked"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_vlas_readouts_may_hold_the_instruction(fusion: str, head: str) -> None:
    """And nothing else changes: neither parameters nor other tokens, as far as these do not look at the readouts."""
    torch.manual_seed(0)
    net, told = vla(fusion=fusion, head=head), vla(fusion=fusion, head=head)
    told.load_state_dict(net.state_dict())
    told.ask = True
    images, robot, language = scene()
    condition, vision = net.condition(language), net.vision(images)
    if fusion != "cross_attention":  # there the readouts and the text look at the pictures together
        count = net.chunk if head == "chunked" else 1
        plain, asked = (each.tokens(vision, robot, condition) for each in (net, told))
        torch.testing.assert_close(asked[:, :count] - plain[:, :count], condition.unsqueeze(1).expand(-1, count, -1))
        torch.testing.assert_close(asked[:, count:], plain[:, count:])
    assert not torch.allclose(told.read(vision, robot, condition), net.read(vision, robot, condition), atol=1e-3)


def test_acts_last_decoder_layer_learns() -> None:
    torch.manual_seed(0)
    net = ActNet(**{**ACT_TINY, "decoder_blocks": 3})
    images, robot, language = scene()
    pose, logits = net(images, robot, language, torch.zeros(3, 8))
    (pose.sum() + logits.sum()).backward()
    for layer in net.decoder:
        assert layer.layer.linear2.weight.grad.abs().sum() > 0
