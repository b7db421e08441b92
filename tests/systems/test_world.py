"""The head that foretells a frozen encoder's later state: what it is told, what it changes, and when it is asked."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from statevla.config import load_config
from statevla.config.world import WorldOptions
from statevla.data.batch import Batch
from statevla.data.needs import NOW
from statevla.models.flow import sinusoid
from statevla.models.latent_actions import LatentActions
from statevla.systems.acting import Scene
from statevla.systems.describe import describe_system
from statevla.systems.frozen import ENCODERS
from statevla.systems.system import Given
from statevla.systems.table import find_system, sections
from statevla.systems.world import Foretelling, WorldHead
from stores.errors import UsageError
from tests.models.build import batch, observations
from tests.systems.build import Case, with_states, with_world

FORETELLING = ("film", "act", "vla", "goal", "flow_matching")


def made(case: Case) -> Any:
    model = case.make()
    assert isinstance(model, Foretelling)
    return model


def drawn(model: Foretelling, rows: int, seed: int = 0) -> Mapping[str, Tensor]:
    return model.draw(rows, torch.Generator().manual_seed(seed))


def scene_of(model: Any, data: Batch) -> Scene:
    shape = model.noise_shape
    noise = None if shape is None else torch.randn(len(data), *shape, generator=torch.Generator().manual_seed(1))
    return Scene(data.obs.images, data.obs.robot_state, model.condition(data.obs.language), noise)


def loss_of(model: Foretelling, data: Batch) -> Tensor:
    return model.loss(model.terms(data, drawn(model, len(data)))).total


def later(data: Batch, seed: int = 7) -> Batch:
    return dataclasses.replace(data, next_obs=observations(len(data), seed=seed))


def test_count() -> None:
    """The specification's small variant: readout 512 and a chunk of 70 numbers to a state of 2 × 256."""
    assert (
        sum(p.numel() for p in WorldHead(512 + 70, 512, WorldOptions(world_target="state"), 10).parameters()) == 823_808
    )


@pytest.mark.parametrize("name", FORETELLING)
def test_it_changes_no_other_weight_and_nothing_of_what_is_done(name: str) -> None:
    off, on = made(Case(find_system(name))).eval(), made(with_world(name, "stamo", "state")).eval()
    assert (off.needs.offsets, off.fit_rows, off.world, off.learns_unlabelled) == (NOW.offsets, 0, None, False)
    assert (off.encoder is None) == (name != "flow_matching")
    assert not any("world" in key for key in off.state_dict())
    assert on.needs.offsets == (0, 1)
    if name == "flow_matching":  # no further encoder is drawn before, and the head is the last
        assert all(torch.equal(value, on.state_dict()[key]) for key, value in off.state_dict().items())
    on.load_state_dict(off.state_dict(), strict=False)
    data = batch(4)
    noise = drawn(off, 4)
    one, two = off.terms(data, noise), on.terms(data, noise)
    assert {term for term in two if term not in one} == {"world", "world_wanted", "world_copied", "world_keep"}
    assert all(torch.equal(value, two[term]) for term, value in one.items())
    parts = on.loss(two).parts
    assert all(torch.equal(value, parts[part]) for part, value in off.loss(one).parts.items())
    scene = scene_of(off, data)
    with torch.inference_mode():
        assert torch.equal(off.decide(scene).chunk, on.decide(scene).chunk)


def test_motions_add_up_and_standing_still_is_none() -> None:
    model = made(with_world("film", "stamo", "motions", "world_horizon=5"))
    data = with_states(model, batch(4))
    states = data.obs.extras["states"]
    motions = model.world.targets(data, model.state_of)[0]
    assert torch.allclose(motions.sum(dim=1), states[:, -1] - states[:, 0], atol=1e-5)
    still = {**data.obs.extras, "states": states[:, :1].expand_as(states)}
    rest = dataclasses.replace(data, obs=dataclasses.replace(data.obs, extras=still))
    assert not model.world.targets(rest, model.state_of)[0].any()


def test_only_the_head_and_what_is_frozen_are_more_parameters() -> None:
    for name in FORETELLING:
        parts = describe_system(find_system(name), with_world(name, "stamo", "state").config)
        plain = describe_system(find_system(name), Case(find_system(name)).config)
        assert {part: n for part, n in parts["parts"].items() if part != "world"} == plain["parts"]
        assert parts["parts"]["world"] > 0
        assert (plain["frozen"] > 0, parts["frozen"] > 0) == (name == "flow_matching", True)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_encoder_stays_as_it_acts(encoder: str) -> None:
    model = made(with_world("film", encoder, "state")).train()
    assert not any(part.training for part in model.encoder.modules())
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert model.net.training


@pytest.mark.parametrize("name", ["film", "flow_matching"])
def test_acting_asks_neither_head_nor_for_its_targets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(with_world(name, "temporal_jepa", "state")).eval()

    def refuse(*_: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(model.world, "forward", refuse)
    monkeypatch.setattr(model, "state_of", refuse)
    data = batch(2)
    with torch.inference_mode():
        model.decide(scene_of(model, data))
    with pytest.raises(AssertionError, match="asked"):
        loss_of(model, data)


@pytest.mark.parametrize(
    ("name", "encoder"), [*(("film", encoder) for encoder in ENCODERS), ("flow_matching", "temporal_jepa")]
)
@pytest.mark.parametrize("target", ["state", "motion"])
def test_what_it_is_to_foretell(name: str, encoder: str, target: str) -> None:
    model, data = made(with_world(name, encoder, target)), batch(6)
    with torch.no_grad():
        now, then = (model.encoder.state(obs).flatten(1) for obs in (data.obs, data.next_obs))
    wanted = then - now if target == "motion" else then
    noise = drawn(model, 6)
    terms = model.terms(data, noise)
    torch.testing.assert_close(terms["world_wanted"], wanted)
    torch.testing.assert_close(terms["world_copied"], torch.zeros_like(now) if target == "motion" else now)
    assert terms["world_keep"].tolist() == [False, True, True, True, True, True]
    model.fit([data, later(data)])
    terms = model.terms(data, noise)
    twice = torch.cat([terms["world_wanted"][1:], model.terms(later(data), noise)["world_wanted"][1:]])
    torch.testing.assert_close(twice.mean(dim=0), torch.zeros(twice.shape[1]), rtol=0, atol=1e-4)
    torch.testing.assert_close(twice.std(dim=0, correction=0), torch.ones(twice.shape[1]), rtol=1e-3, atol=1e-4)
    copied, changed = terms["world_copied"][1:], terms["world_wanted"][1:]
    ratio = (terms["world"][1:] - changed).square().mean() / (copied - changed).square().mean()
    watched = model.monitors(terms)
    assert watched["world_copy_ratio"] == pytest.approx(ratio.item(), rel=1e-4)
    assert watched["world_rows"] == pytest.approx(5 / 6)


def test_the_loss_is_its_formula_and_reaches_the_trunk_alone() -> None:
    model, data = made(with_world("vla", "stamo", "motion")), batch(6)
    terms = model.terms(data, {})
    error = (terms["world"] - terms["world_wanted"])[1:]
    found = model.loss(terms)
    foretold = error.square().mean() + error.abs().mean()
    torch.testing.assert_close(found.total, found.parts["action_loss"] + 0.1 * foretold)
    model.world.loss(terms)[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.net.vision.stems.parameters())
    assert model.net.out.weight.grad is None, "the chunk's own layer is beside it"
    assert all(p.grad is None for p in model.encoder.parameters())


def test_rows_without_so_late_an_observation_do_not_count() -> None:
    model = made(Case(find_system("film"), ("film.encoder=stamo", "film.world_target=state", "film.world_horizon=3")))
    data = dataclasses.replace(batch(6), ahead=torch.tensor([0, 1, 3, 2, 3, 3]))
    assert model.terms(data, {})["world_keep"].tolist() == [False, False, True, False, True, True]
    found = []
    for seed in (1, 9):
        other = observations(6, seed=seed)
        kept = torch.tensor([False, False, True, False, True, True])
        mixed = data.next_obs.each(lambda tensor: tensor.clone())
        for mine, new in zip(mixed.images, other.images, strict=True):
            mine[~kept] = new[~kept]
        model.zero_grad()
        loss = loss_of(model, dataclasses.replace(data, next_obs=mixed))
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(one, two) for one, two in zip(found[0][1], found[1][1], strict=True))


def test_a_number_that_never_changes_is_centred_and_no_target_at_all_is_refused() -> None:
    model, data = made(with_world("film", "stamo", "motion")), batch(4)
    still = dataclasses.replace(data, next_obs=data.obs)
    model.fit([still])
    assert torch.equal(model.world.scale, torch.ones_like(model.world.scale))
    with pytest.raises(UsageError, match=r"world_horizon: no segment of the train split holds an observation 1 steps"):
        model.fit([dataclasses.replace(data, ahead=torch.zeros(4, dtype=torch.int64))])


def test_it_is_a_chunk_ahead_where_nothing_else_is_said() -> None:
    config = load_config("tiny", None, ("film.world_target=state", "model.action_seq_len=6"), sections())
    with torch.device("meta"):
        model = find_system("film").build(config, Given())
    assert model.needs.offsets == (0, 6)


@pytest.mark.parametrize("context", ["z", "z+tokens"])
def test_the_flows_head_reads_the_mean_of_the_last_states_of_its_action_tokens(context: str) -> None:
    """At the noise level of the step, by the trunk written out again; and the trunk learns from it."""
    case = with_world("flow_matching", "", "motion")
    model = made(dataclasses.replace(case, options=(*case.options, f"model.policy_context={context}")))
    data = batch(6)
    noise = drawn(model, 6, seed=3)
    terms = model.terms(data, noise)
    flow, (z, tokens) = model.flow, model.encode(data.obs)
    sigma = noise["sigma"][:, None, None]
    noisy = (1 - sigma) * model.standardize_action(data.chunk)[..., :6] + sigma * noise["epsilon"]
    level = flow.sigma(sinusoid(noise["sigma"], flow.width))
    own = torch.cat([level[:, None], flow.state(z)[:, None], flow.action(noisy)], dim=1) + flow.position
    seen = own if flow.context is None else torch.cat([flow.context(tokens), own], dim=1)
    last = flow.final_norm(flow.layers(seen))[:, -10:]
    mean = torch.stack([row[~pad].mean(dim=0) for row, pad in zip(last, data.is_pad, strict=True)])
    torch.testing.assert_close(terms["world"], model.world.layers(mean))
    torch.testing.assert_close(terms["velocity"], flow.head(last))
    loss, parts = model.world.loss(terms)
    torch.testing.assert_close(model.loss(terms).total, model.loss(terms).parts["action_loss"] + 0.1 * loss)
    torch.testing.assert_close(loss, parts["world_mse"] + parts["world_l1"])
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in flow.layers.parameters())
    for module in (flow.head, model.gripper, model.encoder):
        assert all(p.grad is None for p in module.parameters()), "the velocity's own layers are beside it"


def test_kept_states_are_taken_where_they_are() -> None:
    """The head of flow_matching asks no picture where batches hold what its encoder made of them."""
    model, data = made(with_world("flow_matching", "", "motion")), batch(6)
    noise = drawn(model, 6)
    seen = data.see(lambda obs: dataclasses.replace(obs, images=(), latent=model.state_of(obs)))
    found = model.terms(seen, noise)
    for name, value in model.terms(data, noise).items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_the_flow_sees_of_a_row_without_actions_what_sampling_starts_from() -> None:
    model, data = made(with_world("flow_matching", "", "motion")), batch(6)
    noise = drawn(model, 6)
    every = torch.ones_like(data.is_pad)
    unknown = dataclasses.replace(data, chunk=torch.full_like(data.chunk, torch.nan), is_pad=every)
    terms = model.terms(unknown, noise)
    at_start = model.flow.read(noise["epsilon"], torch.ones(6), model.encoder.state(data.obs))
    torch.testing.assert_close(terms["world"], model.world(at_start))


def motions_of(components: int, horizon: int = 5, *more: str) -> Any:
    told = (f"world_horizon={horizon}", f"world_components={components}", *more)
    return made(with_world("film", "stamo", "motions", *told))


@pytest.mark.parametrize("components", [0, 4])
def test_every_motion_on_the_way_is_foretold(components: int) -> None:
    """Each of kept states, masked where the episode has no frame, standardized, and reduced as numpy has it."""
    model = motions_of(components)
    assert (model.needs.offsets, model.needs.states) == ((0,), (0, 1, 2, 3, 4, 5)), "no later picture is asked for"
    data, other = with_states(model, batch(6)), with_states(model, batch(6, seed=1), seed=9)
    model.fit([data, other])
    terms = model.terms(data, {})
    states = data.obs.extras["states"].double().numpy()
    moved = states[:, 1:] - states[:, :-1]
    firsts = np.concatenate([moved[:, 0], np.diff(other.obs.extras["states"][:, :2].double().numpy(), axis=1)[:, 0]])
    unit = (moved - firsts.mean(axis=0)) / firsts.std(axis=0)
    copied = np.broadcast_to(-firsts.mean(axis=0) / firsts.std(axis=0), unit.shape)
    if components:
        fitted = (firsts - firsts.mean(axis=0)) / firsts.std(axis=0)
        _, sizes, rows = np.linalg.svd(fitted, full_matrices=False)
        rows, sizes = rows[:components], sizes[:components] / len(fitted) ** 0.5
        rows = rows * np.sign(rows[np.arange(components), np.abs(rows).argmax(axis=1)])[:, None]
        basis = rows.T / np.sqrt((sizes**2).mean())
        unit, copied = unit @ basis, copied @ basis
        assert ((fitted @ basis) ** 2).mean() == pytest.approx(1), "of unit size, in their proportions"
    np.testing.assert_allclose(terms["world_wanted"].numpy(), unit, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(terms["world_copied"].numpy(), copied, rtol=1e-3, atol=1e-4)
    assert terms["world"].shape == (6, 5, components or 32)
    keep = np.ones((6, 5), bool)
    keep[0, 2:] = False
    assert np.array_equal(terms["world_keep"].numpy(), keep)
    error = (terms["world"].detach().numpy() - unit)[keep]
    assert model.world.loss(terms)[0].item() == pytest.approx((error**2).mean() + np.abs(error).mean(), rel=1e-4)
    assert model.monitors(terms)["world_rows"] == pytest.approx(keep.mean())


def test_motions_past_an_episodes_end_do_not_count() -> None:
    model = motions_of(0)
    data = with_states(model, batch(6))
    found = []
    for value in (0.0, 50.0):
        states = torch.where(data.obs.extras["states_there"][..., None], data.obs.extras["states"], value)
        obs = dataclasses.replace(data.obs, extras={**data.obs.extras, "states": states})
        model.zero_grad()
        loss = loss_of(model, dataclasses.replace(data, obs=obs, next_obs=obs))
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(one, two) for one, two in zip(found[0][1], found[1][1], strict=True))


def test_shuffled_motions_are_another_episodes() -> None:
    model = motions_of(0, 5, "world_shuffled=true").train()
    data = with_states(model, batch(6))
    terms = {**model.terms(data, {}), "world_episode": torch.tensor([0, 1, 2, 3, 1, 5])}
    keep = terms["world_keep"].roll(3, 0) & torch.tensor([True, False, True, True, False, True])[:, None]
    error = (terms["world"] - terms["world_wanted"].roll(3, 0))[keep]
    assert model.world.loss(terms)[1]["world_mse"].item() == pytest.approx(error.square().mean().item())


def test_components_that_there_are_not_are_refused() -> None:
    with pytest.raises(UsageError, match=r"components: 33 of world_target=motions, whose states have 32 numbers"):
        motions_of(33)
    with pytest.raises(UsageError, match=r"components: 2 of world_target=state, .* expected world_target=motions"):
        made(with_world("film", "stamo", "state", "world_components=2"))


@pytest.mark.parametrize("name", ["film", "flow_matching"])
def test_a_latent_action_of_the_way_there_is_foretold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code, learned from the ends of the kept states, standardized; the policy's loss leaves it as it is."""
    fit = LatentActions.fit
    monkeypatch.setattr(LatentActions, "fit", lambda self, now, later: fit(self, now, later, 30))
    model = made(with_world(name, "stamo", "latent", "world_horizon=4", "world_code=3"))
    assert (model.needs.offsets, model.needs.states, model.fit_rows) == ((0,), (0, 4), 65536)
    plain = made(Case(find_system(name)))
    if name == "flow_matching":
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in plain.state_dict().items())
    data = with_states(model, batch(40))
    before = [parameter.clone() for parameter in model.world.actions.parameters()]
    model.fit([data, with_states(model, batch(30), seed=6)])
    after = [parameter.clone() for parameter in model.world.actions.parameters()]
    assert not any(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    states = data.obs.extras["states"]
    code, still = (model.world.actions(states[:, 0], there) for there in (states[:, 1], states[:, 0]))
    terms = model.terms(data, drawn(model, 40))
    assert "code_error" not in terms, "in validation alone"
    keep = terms["world_keep"]
    assert keep.tolist() == [False, *[True] * 39]
    torch.testing.assert_close(terms["world_wanted"], (code - model.world.mean) / model.world.scale)
    torch.testing.assert_close(terms["world_copied"], (still - model.world.mean) / model.world.scale)
    assert terms["world"].shape == (40, 3)
    assert 0.5 < terms["world_wanted"][keep].std().item() < 1.5
    model.loss(terms).total.backward()
    assert all(parameter.grad is None for parameter in model.world.actions.parameters())
    assert all(torch.equal(one, two) for one, two in zip(after, model.world.actions.parameters(), strict=True))
    model.eval()
    found = model.terms(data, drawn(model, 40))
    errors = model.world.actions.errors(states[1:, 0], states[1:, 1])
    ratio = errors["code_error"].sum() / errors["code_moved"].sum()
    assert model.monitors(found)["world_code_ratio"] == pytest.approx(ratio.item(), rel=1e-4)


def test_a_code_that_could_hold_the_state_is_refused() -> None:
    with pytest.raises(UsageError, match=r"world_code: 32 of states of 32 numbers, .* set a smaller one"):
        made(with_world("film", "stamo", "latent", "world_code=32"))


def test_no_pair_of_frames_so_far_apart_is_refused() -> None:
    model = made(with_world("film", "stamo", "latent", "world_horizon=4"))
    data = with_states(model, batch(4))
    data.obs.extras["states_there"][:, 1] = False
    with pytest.raises(UsageError, match=r"world_horizon: no episode of the train split holds an observation 4 steps"):
        model.fit([data])
