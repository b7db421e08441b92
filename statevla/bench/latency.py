"""How long one `Policy.act` takes, from an observation in NumPy to a chunk in NumPy, and what of it cannot be avoided.

The limit is, for ``conv`` vision, the network's matrix products alone, one after the other on its own weights; for
``siglip``, the frozen tower alone on two prepared pictures, without its pooling head. Peers, in turns with ours:
``plain``, the same model with every sampling step computed from the start; ``autocast``, plain in bfloat16 by autocast
instead of converted weights; ``tower with head``, the tower as transformers loads it.

Legend: B batch (1), N tokens, K chunk, S sampling steps, D width.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from statevla.bench.machine import describe_machine
from statevla.config import Config, load_config
from statevla.encoders.preprocessing import Preprocessing
from statevla.encoders.tower import FrozenTower
from statevla.models.flow import euler, sampling_times
from statevla.models.mamba import Mamba
from statevla.observation import Observation
from statevla.policies.noise import Draw, normal_rows
from statevla.policies.policy import Policy, ready
from statevla.policies.prepare import torch_dtype
from statevla.systems.find import find_policy
from statevla.systems.flow_matching import PolicyModel, build
from statevla.systems.system import Given
from stores.errors import UsageError
from stores.spec import LIBERO, libero_spec

CALLS: Final = {"conv": 1000, "siglip": 100}
TURNS: Final = {"conv": 30, "siglip": 6}
WARM_UPS: Final = 5
SCENES: Final = 8
PICTURE: Final = 128
INSTRUCTIONS: Final = ("put the red block in the bowl", "put the blue block in the bowl")


@dataclass(frozen=True)
class Case:
    """One model to time: base preset with random weights, unless `checkpoint` names another."""

    vision: str = "conv"
    dtype: str = "float32"
    context: str = "z"
    preset: str = "base"
    checkpoint: Path | None = None

    @property
    def name(self) -> str:
        what = f"{self.vision} {self.preset}" if self.checkpoint is None else str(self.checkpoint)
        return f"{what} {self.dtype}" + ("" if self.context == "z" else f" {self.context}")


def bench_latency(
    *,
    checkpoint: Path | None = None,
    vision: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    preset: str = "base",
    calls: int | None = None,
) -> dict[str, Any]:
    """Time single calls; without `vision` and `dtype` conv in both dtypes and siglip in bfloat16, conv first.

    Returns name, unit, ours, limit, ratio (ours / limit), peers, machine, details; ours, limit and peers are of the
    first case. ``details`` has for every case ``ms`` (p50, p95, max, mean, std, jitter = p95 - p50), ``chunks_per_s``
    (calls / their sum), ``actions_per_s`` (all K actions executed), and medians of limit and peers in milliseconds.

    Raises:
        UsageError: unknown vision or dtype, or `vision` beside a checkpoint, which has its own.
    """
    if checkpoint is not None and vision is not None:
        raise UsageError("bench latency: --vision is for random weights; a checkpoint has its own vision")
    if calls is not None and calls < 1:
        raise UsageError(f"bench latency: expected at least 1 call, got {calls}")
    cases = choose(checkpoint, vision, dtype, preset)
    details = {case.name: measure(case, device, calls) for case in cases}
    first = details[cases[0].name]
    ours, limit = first["chunks_per_s"], 1e3 / first["in_turns_ms"]["limit"]
    return {
        "name": "latency",
        "unit": "chunks/s",
        "ours": ours,
        "limit": limit,
        "ratio": first["in_turns_ms"]["limit"] / first["in_turns_ms"]["ours"],
        "peers": {name: 1e3 / ms for name, ms in first["in_turns_ms"].items() if name not in ("ours", "limit")},
        "machine": describe_machine() | {"threads": torch.get_num_threads(), "device": device},
        "details": details,
    }


def choose(checkpoint: Path | None, vision: str | None, dtype: str | None, preset: str) -> list[Case]:
    """The cases that the options of `bench_latency` mean."""
    if checkpoint is not None:
        return [Case(checkpoint=checkpoint, dtype=dtype or "float32")]
    if vision is not None or dtype is not None:
        if vision not in (None, *CALLS):
            raise UsageError(f"bench latency: vision {vision!r}, expected one of {', '.join(CALLS)}")
        return [Case(vision or "conv", dtype or "float32", preset=preset)]
    return [
        Case(preset=preset),
        Case(dtype="bfloat16", preset=preset),
        Case(context="z+tokens", preset=preset),
        Case("siglip", "bfloat16", preset=preset),
    ]


def measure(case: Case, device: str, calls: int | None) -> dict[str, Any]:
    """One case: the distribution of single calls, then ours, limit and peers in turns."""
    policy = make_policy(case, device)
    vision = policy.config.model.vision
    seen = scenes(policy)

    def ours(number: int) -> None:
        policy.act([seen[number % SCENES]], [Draw(number)]).chunk.numpy()

    for number in range(WARM_UPS):
        ours(number)
    times = []
    for number in range(calls or CALLS[vision]):
        start = time.perf_counter()
        ours(number)
        times.append(1e3 * (time.perf_counter() - start))
    rate = len(times) / sum(times) * 1e3
    return {
        "calls": len(times),
        "ms": distribution(times),
        "chunks_per_s": rate,
        "actions_per_s": rate * policy.config.model.action_seq_len,
        "in_turns_ms": in_turns({"ours": ours, **contenders(policy, case, seen)}, min(TURNS[vision], len(times))),
    }


def distribution(times: list[float]) -> dict[str, float]:
    """Of milliseconds. jitter: p95 - p50."""
    p50, p95 = (float(np.percentile(times, q)) for q in (50, 95))
    return {
        "p50": p50,
        "p95": p95,
        "jitter": p95 - p50,
        "std": statistics.pstdev(times),
        "mean": statistics.fmean(times),
        "max": max(times),
    }


def in_turns(runs: dict[str, Callable[[int], None]], turns: int) -> dict[str, float]:
    """Medians in milliseconds; other load on the machine meets all alike. The first turn is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run(turn)
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def make_policy(case: Case, device: str) -> Policy:
    """The case's policy. Random weights need neither store nor network; the tower has SigLIP base's own sizes."""
    if case.checkpoint is not None:
        return Policy.load(find_policy(case.checkpoint), device, case.dtype)
    overrides = [f"model.vision={case.vision}", f"model.policy_context={case.context}"]
    if case.vision == "siglip":  # a public name would tell sizes, which a preset need not have
        overrides.append("model.vision_model=random")
    config = load_config(case.preset, overrides=tuple(overrides))
    dtype = torch_dtype(case.dtype)
    torch.manual_seed(0)
    backbone = random_siglip(config, head=False).to(device, dtype) if case.vision == "siglip" else None
    model = build(config, Given(backbone=backbone))
    size = LIBERO.language_width
    language = {text: np.random.default_rng(i).normal(size=size) for i, text in enumerate(INSTRUCTIONS)}
    vectors = {text: vector.astype(np.float32) for text, vector in language.items()}
    return ready(model, config, libero_spec(PICTURE), "", vectors, device, "random", dtype)


def random_siglip(config: Config, *, head: bool) -> FrozenTower:
    """A tower of SigLIP base's sizes at the configuration's picture size, float32, random weights."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = SiglipVisionConfig(
        image_size=config.model.image_size,
        patch_size=config.model.patch_size,
        hidden_size=config.model.vision_width,
        vision_use_head=head,
    )
    how = Preprocessing(config.model.image_size, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return FrozenTower(SiglipVisionModel(sizes), how, "random", "random")


def flow_matching_of(policy: Policy) -> PolicyModel:
    """The model, whose parts the peers put together otherwise. Raises UsageError for another system's."""
    if not isinstance(policy.model, PolicyModel):
        raise UsageError(f"bench latency: {policy.name} is no flow-matching policy; its peers are of that system")
    return policy.model


def scenes(policy: Policy) -> list[Observation]:
    """Random observations of the policy's shapes."""
    rng = np.random.default_rng(0)
    texts = list(policy.language)
    return [
        Observation(
            images=tuple(rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in policy.obs_spec.image_sizes),
            robot_state=rng.normal(size=policy.obs_spec.robot_state_dim).astype(np.float32),
            instruction=texts[i % len(texts)],
        )
        for i in range(SCENES)
    ]


def contenders(policy: Policy, case: Case, seen: list[Observation]) -> dict[str, Callable[[int], None]]:
    """The limit and the peers of a case."""
    runs = {"plain": without_gradients(lambda turn: plain(policy, seen[turn % SCENES], turn))}
    if policy.config.model.vision == "conv":
        runs["limit"] = without_gradients(matrix_products(flow_matching_of(policy)))
        if case.dtype == "bfloat16" and case.checkpoint is None:
            single = make_policy(Case(case.vision, "float32", case.context, case.preset), policy.device.type)
            runs["autocast"] = without_gradients(lambda turn: autocast(single, seen[turn % SCENES], turn))
        return runs
    side, dtype = policy.config.model.image_size, torch_dtype(case.dtype)
    pictures = torch.randn(len(LIBERO.cameras), 3, side, side, device=policy.device).to(dtype)
    for name, head in {"limit": False, "tower with head": True}.items():
        tower = random_siglip(policy.config, head=head).to(policy.device, dtype).tower
        runs[name] = without_gradients(tower_alone(tower, pictures))
    return runs


def without_gradients(run: Callable[[int], object]) -> Callable[[int], None]:
    """`run` in inference mode, to its end on the device too."""

    def whole(turn: int) -> None:
        with torch.inference_mode():
            run(turn)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return whole


def plain(policy: Policy, observation: Observation, seed: int) -> Tensor:
    """Actions [1, K, 7] with the whole velocity network run anew in every step, nothing prepared."""
    model, obs = flow_matching_of(policy), policy.observe([observation]).to(policy.device)
    noise = normal_rows([Draw(seed)], model.noise_shape).to(policy.device)
    z, tokens = model.encode(obs)
    times = sampling_times(policy.config.model.euler_steps).to(policy.device)
    pose = euler(lambda x, sigma: model.flow(x, sigma.expand(len(x)), z, tokens).float(), noise, times)
    gripper = torch.sign(model.gripper(z, tokens))
    return model.standardize_action.inverse(torch.cat([pose, gripper], dim=-1)).cpu()


def autocast(policy: Policy, observation: Observation, seed: int) -> Tensor:
    """`plain` in bfloat16 by autocast."""
    with torch.autocast(policy.device.type, dtype=torch.bfloat16):
        return plain(policy, observation, seed)


def tower_alone(tower: nn.Module, pictures: Tensor) -> Callable[[int], object]:
    return lambda turn: tower(pixel_values=pictures)


def matrix_products(model: PolicyModel) -> Callable[[int], object]:
    """Patch embedding and every Mamba layer's four products at the shapes of one call, and nothing between them."""
    config = model.config
    tokens, own = len(LIBERO.cameras) * config.patches + 3, config.action_seq_len + 2
    cameras = model.encoder.tokenizer.vision.cameras.parameters()
    once = [(config.patches, kernel.flatten(1)) for kernel in cameras if kernel.ndim > 1]
    once += [(tokens, weight) for weight in mamba_matrices(model.encoder)]
    if config.policy_context == "z+tokens":
        once += [(tokens, weight) for weight in mamba_matrices(model.flow)]
    steps = [(own, weight) for weight in mamba_matrices(model.flow)] * config.euler_steps
    pairs = [(torch.randn(rows, weight.shape[1]).to(weight), weight.t()) for rows, weight in once + steps]

    def run(turn: int) -> None:
        for x, weight in pairs:
            torch.mm(x, weight)

    return run


def mamba_matrices(module: nn.Module) -> list[Tensor]:
    layers = [layer for layer in module.modules() if isinstance(layer, Mamba)]
    return [part.weight for m in layers for part in (m.in_proj, m.x_proj, m.dt_proj, m.out_proj)]
