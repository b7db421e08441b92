"""What every system of the table must do, encoders as well as policies: a new row is tested by being there.

Its parameters are counted in tests/systems/test_describe.py; what its training must do is in
tests/trainers/test_every_row.py.
"""

import dataclasses
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from statevla.config import load_config
from statevla.data.batch import Batch, ObservationBatch
from statevla.models import pixels
from statevla.systems.system import Objective, System
from statevla.systems.table import SYSTEMS, find_system, sections
from stores.errors import UsageError
from tests.models.build import batch, observations
from tests.systems.build import CASES, ROWS, Case, loss_of, noise_of, train, with_states

ENCODERS = [case for case in ROWS if case.row.kind == "encoder"]
INVERSE = Case(
    find_system("temporal_jepa"),
    ("training.phase1.inverse_dynamics_weight=1", "training.phase1.inverse_dynamics_horizon=10"),
)
LOSSES = [*ROWS, INVERSE, Case(find_system("vla"), ("vla.image_size=32", "vla.head=discrete"))]

SIGHT = ("camera 0", "camera 1")
SEEN = {"stamo": SIGHT}
"""What an encoder's state is made of where that is not all of an observation: StaMo's is of pictures alone."""

of_rows = pytest.mark.parametrize("case", ROWS, ids=str)
of_encoders = pytest.mark.parametrize("case", ENCODERS, ids=str)


@of_rows
@pytest.mark.parametrize("size", [(8, 60), pytest.param((64, 200), marks=pytest.mark.slow)], ids=["8", "64"])
def test_the_loss_falls_by_half_on_fixed_samples(case: Case, size: tuple[int, int]) -> None:
    """And not for a wrong reason.

    Temporal JEPA's variance and covariance rest at a floor, a quarter of the whole at the start; but states that are
    alike are easy to foretell, so they must differ when it is low. StaMo's starts high, where little noise is divided
    by less, so that half is not much: it must fall below the square of the noise, which is to be found in the picture.
    Its states may be alike here, where pictures are noise themselves; that the painter learns to use them is in
    tests/systems/test_stamo.py.
    """
    rows, steps = size
    model, data = case.make(), batch(rows)
    losses = train(model, data, steps, rate=5e-3)
    assert torch.tensor(losses).isfinite().all()
    last = sum(losses[-10:]) / 10
    assert last < (1 if case.row.name == "stamo" else 0.5 * losses[0])
    if case.row.name == "temporal_jepa":
        with torch.inference_mode():
            assert model.state(data.obs).std(dim=0).mean() > 0.3


@of_encoders
def test_an_encoders_rows_do_not_see_each_other(case: Case) -> None:
    model, obs = case.make().eval(), observations(8)
    with torch.inference_mode():
        together = model.state(obs)
        assert together.shape == (8, *model.state_shape)
        for number in range(8):
            alone = model.state(obs.each(lambda tensor, number=number: tensor[number : number + 1]))
            torch.testing.assert_close(alone[0], together[number], rtol=1e-4, atol=1e-5)


def gradients(model: Objective, data: Batch, noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradient of each parameter that has one."""
    model.zero_grad()
    loss = model.loss(model.terms(with_states(model, data), noise)).total
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("case", [*CASES, *ENCODERS, INVERSE], ids=str)
def test_padding_changes_neither_loss_nor_gradient(case: Case) -> None:
    model, data = case.make(), batch(6)
    is_pad = torch.zeros_like(data.is_pad)
    is_pad[:, 7:] = True
    found = []
    for value in (0.3, -0.9):
        chunk = data.chunk.clone()
        chunk[is_pad] = value
        found.append(gradients(model, dataclasses.replace(data, chunk=chunk, is_pad=is_pad), noise_of(model, 6)))
    assert_same(*found)


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_as_many_rows_again_of_padding_alone_change_neither_loss_nor_gradient(case: Case) -> None:
    """A mean that is taken before the mask would be half as large."""
    model, data = case.make(), batch(6)
    if case.row.name == "stamo":
        pytest.skip("it learns from pictures, whatever of the actions is hidden")
    noise = noise_of(model, 12)
    twice = data.each(lambda tensor: torch.cat([tensor, tensor.flip(0)]))
    hidden = torch.arange(12) >= 6
    ahead = torch.where(hidden, 0, twice.ahead)
    twice = dataclasses.replace(twice, is_pad=twice.is_pad | hidden[:, None], ahead=ahead)
    once = {name: each[:6] for name, each in noise.items()}
    assert_same(gradients(model, data, once), gradients(model, twice, noise))


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Pictures that a network was shown, uint8, which has no gradient, and what it took of each, which gets one."""
    shown: list[tuple[Tensor, Tensor]] = []
    prepare: Callable[[Tensor, int], Tensor] = pixels.prepare_pixels

    def leaf(images: Tensor, size: int) -> Tensor:
        shown.append((images, prepare(images, size).requires_grad_()))
        return shown[-1][1]

    for name in [name for name in sys.modules if name.startswith("statevla.")]:
        if vars(sys.modules[name]).get("prepare_pixels") is prepare:
            monkeypatch.setattr(sys.modules[name], "prepare_pixels", leaf)
    return shown


@of_rows
def test_all_that_is_seen_has_a_gradient_at_the_start(case: Case, looked: list[tuple[Tensor, Tensor]]) -> None:
    model, data = case.make(), batch(6)
    if case.row.name == "flow_matching":
        pytest.skip("its frozen encoder passes none; the line of temporal_jepa is of that")
    robot, language = data.obs.robot_state.requires_grad_(), data.obs.language.requires_grad_()
    value = loss_of(model, data) if case.row.kind == "policy" else model.state(data.obs).square().sum()
    value.backward()
    leaves = [("robot_state", robot), ("language", language)]
    for number, frames in enumerate(data.obs.images):
        leaves += [(SIGHT[number], leaf) for images, leaf in looked if images.data_ptr() == frames.data_ptr()]
    found = {name for name, leaf in leaves if leaf.grad is not None and leaf.grad.any()}
    assert found == set(SEEN.get(case.row.name, (*SIGHT, "robot_state", "language")))


@of_encoders
def test_what_an_encoder_sees_changes_its_state(case: Case) -> None:
    model, data = case.make(), batch(8)
    train(model, data, 10)
    model.eval()
    obs = data.obs
    changes = {"language": dataclasses.replace(obs, language=obs.language.roll(1, 0))}
    changes["robot_state"] = dataclasses.replace(obs, robot_state=obs.robot_state.roll(1, 0))
    for number in range(2):
        changes[SIGHT[number]] = dataclasses.replace(obs, images=flipped(obs, number))
    with torch.inference_mode():
        before = model.state(obs)
        found = {name for name, other in changes.items() if (model.state(other) - before).abs().max() > 1e-4}
    assert found == set(SEEN.get(case.row.name, changes))


def flipped(obs: ObservationBatch, camera: int) -> tuple[Tensor, ...]:
    return tuple(255 - frames if number == camera else frames for number, frames in enumerate(obs.images))


@of_rows
def test_a_loss_in_bfloat16_is_near(case: Case) -> None:
    """As a training step computes it; how policies act in bfloat16 is in tests/systems/test_policies.py."""
    model, data = case.make(), batch(16)
    train(model, data, 5)
    exact = loss_of(model, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = loss_of(model, data)
    assert near.dtype == torch.float32
    assert near.item() == pytest.approx(exact.item(), rel=2e-2)
    near.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("row", SYSTEMS, ids=lambda row: row.name)
def test_an_unknown_option_names_its_nearest(row: System) -> None:
    key = f"{row.section}.learning_rat"
    with pytest.raises(UsageError, match=f"unknown .*'{key}'.* did you mean '{row.section}.learning_rate'"):
        load_config("tiny", None, (f"{key}=1",), sections())
