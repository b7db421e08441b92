"""What StaMo paints: latents of its own autoencoder, of Stable Diffusion 3's; and how much what moves weighs."""

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from statevla.config.load import load_config
from statevla.encoders.sd3 import load_sd3
from statevla.models.canvas import OwnLatents
from statevla.models.dit import Dit
from statevla.models.kl_vae import KlVae
from statevla.runs.files import load_strict
from statevla.systems.describe import count, describe_system
from statevla.systems.stamo import StamoModel, build, build_states
from statevla.systems.system import Given
from statevla.systems.table import find_system, sections
from statevla.trainers.latents import made_from
from statevla.trainers.trainer import train
from stores.errors import UsageError
from stores.reader import Store
from tests.models.build import batch
from tests.systems.test_stamo import MICRO
from tests.trainers.micro import SETTINGS, at_step, micro_store

LEVELS = ("uniform", "logit_normal")
VAE = ("stamo.decoder=vae", "stamo.vae_steps=3", "stamo.image_size=32", "stamo.patch_size=2")


def model(*changes: str) -> StamoModel:
    torch.manual_seed(0)
    return build(load_config("tiny", None, (*MICRO, *changes), sections()), Given())


def step(made: StamoModel, optimizer: torch.optim.Optimizer, number: int, total: int = 9) -> dict[str, float]:
    data = batch(4)
    optimizer.zero_grad()
    loss = made.loss(made.terms(data, made.draw(4, torch.Generator().manual_seed(number))))
    loss.total.backward()
    optimizer.step()
    made.after_step(number, total)
    return {name: float(value) for name, value in loss.parts.items()}


def latest(run: Path) -> Path:
    return run / "checkpoints/stamo/checkpoint_latest"


def test_the_sizes_of_the_specification() -> None:
    assert count(KlVae()) == 737_227
    told = describe_system(find_system("stamo"), load_config("tiny", None, (*MICRO, *VAE), sections()))
    assert (told["parts"]["canvas"], told["frozen"]) == (737_227, 0)
    with torch.device("meta"):
        assert count(Dit(16, 2, 1024, 16, 16, 1024, 2, channels=16)) == 308_995_136


def test_latents_have_an_eighth_of_the_side_and_come_back_as_a_picture() -> None:
    torch.manual_seed(0)
    vae, pixels = KlVae(), torch.rand(2, 3, 32, 32) * 2 - 1
    mean, logvar = vae.encode(pixels)
    assert mean.shape == logvar.shape == (2, 4, 4, 4)
    assert vae.decode(mean).shape == pixels.shape
    absolute, divergence, _ = vae.errors(pixels, torch.zeros_like(mean))
    torch.testing.assert_close(absolute, (vae.decode(mean) - pixels).abs().mean(dim=(1, 2, 3)))
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(divergence, expected)


def test_latents_are_standardized_by_the_moments_of_training() -> None:
    torch.manual_seed(0)
    canvas, pixels = OwnLatents(32, 5), torch.rand(8, 3, 32, 32) * 2 - 1
    mean = canvas.vae.encode(pixels)[0].detach()
    canvas.follow(mean.mean(dim=(2, 3)), mean.square().mean(dim=(2, 3)))  # of the first step: its own
    painted = canvas.encode(pixels)
    torch.testing.assert_close(painted.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(painted.std(dim=(0, 2, 3), correction=0), torch.ones(4), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(canvas.decode(painted), canvas.vae.decode(mean), rtol=1e-3, atol=1e-4)
    assert not painted.requires_grad


def test_the_autoencoder_is_trained_first_and_then_stays() -> None:
    made = model(*VAE).train()
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3)
    found = []
    for number in range(6):
        before = {name: value.clone() for name, value in made.state_dict().items()}
        found.append(set(step(made, optimizer, number)))
        moved = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
        moved -= {"canvas.trained"}
        assert ("canvas.moments" in moved) == (number < 3)
        assert all(name.startswith("canvas.") == (number < 3) for name in moved)
    assert found == [{"absolute", "divergence"}] * 3 + [{"velocity_mse"}] * 3
    painted = made.decode(torch.randn(2, 4, 8), torch.Generator().manual_seed(0), steps=2)
    assert (painted.shape, painted.dtype) == ((2, 2, 32, 32, 3), torch.uint8)


@pytest.mark.resume
@pytest.mark.slow
def test_it_goes_on_from_the_middle_of_its_autoencoder_to_the_bit(tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    config = load_config("tiny", None, (*SETTINGS, *MICRO, *VAE, "training.max_steps=6"), sections())
    train("stamo", config, store, tmp_path / "whole")
    for number in (2, 3):
        run = tmp_path / f"stopped{number}"
        train("stamo", config, store, run, progress=at_step(number, lambda: signal.raise_signal(signal.SIGINT)))
        train("stamo", config, store, run, resume=True)
        mine, whole = (load_file(latest(folder) / "model.safetensors") for folder in (run, tmp_path / "whole"))
        assert all(torch.equal(value, mine[name]) for name, value in whole.items())
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics_stamo.jsonl").read_text().splitlines()]
    assert {"absolute", "shuffled_ratio"} <= set(next(line for line in lines if line["kind"] == "val"))


def test_a_run_that_is_too_short_for_its_autoencoder_and_sizes_that_do_not_fit(tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    config = load_config("tiny", None, (*SETTINGS, *MICRO, *VAE, "training.max_steps=3"), sections())
    with pytest.raises(UsageError, match=r"stamo.vae_steps: 3 of a run of 3 steps, which leaves none"):
        train("stamo", config, store, tmp_path / "run")
    with pytest.raises(UsageError, match=r"stamo.image_size: 36 is not a multiple of 8, by which decoder vae shrinks"):
        model(*VAE, "stamo.image_size=36")
    with pytest.raises(
        UsageError, match=r"image_size: 32, of which latents have 4 a side, is not a multiple of stamo.patch_size 8"
    ):
        model(*VAE, "stamo.patch_size=8")


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both of Stable Diffusion 3's classes with random weights, as a hub's repository has them."""
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'statevla[stamo]'")
    folder = tmp_path_factory.mktemp("sd3")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4, scaling_factor=1.5, shift_factor=0.25,
    ).save_pretrained(folder / "vae")  # fmt: skip
    diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=24, caption_projection_dim=16, pooled_projection_dim=12,
        pos_embed_max_size=8,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    return folder


def settings(folder: Path) -> tuple[str, ...]:
    return ("stamo.decoder=sd3", f"stamo.sd3_model={folder}", "stamo.predict=v", "stamo.image_size=32")


def test_sd3_is_told_states_in_place_of_a_text(sd3: Path) -> None:
    made = model(*settings(sd3))
    told: dict[str, Any] = {}
    forward = made.decoder.transformer.forward

    def heard(**given: Any) -> Any:
        told.update(given)
        return forward(**given)

    made.decoder.transformer.forward = heard
    noisy, sigma, state = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 0.5, 1.0]), torch.randn(3, 2, 8)
    velocity = made.velocity(noisy, sigma, state, 0)
    assert velocity.shape == noisy.shape
    assert told["timestep"].tolist() == [0, 500, 1000]
    torch.testing.assert_close(told["encoder_hidden_states"], made.decoder.state_token(state))
    torch.testing.assert_close(told["pooled_projections"], made.decoder.whole_state(state.mean(dim=1)))
    others = made.velocity(noisy, sigma, state.flip(0), 0)
    assert not torch.allclose(others[0], velocity[0])
    torch.testing.assert_close(others[1], velocity[1])  # its state stands where it stood


def test_sd3s_latents_are_shifted_and_scaled_in_and_out(sd3: Path) -> None:
    made = model(*settings(sd3))
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        z = made.canvas.vae.encode(pixels).latent_dist.mode()
        wanted = made.canvas.vae.decode(z).sample
        painted = made.canvas.encode(pixels)
        torch.testing.assert_close(painted, (z - 0.25) * 1.5)
        torch.testing.assert_close(made.canvas.decode(painted), wanted, rtol=1e-4, atol=1e-5)


def test_sd3_trains_from_a_store_and_its_autoencoder_stays(sd3: Path, tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    config = load_config("tiny", None, (*SETTINGS, *MICRO, *settings(sd3), "training.max_steps=2"), sections())
    train("stamo", config, store, tmp_path / "run")
    longer = load_config("tiny", None, (*SETTINGS, *MICRO, *settings(sd3), "training.max_steps=3"), sections())
    assert train("stamo", longer, store, tmp_path / "run", resume=True).steps == 3
    trained = load_file(latest(tmp_path / "run") / "model.safetensors")
    vae, transformer = load_sd3(str(sd3))
    for name, value in vae.state_dict().items():
        assert torch.equal(trained[f"canvas.vae.{name}"], value)
    assert any(
        not torch.equal(trained[f"decoder.transformer.{name}"], value)
        for name, value in transformer.state_dict().items()
    )
    told = describe_system(find_system("stamo"), config)
    assert told["frozen"] == count(vae)
    assert told["parts"]["decoder"] == count(transformer) + 8 * (24 + 12) + 24 + 12


LORA = "stamo.sd3_lora=3"


@pytest.fixture
def peft() -> None:
    pytest.importorskip("peft", reason="needs peft: pip install 'statevla[stamo]'")


@pytest.mark.usefixtures("peft")
def test_adapters_change_nothing_at_first_and_add_b_a_x(sd3: Path) -> None:
    plain, made = model(*settings(sd3)), model(*settings(sd3), LORA)
    for mine, theirs in (
        (made.decoder.state_token, plain.decoder.state_token),
        (made.decoder.whole_state, plain.decoder.whole_state),
    ):
        mine.load_state_dict(theirs.state_dict())
    given = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 0.5, 1.0]), torch.randn(3, 2, 8), 0
    torch.testing.assert_close(made.velocity(*given), plain.velocity(*given))
    blocks = made.decoder.transformer.transformer_blocks
    layer, x = blocks[0].attn.to_q, torch.randn(5, 16)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    assert (a.shape, b.shape) == ((3, 16), (16, 3))
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ a.T @ b.T)
    assert not torch.allclose(made.velocity(*given), plain.velocity(*given))
    adapted = {
        name.rpartition(".lora_A")[0] for name, _ in made.decoder.transformer.named_parameters() if "lora_A" in name
    }
    each = {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"}
    assert adapted == {f"transformer_blocks.{n}.attn.{name}" for n in range(2) for name in each} | {
        "transformer_blocks.0.attn.to_add_out"
    }, "the last block gives no text on"


@pytest.mark.usefixtures("peft")
def test_adapters_and_compressor_alone_are_trained_and_saved(sd3: Path, tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    told = (*SETTINGS, *MICRO, *settings(sd3), LORA)
    config = load_config("tiny", None, (*told, "training.max_steps=3"), sections())
    train("stamo", config, store, tmp_path / "whole")
    run = tmp_path / "part"
    train("stamo", config, store, run, progress=at_step(2, lambda: signal.raise_signal(signal.SIGINT)))
    train("stamo", config, store, run, resume=True)
    whole, part = (load_file(latest(folder) / "model.safetensors") for folder in (tmp_path / "whole", run))
    assert all(torch.equal(value, part[name]) for name, value in whole.items())
    pretrained = {name for name in whole if name.startswith(("canvas.vae.", "decoder.transformer."))}
    left = {name for name in pretrained if "lora_" not in name}
    assert left == {"canvas.vae.origin", "decoder.transformer.origin"}
    assert any(whole[name].any() for name in pretrained if "lora_B" in name)
    optimized = {name.rpartition("/")[0] for name in load_file(latest(run) / "optimizer.safetensors")}
    assert {name for name in optimized if name.startswith("decoder.transformer.")} == pretrained - left
    assert any(name.startswith("compressor.") for name in optimized)
    made = model(*settings(sd3), LORA)
    vae, transformer = load_sd3(str(sd3))
    load_strict(made, whole, "here")
    frozen = {name.replace(".base_layer", ""): value for name, value in made.decoder.transformer.named_parameters()}
    assert all(torch.equal(frozen[name], value) for name, value in transformer.named_parameters())
    assert all(torch.equal(made.canvas.vae.get_parameter(name), value) for name, value in vae.named_parameters())
    told_of = describe_system(find_system("stamo"), config)
    assert told_of["frozen"] == count(vae) + count(transformer)
    assert told_of["parts"]["decoder"] == sum(whole[n].numel() for n in pretrained - left) + 8 * (24 + 12) + 24 + 12


@pytest.mark.usefixtures("peft")
def test_adapters_beside_other_weights_than_they_were_trained_beside(sd3: Path, tmp_path: Path) -> None:
    saved = model(*settings(sd3), LORA).state_dict()
    vae, transformer = load_sd3(str(sd3))
    with torch.no_grad():
        next(transformer.parameters()).add_(1e-3)
    vae.save_pretrained(tmp_path / "vae")
    transformer.save_pretrained(tmp_path / "transformer")
    with pytest.raises(UsageError, match=r"stamo.sd3_model: other weights than those that the checkpoint was trained"):
        load_strict(model(*settings(tmp_path), LORA), saved, "here")


def test_adapters_that_cannot_be_had_are_one_line(sd3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"stamo.sd3_lora: 3 is of stamo.decoder=sd3, got pixel; set one of the two"):
        model(LORA)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"stamo.sd3_lora: the package peft cannot be imported .*statevla\[stamo\]'"):
        model(*settings(sd3), LORA)


def test_sd3_that_cannot_be_had_is_one_line(sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"stamo.predict: x, but what decoder sd3 gives is the velocity; set it to v"):
        model(*settings(sd3), "stamo.predict=x")
    with pytest.raises(UsageError, match=r"stamo.image_size: 128: .*|stamo.image_size: latents of 32 a side, but the"):
        model(*settings(sd3), "stamo.image_size=128")
    (tmp_path / "vae").mkdir()
    with pytest.raises(UsageError, match=r"stamo.decoder sd3: no usable weights at .* set stamo.sd3_model to a folder"):
        load_sd3(str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"no usable weights at 'no/such-model'"):
        load_sd3("no/such-model")


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"diffusers cannot be imported .*: pip install 'statevla\[stamo\]'"):
        load_sd3("anything")


def test_states_alone_need_no_decoder_width_that_the_heads_share() -> None:
    told = ("stamo.decoder=sd3", "stamo.predict=v", "stamo.heads=6", "stamo.width=96", "stamo.decoder_width=128")
    model = build_states(load_config("tiny", None, told, sections()), Given())
    assert model.state(batch(2).obs).shape == (2, *model.state_shape)


def test_levels_are_uniform_or_of_a_normal_number() -> None:
    rows, normal = 4000, torch.distributions.Normal(0.0, 1.0)
    draw = {name: model(f"stamo.levels={name}").draw(rows, torch.Generator().manual_seed(0))["sigma"].flatten()
            for name in LEVELS}  # fmt: skip
    shares = {"uniform": draw["uniform"], "logit_normal": normal.cdf(torch.logit(draw["logit_normal"]))}
    for share in shares.values():  # of either, its distribution function is uniform
        counts = torch.histc(share, 10, 0, 1)
        assert ((counts - 2 * rows / 10).square() / (2 * rows / 10)).sum() < 27.9  # χ², 9 degrees, 0.1 %
    assert (draw["logit_normal"] - 0.5).abs().mean() < 0.2 < (draw["uniform"] - 0.5).abs().mean()


def test_how_levels_were_drawn_is_no_part_of_what_kept_states_are(tmp_path: Path) -> None:
    """As before there was a choice: states that were kept then are found."""
    store = Store.open(micro_store(tmp_path / "store"))
    configs = [load_config("tiny", None, (*MICRO, f"stamo.levels={name}"), sections()) for name in LEVELS]
    torch.manual_seed(0)
    weights = build(configs[0], Given()).state_dict()
    made = []
    for config in configs:
        encoder = build(config, Given())
        encoder.load_state_dict(weights)
        made.append(made_from(store, encoder, config.model, None, False))
    assert made[0] == made[1]
    assert "levels" not in made[0]["stamo"]
    assert made[0]["stamo"]["state_width"] == 8


def test_patches_that_move_weigh_more_and_all_weigh_one_on_average() -> None:
    made = model("stamo.motion_weight=3", "stamo.motion_threshold=0.1")
    now = torch.zeros(2, 3, 16, 16)
    then = now.clone()
    then[0, 1, 5, 9] = 0.5  # a quarter of the range, in patch (1, 2) of 4 x 4
    then[1, :, 0, 0] = 0.1  # too little
    weight = made.motion(now, then)
    torch.testing.assert_close(weight.mean(dim=(1, 2, 3)), torch.ones(2))
    torch.testing.assert_close(weight[1], torch.ones(1, 16, 16))
    moving = weight[0, 0, 4:8, 8:12]
    torch.testing.assert_close(moving, torch.full((4, 4), 4 / (19 / 16)))
    torch.testing.assert_close(weight[0, 0, 8:], torch.full((8, 16), 1 / (19 / 16)))


def test_the_loss_is_weighted_only_where_that_is_asked_for() -> None:
    plain, weighted = model(), model("stamo.motion_weight=4")
    assert (plain.needs.offsets, weighted.needs.offsets) == ((0,), (0, 5))
    data = batch(4)
    noise = plain.draw(4, torch.Generator().manual_seed(0))
    error = plain.terms(data, noise)["error"]
    still = dataclasses.replace(data, next_obs=data.obs)
    torch.testing.assert_close(weighted.terms(still, noise)["error"], error)
    images = tuple(frames.clone() for frames in data.obs.images)
    images[1][2, :12, :12] = 255 - images[1][2, :12, :12]
    moved = dataclasses.replace(data, next_obs=dataclasses.replace(data.obs, images=images))
    found = weighted.terms(moved, noise)["error"]
    torch.testing.assert_close(found[[0, 1, 3]], error[[0, 1, 3]])
    assert not torch.isclose(found[2], error[2])


def test_motion_comes_with_the_store(tmp_path: Path) -> None:
    changes = ("stamo.motion_weight=4", "stamo.motion_steps=2", "training.max_steps=2")
    config = load_config("tiny", None, (*SETTINGS, *MICRO, *changes), sections())
    assert train("stamo", config, micro_store(tmp_path / "store"), tmp_path / "run").steps == 2
