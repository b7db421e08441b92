"""The latency benchmark at toy size: its figures fit together, its options are checked."""

import pytest
import torch

from statevla.bench.latency import Case, bench_latency, choose, distribution, make_policy, plain, scenes
from statevla.policies.noise import Draw
from stores.errors import UsageError


def test_report_of_a_toy_model() -> None:
    result = bench_latency(vision="conv", dtype="bfloat16", preset="tiny", calls=4)
    (case,) = result["details"].values()
    assert case["calls"] == 4
    assert case["actions_per_s"] == pytest.approx(10 * case["chunks_per_s"])
    assert case["chunks_per_s"] == pytest.approx(1e3 / case["ms"]["mean"])
    assert result["ours"] == case["chunks_per_s"]
    turns = case["in_turns_ms"]
    assert set(turns) == {"ours", "plain", "limit", "autocast"}
    assert result["ratio"] == pytest.approx(turns["limit"] / turns["ours"])
    assert set(result["peers"]) == {"plain", "autocast"}


def test_distribution_by_hand() -> None:
    got = distribution([float(i) for i in range(101)])
    assert (got["p50"], got["p95"], got["jitter"], got["max"], got["mean"]) == (50, 95, 45, 100, 50)
    assert got["std"] == pytest.approx((101**2 - 1) ** 0.5 / 12**0.5)


@pytest.mark.parametrize("context", ["z", "z+tokens"])
def test_the_plain_path_decides_the_same(context: str) -> None:
    policy = make_policy(Case(context=context, preset="tiny"), "cpu")
    observation = scenes(policy)[0]
    with torch.no_grad():
        wanted = plain(policy, observation, 3)
    torch.testing.assert_close(policy.act([observation], [Draw(3)]).chunk, wanted, rtol=1e-5, atol=1e-5)


def test_a_random_tower_fits_every_preset() -> None:
    assert make_policy(Case("siglip", preset="tiny"), "cpu").config.model.vision == "siglip"


def test_without_options_every_case_is_measured() -> None:
    assert [(case.vision, case.dtype) for case in choose(None, None, None, "base")] == [
        ("conv", "float32"), ("conv", "bfloat16"), ("conv", "float32"), ("siglip", "bfloat16"),
    ]  # fmt: skip
    assert choose(None, "siglip", None, "base") == [Case("siglip", "float32")]


def test_wrong_options_are_named() -> None:
    with pytest.raises(UsageError, match=r"'dino'.*conv, siglip"):
        bench_latency(vision="dino")
    with pytest.raises(UsageError, match="float16"):
        bench_latency(dtype="float16", preset="tiny")
    with pytest.raises(UsageError, match="at least 1"):
        bench_latency(calls=0)
