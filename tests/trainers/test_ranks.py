"""Several ranks train the model that one process trains, stop together, and go on with another number of them.

Here 2 processes and few steps; `pytest -m ddp`: 2 and 4 processes, every system, 20 steps.
"""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from statevla.data.order import plan_order, rank_lanes
from statevla.runs.state import read_state
from statevla.systems.table import SYSTEMS
from statevla.trainers.ranks import Ranks, join
from statevla.trainers.setup import rows_of_rank
from statevla.trainers.step import Share
from statevla.trainers.trainer import train
from stores.disk.lock import lock
from stores.errors import UsageError
from tests.trainers.double import in_double
from tests.trainers.micro import at_step, config_of_all, micro_store
from tests.trainers.together import checkpoint, largest_difference, lines, run_ranks, weights

JEPA, FLOW = "temporal_jepa", "flow_matching"
INVERSE = (
    "training.phase1.inverse_dynamics_weight=1", "training.phase1.inverse_dynamics_horizon=10",
    "training.phase1.gap=3", "training.phase1.sigreg_weight=0.05",
)  # fmt: skip
"""Its chunks are padded at the ends of episodes: ranks have other numbers of real steps."""
TOLERANCE = 2e-5
UNFELT = 1e-3
"""Of biases whose gradient may be rounding alone, which Adam makes steps of: what an attention's softmax takes out
again, and outputs under L1, where as many rows want more as want less (2e-10 was seen).
"""
ROUNDED = ("in_proj_bias", "net.out.bias")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_store(tmp_path_factory.mktemp("micro") / "store")


def steps(number: int, *more: str) -> list[str]:
    return [f"training.max_steps={number}", f"training.validate_every_steps={number}", *INVERSE, *more]


def job(system: str, settings: list[str], store: Path, run: Path, **more: Any) -> dict[str, Any]:
    return {"system": system, "set": settings, "store": str(store), "run": str(run), **more}


def alone(system: str, settings: list[str], store: Path, run: Path, encoder: Path | None = None) -> Path:
    train(system, config_of_all(*settings), store, run, encoder_checkpoint=encoder)
    return run


def assert_same_training(mine: Path, theirs: Path, system: str) -> None:
    """Weights, moving averages, losses in training and validation, and the best step."""
    one, two = weights(mine, system), weights(theirs, system)
    felt = [name for name in one if not name.endswith(ROUNDED)]
    assert largest_difference({n: one[n] for n in felt}, {n: two[n] for n in felt}) < TOLERANCE
    assert largest_difference(one, two) < UNFELT
    for kind in ("train", "val"):
        ours, others = lines(mine, system, kind), lines(theirs, system, kind)
        assert [line["step"] for line in ours] == [line["step"] for line in others]
        for left, right in zip(ours, others, strict=True):
            assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)
            assert left.keys() == right.keys()


def test_two_ranks_are_one_process_and_say_what_is_wrong_once(store: Path, tmp_path: Path) -> None:
    settings = steps(4)
    whole = alone(JEPA, settings, store, tmp_path / "one")
    encoder = checkpoint(whole, JEPA)
    averaged = [*settings, "training.policy_ema=0.9"]
    alone(FLOW, averaged, store, whole, encoder)
    found = run_ranks(
        2,
        [
            job(JEPA, settings, store, tmp_path / "two", strays=1),  # all begin with the first one's weights
            job(FLOW, averaged, store, tmp_path / "two", encoder=str(encoder), strays=1),
            job(JEPA, ["data.lanes=1"], store, tmp_path / "lanes"),
            job(JEPA, ["training.batch_size=2"], store, tmp_path / "rows"),
            job(JEPA, ["training.batch_size=4000"], store, tmp_path / "large"),
            job(JEPA, settings, store, tmp_path / "two"),
            job(JEPA, settings, store, tmp_path / "stopped", signal_at=2, signal_rank=1, pids=str(tmp_path / "pids")),
        ],
        tmp_path / "jobs",
    )
    assert [status for status, _ in found] == [0, 0], found
    for system in (JEPA, FLOW):
        assert_same_training(tmp_path / "two", whole, system)
    said = [line for line in found[0][1].splitlines() if "Error" in line]
    assert len(said) == 4
    assert "ranks that can: 1;" in said[0]
    assert "2 rows are fewer than two for each of 2 ranks; use --set training.batch_size=4" in said[1]
    assert "4000 is more than the" in said[2]
    assert "exists already" in said[3]
    assert found[1][1].count("OtherRankFailed") == 4
    state = read_state(checkpoint(tmp_path / "stopped", JEPA))  # the signal came to rank 1 only
    assert state.step in (2, 3)
    train(JEPA, config_of_all(*settings), store, tmp_path / "stopped", resume=True)
    assert_same_training(tmp_path / "stopped", whole, JEPA)


def test_what_one_rank_finds_alone_ends_all(store: Path, tmp_path: Path) -> None:
    """A lock that another process holds, which the first asks for; a device that is none to the second."""
    held = checkpoint(tmp_path / "held", JEPA).parent
    with lock(held, "somebody"):
        found = run_ranks(
            2,
            [job(JEPA, steps(2), store, tmp_path / "held"), job(JEPA, steps(2), store, tmp_path / "no", lacks=1)],
            tmp_path / "jobs",
            limit=120,
        )
    assert [status for status, _ in found] == [0, 0], found
    assert "0 StoreLocked: " in found[0][1]
    assert "1 OtherRankFailed" in found[1][1]
    assert "1 UsageError: device 'none' is no torch device" in found[1][1]
    assert "0 OtherRankFailed" in found[0][1]


NEVER, ALWAYS = 1e9, -1.0


@pytest.mark.ddp
def test_a_row_of_one_rank_that_is_not_finite_stops_all_and_what_was_saved_stands(store: Path, tmp_path: Path) -> None:
    """Saved by the clock of the first. Then a rank without memory, and the clock of the second, which saves nothing."""
    settings, run = steps(4), tmp_path / "run"
    spoilt = {"trouble_at": 3, "spoils": 1, "save_seconds": [ALWAYS, NEVER]}
    full = {"trouble_at": 3, "full": 1, "save_seconds": [NEVER, ALWAYS], "leaves": True}
    found = run_ranks(
        2, [job(JEPA, settings, store, run, **spoilt), job(JEPA, settings, store, tmp_path / "full", **full)],
        tmp_path / "jobs",
    )  # fmt: skip
    assert [status for status, _ in found] == [1, 1], found
    first, second = (text.splitlines() for _, text in found)
    (row,) = (line.removeprefix("spoilt: ") for line in second if line.startswith("spoilt: "))
    (broken, lost) = (line for line in first if "Error" in line or line.startswith("0 "))
    assert broken.startswith("0 NonFiniteLoss: loss nan, gradient norm nan at step 3 of temporal_jepa")
    assert f"; not finite are 1 of 8 rows: {row}; nothing was overwritten, " in broken
    assert "holds the checkpoints saved before" in broken
    (other, advice) = (line for line in second if line.startswith("1 "))
    assert other.startswith("1 OtherRankFailed: ")
    assert advice.startswith("1 OutOfMemory: out of memory in a step of 8 rows in 1 micro-batch(es): CUDA out of")
    assert "less memory: --set training.accumulate=2; " in advice, "there is no checkpoint to resume"
    assert lost.startswith("0 RankLost: another rank of this run ended")
    assert not checkpoint(tmp_path / "full", JEPA).exists()
    assert read_state(checkpoint(run, JEPA)).step == 2
    train(JEPA, config_of_all(*settings), store, run, resume=True)
    assert_same_training(run, alone(JEPA, settings, store, tmp_path / "one"), JEPA)


@pytest.mark.ddp
@pytest.mark.parametrize("world", [2, 4])
def test_20_steps_of_every_system_are_one_process(store: Path, tmp_path: Path, world: int) -> None:
    settings = steps(20)
    jobs = []
    for row in SYSTEMS:
        wanted = row.parents_of(config_of_all(*settings))
        encoder = checkpoint(tmp_path / "one", wanted[0]) if wanted else None
        alone(row.name, settings, store, tmp_path / "one", encoder)
        told = None if encoder is None else str(encoder)
        jobs.append(job(row.name, settings, store, tmp_path / "many", encoder=told))
    found = run_ranks(world, jobs, tmp_path / "jobs")
    assert [status for status, _ in found] == [0] * world, found
    for row in SYSTEMS:
        assert_same_training(tmp_path / "many", tmp_path / "one", row.name)


@pytest.mark.ddp
def test_ranks_with_a_world_head_on_a_frozen_encoder_are_one_process(store: Path, tmp_path: Path) -> None:
    """Its targets are fitted by the first rank, and shuffled among the rows of all."""
    settings = steps(4)
    encoder = checkpoint(alone("stamo", settings, store, tmp_path / "one"), "stamo")
    jobs = []
    for name, more in (("motion", ()), ("shuffled", ("film.world_shuffled=true",))):
        told = [*settings, "film.world_target=motion", "film.world_horizon=3", "film.encoder=stamo", *more]
        alone("film", told, store, tmp_path / name / "one", encoder)
        jobs.append(job("film", told, store, tmp_path / name / "many", encoder=str(encoder)))
    for name, more in (("motions", ()), ("latent", ("film.world_code=4",))):
        told = [*settings, f"film.world_target={name}", "film.world_horizon=3", "film.encoder=stamo", *more]
        alone("film", told, store, tmp_path / name / "one", encoder)
        jobs.append(job("film", told, store, tmp_path / name / "many", encoder=str(encoder)))
    jepa = checkpoint(alone(JEPA, settings, store, tmp_path / "one"), JEPA)
    told = [*settings, "training.phase2.world_target=motion", "training.phase2.world_horizon=3"]
    alone(FLOW, told, store, tmp_path / "flow" / "one", jepa)
    jobs.append(job(FLOW, told, store, tmp_path / "flow" / "many", encoder=str(jepa)))
    found = run_ranks(2, jobs, tmp_path / "jobs")
    assert [status for status, _ in found] == [0, 0], found
    for name, system in (
        ("motion", "film"),
        ("shuffled", "film"),
        ("motions", "film"),
        ("latent", "film"),
        ("flow", FLOW),
    ):
        assert_same_training(tmp_path / name / "many", tmp_path / name / "one", system)


WORLD = ("film.world_horizon=3", "film.encoder=temporal_jepa")
FEW = ("data.labelled_share=0.5", "data.unlabelled=keep", "film.world_target=motion")
OPTIONS = {
    "state": ("film.world_target=state", *WORLD),
    "augmented": ("training.augment_shift=8", "training.augment_colour=0.2", "training.augment_affine=true"),
    "averaged": ("training.policy_ema=0.9",),
    "oversampled": ("data.oversample_gripper=4",),
    "unlabelled": (*FEW, "data.labelled_times=2", *WORLD),
}


@pytest.mark.ddp
def test_options_of_the_loop_are_one_process_to_float64(store: Path, tmp_path: Path) -> None:
    """2 ranks of 2 micro-batches each, in float64, in which nothing but rounding is near 1e-14. (In float32 `film`
    with world_target=state is a few percent apart after 8 steps: ReLU and L1 have kinks.)
    """
    jobs, base = [], ["training.max_steps=6", "training.validate_every_steps=6"]
    with in_double():
        encoder = checkpoint(alone(JEPA, base, store, tmp_path / "encoder"), JEPA)
        for name, more in OPTIONS.items():
            settings, took = [*base, *more], encoder if WORLD[0] in more else None
            alone("film", settings, store, tmp_path / name / "one", took)
            told = None if took is None else str(took)
            split = [*settings, "training.accumulate=2"]
            jobs.append(job("film", split, store, tmp_path / name / "two", encoder=told, double=True))
    found = run_ranks(2, jobs, tmp_path / "jobs")
    assert [status for status, _ in found] == [0, 0], found
    plain = weights(tmp_path / "augmented" / "one", "film")
    for name in OPTIONS:
        for file in ("model", "optimizer"):
            one, two = (
                load_file(checkpoint(tmp_path / name / run, "film") / f"{file}.safetensors") for run in ("one", "two")
            )
            assert {tensor.dtype for tensor in one.values() if tensor.ndim > 1} == {torch.float64}
            assert largest_difference(one, two) < 1e-9, (name, file)
    assert largest_difference(plain, weights(tmp_path / "averaged" / "one", "film")) > 1e-3


@pytest.mark.ddp
@pytest.mark.resume
def test_a_run_goes_on_with_another_number_of_ranks(store: Path, tmp_path: Path) -> None:
    """4 ranks, then 1, then 2: the same samples in the same order, so the same weights."""
    settings, run = steps(12, "training.validate_every_steps=4"), tmp_path / "run"
    whole = alone(JEPA, settings, store, tmp_path / "one")
    stop = {"signal_rank": 3, "signal_at": 5, "pids": str(tmp_path / "pids")}
    assert [code for code, _ in run_ranks(4, [job(JEPA, settings, store, run, **stop)], tmp_path / "jobs")] == [0] * 4
    assert read_state(checkpoint(run, JEPA)).step in (5, 6)
    once = at_step(8, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(JEPA, config_of_all(*settings, "training.max_steps=12"), store, run, resume=True, progress=once)
    assert read_state(checkpoint(run, JEPA)).step == 8
    found = run_ranks(2, [job(JEPA, settings, store, run, resume=True, caches_differ=True)], tmp_path / "jobs")
    assert [code for code, _ in found] == [0, 0], found
    assert_same_training(run, whole, JEPA)


@pytest.mark.ddp
@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_dies_ends_the_others_and_leaves_the_checkpoint_before(
    store: Path, tmp_path: Path, dies: int
) -> None:
    run = tmp_path / "run"
    settings = steps(9, "training.save_interval=1", "training.batch_size=16")  # an epoch is 4 steps
    dying = {"signal_at": 6, "signal_rank": dies, "signal": int(signal.SIGKILL), "pids": str(tmp_path / "pids")}
    found = run_ranks(2, [job(JEPA, settings, store, run, last=True, **dying)], tmp_path / "jobs")
    assert found[dies][0] == -signal.SIGKILL
    assert found[1 - dies][0] == 1
    if dies:
        assert "RankLost: another rank of this run ended" in found[0][1]
    saved = read_state(checkpoint(run, JEPA)).step
    assert 0 < saved < 6
    train(JEPA, config_of_all(*settings), store, run, resume=True)
    assert_same_training(run, alone(JEPA, settings, store, tmp_path / "one"), JEPA)


def test_lanes_say_which_numbers_of_ranks_work() -> None:
    order = plan_order(torch.full((40,), 16).numpy(), seed=0, batch_size=24, lanes=6, block_segments=2)
    with pytest.raises(UsageError, match=r"6 lanes are in use, which 4 ranks .* ranks that can: 1, 2, 3, 6;"):
        rank_lanes(order, 1, 4)


@pytest.mark.parametrize(("batch", "world", "rows"), [(8, 4, 2), (1, 1, 1), (64, 2, 32)])
def test_rows_of_a_rank(batch: int, world: int, rows: int) -> None:
    assert rows_of_rank(batch, world) == rows


def test_shares_of_all_ranks_are_the_global_batch_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    order = plan_order(torch.full((40,), 16).numpy(), seed=0, batch_size=24, lanes=6, block_segments=2)
    noise = torch.arange(24)
    shares = [Share.of(order, rank_lanes(order, rank, 3), Ranks(rank, 3)) for rank in range(3)]
    assert shares[1].own(noise).tolist() == [4, 5, 6, 7, 16, 17, 18, 19]  # lanes 1 and 4
    gathered = torch.cat([share.own(noise) for share in shares])
    monkeypatch.setattr(Ranks, "gather", lambda self, rows: gathered)
    for share in shares:
        assert torch.equal(share.whole({"noise": share.own(noise)})["noise"], noise)


def test_half_an_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(UsageError, match="RANK, MASTER_ADDR, MASTER_PORT is not set; start ranks with torchrun"),
        join(False),
    ):
        pass
