"""The prepared way to act against the plain one: the whole velocity network anew in every Euler step.

Legend: B batch, K chunk.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import MagicMock

import pytest
import torch

from statevla.data.batch import ObservationBatch
from statevla.models.encoder import StateEncoder
from statevla.models.flow import euler, sampling_times
from statevla.models.gripper import command
from statevla.policies import prepare as acting
from statevla.policies.prepare import GRAPH_ROWS, Actor, convert, torch_dtype
from statevla.systems.acting import Acted, PolicyNet, Scene
from statevla.systems.flow_matching import PolicyModel
from stores.errors import UsageError
from tests.models.build import micro, normalization, observations

VARIANTS = [
    pytest.param((), id="z"),
    pytest.param(("model.policy_context=z+tokens",), id="z+tokens"),
    pytest.param(("model.policy_mlp=16", "model.policy_context=z+tokens", "model.euler_steps=3"), id="mlp, 3 steps"),
    pytest.param(("model.stem=conv",), id="stages"),
    pytest.param(("model.vision=siglip", "model.vision_model=random", "model.vision_width=24"), id="siglip"),
]


class Patches:
    """Stands in for a frozen tower: what a picture's 4 patches look like, 24 numbers each."""

    def patch_features(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((1, 2, 3))[:, None, None] / 255 + torch.linspace(-1, 1, 96).reshape(1, 4, 24)


def policy(*overrides: str) -> PolicyModel:
    config = micro(*overrides)
    torch.manual_seed(0)
    backbone = Patches() if config.model.vision == "siglip" else None
    model = PolicyModel(config, StateEncoder(config.model, normalization(), backbone), normalization())
    return model.eval().requires_grad_(False)


def noise(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 10, 6, generator=torch.Generator().manual_seed(seed))


def scene(actor: Actor, obs: ObservationBatch, epsilon: torch.Tensor) -> Scene:
    return Scene(obs.images, obs.robot_state, actor.condition(obs.language), epsilon)


def plain(model: PolicyModel, obs: ObservationBatch, epsilon: torch.Tensor) -> Acted:
    """Nothing cached, nothing shared between steps: training's forward in a loop."""
    with torch.no_grad():
        z, tokens = model.encoder(obs)
        pose = euler(
            lambda x, sigma: model.flow(x, sigma.expand(len(x)), z, tokens),
            epsilon,
            sampling_times(model.config.euler_steps),
        )
        logits = model.gripper(z, tokens)
        chunk = torch.cat([pose, command(logits)], dim=-1)
        return Acted(model.standardize_action.inverse(chunk), torch.sigmoid(logits))


def assert_same(got: Acted, wanted: Acted, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got.chunk[..., :6], wanted.chunk[..., :6], rtol=tolerance, atol=tolerance)
    assert got.closing is not None
    assert wanted.closing is not None
    torch.testing.assert_close(got.closing, wanted.closing, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("overrides", VARIANTS)
@pytest.mark.parametrize("rows", [1, 3])
def test_prepared_and_plain_agree(overrides: tuple[str, ...], rows: int) -> None:
    model, obs = policy(*overrides), observations(rows)
    actor, wanted = Actor(model), plain(model, obs, noise(rows))
    got = actor.act(scene(actor, obs, noise(rows)))
    assert_same(got, wanted)
    assert torch.equal(got.chunk[..., 6], wanted.chunk[..., 6])
    assert got.closing is not None
    assert torch.equal(got.chunk[..., 6:] > 0, got.closing > 0.5)


@pytest.mark.parametrize("overrides", VARIANTS)
def test_bfloat16_stays_close(overrides: tuple[str, ...]) -> None:
    """Half precision rounds at 1/256; the actions here have a scale of about 1."""
    exact, rough, obs = policy(*overrides), policy(*overrides), observations(4)
    convert(rough, torch.bfloat16)
    actor = Actor(rough)
    got, wanted = actor.act(scene(actor, obs, noise(4))), plain(exact, obs, noise(4))
    assert got.chunk.dtype == torch.float32
    assert not torch.equal(got.chunk, wanted.chunk)
    assert_same(got, wanted, tolerance=0.05)


def test_bfloat16_keeps_what_must_be_exact_in_float32() -> None:
    model = policy("model.policy_context=z+tokens", "model.policy_mlp=16")
    names = set(model.state_dict())
    convert(model, torch.bfloat16)
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert set(kinds) == names
    rough = {name for name, dtype in kinds.items() if dtype == torch.bfloat16}
    assert {name.rsplit(".", 2)[-2] for name in rough} == {
        "in_proj", "x_proj", "dt_proj", "out_proj", "gate", "up", "down", "0", "1", "context",
    }  # fmt: skip
    assert not [name for name in rough if name.endswith(("dt_proj.bias", "A_log", ".D")) or "norm" in name]
    assert all(name.startswith("encoder.tokenizer.vision.cameras") for name in rough if name.split(".")[-2] in "01")


def test_calls_leave_nothing_behind() -> None:
    actor = Actor(policy())
    a = scene(actor, observations(2, seed=1), noise(2, 1))
    b = scene(actor, observations(2, seed=2), noise(2, 2))
    first = actor.act(a)
    kept = first.chunk.clone()
    second = actor.act(b)
    assert torch.equal(first.chunk, kept)
    assert not torch.equal(first.chunk, second.chunk)
    assert torch.equal(actor.act(a).chunk, kept)
    assert torch.equal(Actor(actor.net).act(b).chunk, second.chunk)


def test_rows_do_not_see_each_other() -> None:
    actor, obs = Actor(policy("model.policy_context=z+tokens")), observations(3)
    together = scene(actor, obs, noise(3))
    chunks = actor.act(together).chunk
    for row in range(3):
        part = slice(row, row + 1)
        images = tuple(frames[part] for frames in together.images)
        alone = actor.act(Scene(images, together.robot_state[part], together.condition[part], noise(3)[part])).chunk
        torch.testing.assert_close(alone[0], chunks[row], rtol=1e-5, atol=1e-5)


def test_another_instruction_is_another_token_and_chunk() -> None:
    model, obs = policy(), observations(2)
    actor = Actor(model)
    tokens = actor.condition(obs.language)
    assert not torch.allclose(tokens[0], tokens[1])
    one = scene(actor, obs, noise(2))
    swapped = actor.act(one._replace(condition=tokens.flip(0))).chunk
    assert not torch.allclose(swapped[..., :6], actor.act(one).chunk[..., :6])
    other = ObservationBatch(obs.images, obs.robot_state, obs.language.flip(0))
    assert_same(actor.act(scene(actor, other, noise(2))), plain(model, other, noise(2)))


def test_an_unknown_dtype_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"'float8'.*float32, bfloat16"):
        torch_dtype("float8")


def capture_without_a_gpu(run: Callable[[], Acted], device: torch.device) -> tuple[Acted, Callable[[], None]]:
    """A CUDA graph's rule, on the CPU: inputs are read from and outputs written to where they were at first."""
    acted = run()

    def replay() -> None:
        for place, value in zip(acted[:2], run()[:2], strict=True):
            assert place is not None
            assert value is not None
            place.copy_(value)

    return acted, replay


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Actor:
    monkeypatch.setattr(acting, "capture", capture_without_a_gpu)
    actor = Actor(policy())
    actor._graphs = True
    return actor


def test_captured_calls_copy_in_and_out(capturing: Actor) -> None:
    eager = Actor(policy())
    scenes = [scene(eager, observations(2, seed=i), noise(2, i)) for i in (1, 2, 1)]
    results = [capturing.act(each) for each in scenes]
    for got, each in zip(results, scenes, strict=True):
        assert torch.equal(got.chunk, eager.act(each).chunk)
    scenes[0].images[0].fill_(0)  # the caller's memory is the caller's
    assert torch.equal(capturing.act(scenes[1]).chunk, results[1].chunk)
    assert torch.equal(results[0].chunk, results[2].chunk)


def test_one_capture_a_shape_and_none_of_large_batches(capturing: Actor) -> None:
    for rows, size, captures in ((1, 24, 1), (1, 24, 1), (2, 24, 2), (1, 40, 3), (GRAPH_ROWS + 1, 24, 3)):
        capturing.act(scene(capturing, observations(rows, size), noise(rows)))
        assert len(capturing._captured) == captures


def test_threads_share_a_recording_and_get_their_own_chunks(capturing: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that is slow to read its inputs: another call that wrote its own meanwhile would be seen."""
    eager = Actor(policy())
    scenes = [scene(eager, observations(2, seed=i), noise(2, i)) for i in range(4)]
    capturing.act(scenes[0])
    (captured,) = capturing._captured.values()
    replay, inside = captured._replay, threading.Lock()

    def alone() -> None:
        assert inside.acquire(blocking=False), "two calls at once"
        replay()
        inside.release()

    monkeypatch.setattr(captured, "_replay", alone)
    with ThreadPoolExecutor(4) as pool:
        chunks = [acted.chunk for acted in pool.map(capturing.act, scenes * 8)]
    for number, chunk in enumerate(chunks):
        assert torch.equal(chunk, eager.act(scenes[number % 4]).chunk)


class Recorded:
    """Stands in for torch.cuda: says in which order, and inside which blocks, it was called."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def block(self, name: str) -> Callable[..., contextlib.AbstractContextManager[None]]:
        @contextlib.contextmanager
        def entered(*given: object, **options: object) -> Iterator[None]:
            told = [*map(str, given[:1] if name == "device" else ()), *(f"{k}={v}" for k, v in options.items())]
            self.calls.append(" ".join(["enter", name, *told]))
            yield
            self.calls.append(f"leave {name}")

        return entered


def test_a_recording_is_made_on_the_policy_s_device_and_lets_other_threads_allocate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    fake, stream = Recorded(calls), MagicMock()
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, fake.block(name))
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", MagicMock())
    acted = Acted(torch.zeros(1, 10, 7), None)

    def decide() -> Acted:
        calls.append("run")
        return acted

    got, _ = acting.capture(decide, torch.device("cuda:1"))
    assert got is acted
    assert calls == [
        "enter device cuda:1",
        "enter stream", "run", "run", "run", "leave stream",
        "enter graph capture_error_mode=thread_local", "run", "leave graph",
        "leave device",
    ]  # fmt: skip


def test_what_a_policy_must_have_is_seen_on_its_class() -> None:
    """From Python 3.12 on, isinstance with a protocol asks the class, where a module's submodules are not."""
    asked = {name for name in vars(PolicyNet) if not name.startswith("_")}
    assert asked >= {"noise_shape", "condition", "decide", "matrices"}
    assert all(hasattr(PolicyModel, name) for name in asked)
