"""A code of what happened between two states, learned without actions: what it must tell and what it must not."""

import numpy as np
import pytest
import torch

from statevla.models.latent_actions import LatentActions

CHANGES = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))


def pairs(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States of 8 numbers, moved by two hidden causes, and these; numbers of very different size."""
    g = torch.Generator().manual_seed(seed)
    now, cause = torch.randn(rows, 8, generator=g), torch.randn(rows, 2, generator=g)
    scale = torch.tensor([1.0, 100.0, 0.01, 1.0, 5.0, 1.0, 1.0, 1.0])
    return now * scale, (now + cause @ CHANGES) * scale, cause


def made(code: int, seed: int = 0) -> LatentActions:
    torch.manual_seed(seed)
    return LatentActions(8, code)


def ratio(model: LatentActions, seed: int) -> float:
    now, later, _ = pairs(500, seed)
    found = model.errors(now, later)
    return float(found["code_error"].mean() / found["code_moved"].mean())


@pytest.mark.slow
def test_a_code_as_wide_as_the_causes_tells_them_and_a_narrower_one_cannot() -> None:
    now, later, _ = pairs(4000, 0)
    wide, narrow = made(2), made(1)
    for model in (wide, narrow):
        model.fit(now, later, steps=600)
    assert ratio(wide, 1) < 0.05, "of pairs that it has not seen"
    assert ratio(narrow, 1) > 4 * ratio(wide, 1)
    seen, cause = wide(now, later).numpy(), pairs(4000, 0)[2].numpy()
    inputs = np.concatenate([seen, np.ones((len(seen), 1))], axis=1)
    rest = cause - inputs @ np.linalg.lstsq(inputs, cause, rcond=None)[0]
    assert 1 - (rest**2).sum() / ((cause - cause.mean(axis=0)) ** 2).sum() > 0.9, "a line from the code to the causes"


def test_the_error_is_its_formula_on_standardized_states() -> None:
    model, (now, later, _) = made(3), pairs(64, 0)
    model.fit(now, later, steps=2)
    mean, std = now.mean(dim=0), now.std(dim=0, correction=0)
    here, there = (now - mean) / std, (later - mean) / std
    code = model.inverse(torch.cat([here, there], dim=1))
    torch.testing.assert_close(model(now, later), code)
    told = here + model.forward_model(torch.cat([here, code], dim=1))
    found = model.errors(now, later)
    torch.testing.assert_close(found["code_error"], (told - there).square().mean(dim=1))
    torch.testing.assert_close(found["code_moved"], (here - there).square().mean(dim=1))


def test_fitting_is_a_function_of_weights_and_pairs_and_leaves_torchs_generator_alone() -> None:
    now, later, _ = pairs(300, 0)
    one, two, other = made(2), made(2), made(2, seed=1)
    one.fit(now, later, steps=5)
    state = torch.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        two.fit(now, later, steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    other.fit(now, later, steps=5)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one(now, later), other(now, later))


@pytest.mark.parametrize("fitted", [False, True])
def test_a_policys_training_does_not_touch_it(fitted: bool) -> None:
    model, (now, later, _) = made(2), pairs(20, 0)
    if fitted:
        model.fit(now, later, steps=2)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not model(now, later).requires_grad


def test_a_number_that_never_changes_is_no_division_by_nothing() -> None:
    now, later, _ = pairs(50, 0)
    now[:, 2] = later[:, 2] = 7.0
    model = made(2)
    model.fit(now, later, steps=3)
    assert model(now, later).isfinite().all()
