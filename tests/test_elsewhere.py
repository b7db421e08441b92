"""Other processes get a store or a policy by pickle: opened and loaded again there, and the same one or none."""

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import statevla
from statevla.policies.checkpoint_controls import NoInstruction
from statevla.policies.policy import Policy
from statevla.trainers.trainer import train
from stores.cloud.cache import CachedStorage, RangeCache
from stores.cloud.publish import publish_store
from stores.cloud.storage import open_storage
from stores.errors import StaleKey, StoreMissing, UsageError
from stores.reader import Store
from tests import elsewhere
from tests.trainers.micro import config_of_all, micro_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, and with runs of 1 and of 2 steps."""
    root = tmp_path_factory.mktemp("elsewhere")
    micro_store(root / "store")
    for steps in (1, 2):
        config = config_of_all(f"training.max_steps={steps}", "film.hidden=16")
        train("film", config, root / "store", root / f"run{steps}")
    return root


def observation_for(policy: Policy) -> statevla.Observation:
    rng = np.random.default_rng(0)
    return statevla.Observation(
        images=tuple(rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)),
        robot_state=rng.normal(size=policy.obs_spec.robot_state_dim).astype(np.float32),
        instruction=sorted(policy.trained)[0],
    )


def test_a_spawned_process_reads_the_same_frames_from_whatever_folder(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(made)
    store = Store.open("store")
    task = elsewhere.pickled(elsewhere.frames_of, store)
    here = elsewhere.frames_of(store)
    monkeypatch.chdir(tmp_path)  # where the other process begins
    there = elsewhere.run(task)
    assert len(there) == len(here) > 1
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader_read_the_store(made: Path, start: str) -> None:
    store = statevla.open_store(made / "store")
    wanted = elsewhere.frames_of(store)  # read before a fork, too
    loader = torch.utils.data.DataLoader(
        elsewhere.Segments(store),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=start,
        persistent_workers=True,
    )
    for _ in range(2):
        seen = dict(loader)
        assert sorted(seen) == list(range(len(store)))
        assert all(np.array_equal(wanted[i], pictures.numpy()) for i, pictures in seen.items())


def test_a_store_that_was_written_again_meanwhile_is_refused_in_one_line(made: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(made / "store", tmp_path / "store"))
    store = statevla.open_store(place)
    task = elsewhere.pickled(elsewhere.frames_of, store)
    shutil.rmtree(place)
    with pytest.raises(StoreMissing, match="is not a store"):
        elsewhere.run(task)
    micro_store(place, seed=1)
    other = Store.open(place).content_hash
    wanted = (
        f"{place}: expected the store of content {store.content_hash[:12]} that was handed over, got {other[:12]}: "
    )
    with pytest.raises(StaleKey, match=wanted) as caught:
        elsewhere.run(task)
    assert "\n" not in str(caught.value)


def test_a_store_in_a_bucket_goes_to_another_process_with_its_cache(
    made: Path, s3: dict[str, Any], tmp_path: Path
) -> None:
    url = "s3://robots/elsewhere"
    publish_store(made / "store", url, **s3)
    told: list[str] = []
    cache = RangeCache(tmp_path / "cache", 1 << 20, told.append)
    far = Store.open(CachedStorage(open_storage(url, **s3), cache))
    there = elsewhere.run(elsewhere.pickled(elsewhere.frames_of, far))
    assert cache.bytes() > 0  # by the other process
    here = elsewhere.frames_of(statevla.open_store(made / "store"))
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))


def test_a_policy_in_a_spawned_process_does_the_same_bit_by_bit(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(made)
    policy = statevla.load_policy("run1", precision="bfloat16", device="cpu")
    given = (policy, observation_for(policy))
    task = elsewhere.pickled(elsewhere.chunk_of, given)
    assert len(task) < 10_000  # no weights
    monkeypatch.chdir(tmp_path)
    there = elsewhere.run(task)
    threads = torch.get_num_threads()
    try:
        assert np.array_equal(there, elsewhere.chunk_of(given))
    finally:
        torch.set_num_threads(threads)
    assert not np.array_equal(there, elsewhere.chunk_of((statevla.load_policy(made / "run2"), given[1])))


def test_a_policy_that_was_trained_on_meanwhile_is_refused_in_one_line(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made / "run1", tmp_path / "run"))
    policy = statevla.load_policy(run, device="cpu")
    task = elsewhere.pickled(elsewhere.chunk_of, (policy, observation_for(policy)))
    shutil.rmtree(run)
    shutil.copytree(made / "run2", run)
    other = statevla.load_policy(run, device="cpu").identity
    wanted = f"expected the policy of identity {policy.identity[:12]} that was handed over, got {other[:12]}: "
    with pytest.raises(StaleKey, match=wanted) as caught:
        elsewhere.run(task)
    assert "\n" not in str(caught.value)


def test_only_a_policy_as_it_was_loaded_goes_to_another_process(made: Path) -> None:
    policy = statevla.load_policy(made / "run1", device="cpu")
    fresh = Policy.untrained(policy.config, statevla.open_store(made / "store"), system="film")
    for changed in (fresh, dataclasses.replace(policy, name="mine"), NoInstruction(policy).policy):
        with pytest.raises(UsageError, match="was made or changed in memory, and another process could not load it"):
            copy.deepcopy(changed)  # by the same way
    control = Policy.load(policy.loaded_by[0], untrained=7)  # type: ignore[index]
    again = copy.deepcopy(control)
    assert again.identity == control.identity != policy.identity
    assert again.control == "untrained"
