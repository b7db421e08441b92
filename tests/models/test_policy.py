"""Phase 2 as a whole."""

import dataclasses

import numpy as np
import pytest
import torch

from statevla.data.batch import Batch
from statevla.models.encoder import StateEncoder
from statevla.systems.flow_matching import PolicyModel, draw_noise
from stores.spec import LIBERO
from tests.models.build import batch, loss_of, micro, normalization, observations, standardized

CONTEXTS = ["z", "z+tokens"]


def policy(context: str = "z", *overrides: str) -> PolicyModel:
    config = micro(f"model.policy_context={context}", *overrides)
    torch.manual_seed(0)
    return PolicyModel(config, StateEncoder(config.model, normalization()), normalization())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_loss_by_numpy() -> None:
    model, data = policy("z", "training.phase2.gripper_weight=0.5"), batch(6)
    result = loss_of(model, data, seeded(3))
    g = seeded(3)
    sigma = torch.rand(6, generator=g)
    epsilon = torch.randn(6, 10, 6, generator=g)
    clean = standardized("action", data.chunk.numpy())[..., :6]
    level = sigma.numpy()[:, None, None]
    noisy = (1 - level) * clean + level * epsilon.numpy()
    with torch.no_grad():
        z = model.encoder(data.obs).z
        velocity = model.flow(torch.from_numpy(noisy), sigma, z).numpy()
        logits = model.gripper(z).numpy().astype(np.float64)
    keep = ~data.is_pad.numpy()
    flow = ((velocity - (epsilon.numpy() - clean))[keep] ** 2).mean()
    closing = data.chunk[..., 6:].numpy() > 0
    bce = np.log1p(np.exp(np.where(closing, -logits, logits)))[keep].mean()
    assert float(result.parts["pos_rot_loss"]) == pytest.approx(flow, rel=1e-4)
    assert float(result.parts["gripper_loss"]) == pytest.approx(bce, rel=1e-4)
    assert float(result.parts["gripper_accuracy"]) == pytest.approx(((logits > 0) == closing)[keep].mean())
    assert result.total.item() == pytest.approx(flow + 0.5 * bce, rel=1e-4)
    assert float(result.weight) == keep.sum() == 53


@pytest.mark.parametrize("context", CONTEXTS)
def test_padded_steps_have_no_gradient_and_no_say(context: str) -> None:
    model, data = policy(context), batch(6)
    chunk = data.chunk.clone().requires_grad_()
    loss_of(model, dataclasses.replace(data, chunk=chunk), seeded()).total.backward()
    assert chunk.grad is not None
    assert not chunk.grad[data.is_pad].any()
    assert chunk.grad[..., :6][~data.is_pad].abs().sum(-1).min() > 0
    changed = data.chunk.clone()
    changed[data.is_pad] = -5
    assert torch.equal(
        loss_of(model, dataclasses.replace(data, chunk=changed), seeded()).total, loss_of(model, data, seeded()).total
    )


@pytest.mark.parametrize("context", CONTEXTS)
def test_gradient_reaches_all_but_the_frozen_encoder(context: str) -> None:
    model, data = policy(context, "model.policy_mlp=16"), batch(6)
    loss_of(model, data, seeded()).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("context", CONTEXTS)
def test_act_is_shaped_seeded_and_in_action_units(context: str) -> None:
    model, obs = policy(context), observations(3)
    chunk = model.act(obs, seeded(5))
    assert chunk.shape == (3, 10, 7)
    assert chunk.dtype == torch.float32
    assert torch.equal(chunk, model.act(obs, seeded(5)))
    assert not torch.allclose(chunk, model.act(obs, seeded(6)))
    assert set(chunk[..., 6].unique().tolist()) <= {-1.0, 1.0}


def test_act_is_euler_denormalized() -> None:
    model, obs = policy(), observations(3)
    epsilon = draw_noise(3, 10, seeded(5), torch.device("cpu")).epsilon
    with torch.no_grad():
        z, x = model.encoder(obs).z, epsilon
        for t in (1.0, 0.75, 0.5, 0.25):
            x = x - model.flow(x, torch.full((3,), t), z) / 4
        logits = model.gripper(z)
    actions = np.concatenate([x.numpy(), np.where(logits.numpy() > 0, 1, -1)], axis=-1)
    shift, scale = normalization().affine("action", LIBERO)
    expected = actions * scale + shift
    np.testing.assert_allclose(model.act(obs, seeded(5)).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_noise_comes_from_the_generator_alone() -> None:
    g = seeded(1)
    draw_noise(4, 10, g, torch.device("cpu"))
    state = g.get_state()
    torch.manual_seed(99)
    second = draw_noise(4, 10, g, torch.device("cpu"))
    torch.manual_seed(7)
    g.set_state(state)
    again = draw_noise(4, 10, g, torch.device("cpu"))
    assert torch.equal(second.sigma, again.sigma)
    assert torch.equal(second.epsilon, again.epsilon)


def test_noise_has_the_designs_distributions() -> None:
    noise = draw_noise(4000, 10, seeded(), torch.device("cpu"))
    sigma, epsilon = noise.sigma, noise.epsilon
    assert 0 <= sigma.min() < sigma.max() < 1
    assert float(sigma.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(sigma.var()) == pytest.approx(1 / 12, abs=0.005)
    assert float(epsilon.mean()) == pytest.approx(0, abs=0.01)
    assert float(epsilon.std()) == pytest.approx(1, abs=0.01)


def with_states(data: Batch, z: torch.Tensor) -> Batch:
    """The same batch with the encoder's states, as a cache of them gives it."""
    return dataclasses.replace(data, obs=dataclasses.replace(data.obs, latent=z))


def test_a_state_made_before_gives_the_same_loss() -> None:
    """What a cache of states relies on."""
    model, data = policy(), batch(6)
    again = loss_of(model, with_states(data, model.encode(data.obs).z), seeded())
    assert torch.equal(again.total, loss_of(model, data, seeded()).total)


def test_a_policy_learns_a_state_dependent_action() -> None:
    """The robot's first joint decides the direction: sampled chunks must follow it and the gripper too."""
    config = micro()
    torch.manual_seed(0)
    model = PolicyModel(config, StateEncoder(config.model))
    rows = 32
    side = torch.where(torch.arange(rows) % 2 == 0, 1.0, -1.0)
    z = torch.randn(rows, 32, generator=seeded(4)) * 0.2
    z[:, 0] = side
    chunk = side[:, None, None].expand(rows, 10, 7).contiguous()
    data = with_states(batch(rows), z)
    data = dataclasses.replace(data, chunk=chunk, is_pad=torch.zeros_like(data.is_pad))
    optimizer = torch.optim.AdamW([*model.flow.parameters(), *model.gripper.parameters()], lr=3e-3)
    g = seeded(2)
    for _ in range(150):
        loss = loss_of(model, data, g).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    actions = model.act(data.obs, seeded(9))
    assert (actions[..., :6] - chunk[..., :6]).abs().mean() < 0.3
    assert torch.equal(actions[..., 6], chunk[..., 6])


def test_a_loaded_state_dict_is_the_same_policy() -> None:
    trained, obs = policy(), observations(2)
    fresh = PolicyModel(micro(), StateEncoder(micro().model))
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.act(obs, seeded()), trained.act(obs, seeded()))
