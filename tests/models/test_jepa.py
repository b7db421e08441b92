"""Phase 1 as a whole."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.encoders.vision import load_backbone
from statevla.models.losses import sigreg
from statevla.models.tokenizer import Backbone
from statevla.systems.temporal_jepa import JepaModel
from tests.models.build import batch, loss_of, micro, normalization, standardized
from tests.models.test_losses import vicreg

INVERSE = "training.phase1.inverse_dynamics_weight=0.3"


def nudged(model: JepaModel) -> JepaModel:
    """Past the zero-initialised layer, and with a target that differs from the encoder."""
    torch.manual_seed(1)
    torch.nn.init.normal_(model.predictor.delta.weight, std=0.1)
    with torch.no_grad():
        for parameter in model.target.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SigLIP tower of 4 patches and width 12, saved as `from_pretrained` wants it."""
    transformers = pytest.importorskip("transformers")
    folder: Path = tmp_path_factory.mktemp("siglip")
    sizes = transformers.SiglipVisionConfig(
        hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    transformers.SiglipVisionModel(sizes).save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def backbone_of(config: object) -> Backbone | None:
    return load_backbone(config.model, torch.device("cpu"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("horizon", [1, 3])
def test_total_by_numpy(horizon: int) -> None:
    config = micro(
        INVERSE,
        f"training.phase1.inverse_dynamics_horizon={horizon}",
        "training.phase1.variance_weight=0.7",
        "training.phase1.covariance_weight=0.2",
    )
    model, data = nudged(JepaModel(config, normalization())), batch(6)
    with torch.no_grad():
        action = torch.from_numpy(standardized("action", data.action.numpy()))
        z, wanted = model.encoder(data.obs).z, model.target(data.next_obs).z
        predicted, inverse = model.predictor(z, action), model.inverse(z, wanted)
    future = standardized("action", data.chunk.numpy())[:, :horizon]
    kept = [
        row.astype(np.float64)[1:] for row in (z.numpy(), wanted.numpy(), predicted.numpy(), future, inverse.numpy())
    ]
    z64, wanted64, predicted64, future64, inverse64 = kept
    told = ~data.is_pad.numpy()[1:, :horizon]
    variance, covariance = vicreg(predicted64)
    mse, inverse_mse = ((predicted64 - wanted64) ** 2).mean(), ((inverse64 - future64) ** 2)[told].mean()
    result = loss_of(model, data)
    assert result.total.item() == pytest.approx(mse + 0.7 * variance + 0.2 * covariance + 0.3 * inverse_mse, rel=1e-4)
    assert float(result.parts["jepa_mse"]) == pytest.approx(mse, rel=1e-4)
    assert float(result.parts["copy_mse"]) == pytest.approx(((z64 - wanted64) ** 2).mean(), rel=1e-4)
    assert float(result.parts["z_std"]) == pytest.approx(z64.std(axis=0, ddof=1).mean(), rel=1e-4)
    assert float(result.weight) == 5


def test_a_gap_is_as_many_steps_of_the_predictor() -> None:
    model = nudged(JepaModel(micro("training.phase1.gap=3"), normalization()))
    data = dataclasses.replace(batch(6), ahead=torch.tensor([0, 1, 2, 3, 3, 1]))
    chunk = torch.from_numpy(standardized("action", data.chunk.numpy()))
    with torch.no_grad():
        terms = model.terms(data, {})
        for row, ahead in enumerate(data.ahead.tolist()):
            z = terms["z"][row : row + 1]
            for step in range(ahead):
                z = model.predictor(z, chunk[row : row + 1, step])
            torch.testing.assert_close(terms["predicted"][row : row + 1], z)
    assert model.needs.offsets == (0, 3)
    assert terms["keep"].tolist() == [False, True, True, True, True, True]


def test_sigreg_joins_the_loss_of_the_states_that_are_named() -> None:
    keys = ("regularize=both", "variance_weight=0", "covariance_weight=0", "sigreg_weight=0.3")
    config = micro(*(f"training.phase1.{key}" for key in keys))
    model, data = nudged(JepaModel(config, normalization())), batch(6)
    noise = model.draw(6, torch.Generator().manual_seed(4))
    assert noise["directions"].shape == (6, model.width)
    with torch.no_grad():
        terms = model.terms(data, noise)
        found = model.loss(terms)
    wanted = sum(sigreg(terms[name], terms["keep"], noise["directions"]) for name in ("z", "predicted"))
    assert float(found.parts["jepa_sigreg"]) == pytest.approx(float(wanted))
    assert float(found.total) == pytest.approx(float(found.parts["jepa_mse"] + 0.3 * wanted))


@pytest.mark.parametrize("where", ["z_next", "z", "both"])
def test_vicreg_takes_the_states_that_are_named(where: str) -> None:
    config = micro(f"training.phase1.regularize={where}")
    model, data = nudged(JepaModel(config, normalization())), batch(6)
    terms = model.terms(data, {})
    states = {"z": terms["z"], "z_next": terms["predicted"]}
    each = [vicreg(states[name].detach().numpy().astype(np.float64)[1:]) for name in states if where in (name, "both")]
    parts = model.loss(terms).parts
    assert float(parts["jepa_variance"]) == pytest.approx(sum(variance for variance, _ in each), rel=1e-4)
    assert float(parts["jepa_covariance"]) == pytest.approx(sum(covariance for _, covariance in each), rel=1e-4)


def test_variance_of_the_predictions_is_satisfied_by_a_constant_encoder_that_of_the_states_is_not() -> None:
    """The predictor can make the variance out of the action."""
    keep, constant = torch.ones(8, dtype=torch.bool), torch.zeros(8, 4)
    noisy = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) * 2
    found = {}
    for where in ("z_next", "z", "both"):
        model = JepaModel(micro(f"training.phase1.regularize={where}"))
        terms = {"z": constant, "predicted": noisy, "wanted": constant, "keep": keep}
        found[where] = float(model.loss(terms).parts["jepa_variance"])
    assert found["z_next"] < 0.1 < 0.9 < found["z"] <= found["both"]


def test_rows_without_successor_change_nothing() -> None:
    model, data = nudged(JepaModel(micro())), batch(6)
    result = loss_of(model, data)
    images, action = [frames.clone() for frames in data.obs.images], data.action.clone()
    action[0] = 50.0
    for frames in images:
        frames[0] = 7
    obs = dataclasses.replace(data.obs, images=tuple(images))
    other = loss_of(model, dataclasses.replace(data, obs=obs, next_obs=obs, action=action))
    same = dataclasses.replace(data, obs=obs, action=action)
    assert loss_of(model, same).total.item() == pytest.approx(result.total.item(), rel=1e-5)
    assert other.total.item() != pytest.approx(result.total.item(), rel=1e-3)


def test_target_starts_equal_has_no_gradient_and_follows() -> None:
    model, data = JepaModel(micro()), batch(6)
    assert torch.equal(model.target_state(data), model.encoder.state(data.next_obs))
    torch.nn.init.normal_(model.predictor.delta.weight)
    loss_of(model, data).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    before = model.target.state_projection[0].weight.clone()
    with torch.no_grad():
        model.encoder.state_projection[0].weight.add_(1)
    model.update_target(0.9)
    torch.testing.assert_close(model.target.state_projection[0].weight, before + 0.1)


@pytest.mark.parametrize("vision", ["conv", "siglip"])
def test_a_gradient_reaches_every_trained_parameter_and_a_few_steps_learn(vision: str, siglip: Path) -> None:
    config = micro(INVERSE, f"model.vision={vision}", f"model.vision_model={siglip}", "model.vision_width=12")
    torch.manual_seed(0)
    model, data = JepaModel(config, normalization(), backbone_of(config)), batch(8)
    torch.nn.init.normal_(model.predictor.delta.weight, std=0.1)
    loss_of(model, data).total.backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        result = loss_of(model, data)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        losses.append(result.total.item())
    assert losses[-1] < 0.7 * losses[0]


def test_bfloat16_autocast_gives_nearly_the_same_loss_in_float32() -> None:
    model, data = nudged(JepaModel(micro())), batch(8)
    plain = loss_of(model, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss_of(model, data)
    assert mixed.total.dtype == torch.float32
    assert mixed.total.item() == pytest.approx(plain.total.item(), rel=0.1)
    mixed.total.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_siglip_tower_is_not_in_the_state_dict(siglip: Path) -> None:
    config = micro("model.vision=siglip", f"model.vision_model={siglip}", "model.vision_width=12")
    names = set(JepaModel(config, None, backbone_of(config)).state_dict())
    assert names == set(JepaModel(config).state_dict())
    assert "encoder.tokenizer.vision.cameras.0.weight" in names
    assert "encoder.tokenizer.standardize_robot_state.shift" in names
