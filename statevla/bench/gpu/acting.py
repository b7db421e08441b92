"""Acting on a GPU: chunks a second, one observation at a time."""

from typing import Any

import torch

from statevla.bench.latency import bench_latency, scenes
from statevla.policies.policy import Policy
from statevla.systems.acting import Scene
from statevla.systems.flow_matching import draw_noise

CASES = (("conv", "bfloat16"), ("conv", "float32"), ("siglip", "bfloat16"))


def one_scene(policy: Policy, number: int) -> Scene:
    """The inputs of one call."""
    observation = scenes(policy)[number]
    batch = policy.observe([observation]).to(policy.device)
    noise = draw_noise(
        1, policy.config.model.action_seq_len, torch.Generator().manual_seed(number), policy.device
    ).epsilon
    return Scene(batch.images, batch.robot_state, policy.conditions[observation.instruction][None], noise)


def acting(device: str, preset: str, vision: str, dtype: str, calls: int) -> dict[str, Any]:
    """`statevla bench latency` of one model: chunks/s, p50, p95, jitter in milliseconds, limit and peers."""
    result = bench_latency(vision=vision, device=device, dtype=dtype, preset=preset, calls=calls)
    (details,) = result["details"].values()
    found: dict[str, Any] = dict(details)
    return found
