"""Plans are pure, sorted and independent of directory order; splits are deterministic and stratified."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest.plan import (
    UNIT_DEMOS,
    list_sources,
    natural_key,
    plan_units,
    require_fitting,
    safe_name,
    split_episodes,
)
from stores.errors import SourceError, UsageError


def test_natural_order() -> None:
    assert sorted(["demo_10", "demo_9", "demo_1"], key=natural_key) == ["demo_1", "demo_9", "demo_10"]


@given(st.lists(st.text(max_size=8), unique=True))
def test_natural_key_tells_all_names_apart(names: list[str]) -> None:
    assert len({natural_key(name) for name in names}) == len(names)


@given(st.lists(st.text(min_size=1, max_size=6), unique=True))
def test_safe_names_are_injective_and_safe(names: list[str]) -> None:
    encodable = [name for name in names if name.isprintable()]
    safe = [safe_name(name) for name in encodable]
    assert len(set(safe)) == len(encodable)
    assert all(
        set(name) <= set("=") | set(map(chr, range(128))) and "." not in name and "/" not in name for name in safe
    )


@given(st.dictionaries(st.sampled_from([f"t{n}.hdf5" for n in range(12)]), st.integers(1, 40), min_size=1))
def test_units_hold_every_demo_once_and_do_not_know_of_other_files(counts: dict[str, int]) -> None:
    demos = {file: [f"demo_{n}" for n in range(count)] for file, count in counts.items()}
    units = plan_units(demos)
    assert sorted((u.file, d) for u in units for d in u.demos) == sorted((f, d) for f, ds in demos.items() for d in ds)
    assert len({unit.name for unit in units}) == len(units)
    assert all(1 <= len(unit.demos) <= UNIT_DEMOS for unit in units)
    shuffled = {file: list(reversed(demos[file])) for file in reversed(list(demos))}
    assert plan_units(shuffled) == units
    file = next(iter(demos))
    assert plan_units({file: demos[file]}) == tuple(unit for unit in units if unit.file == file)


def test_sources_are_sorted_and_hidden_ones_ignored(tmp_path: Path) -> None:
    for name in ("b10.hdf5", "b9.hdf5", ".hidden.hdf5", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.hdf5").mkdir()
    assert [path.name for path in list_sources(tmp_path, "s", [(".hdf5",)])] == ["b9.hdf5", "b10.hdf5"]


@pytest.mark.parametrize(
    ("name", "limit", "said"),
    [
        (os.fsdecode(b"b\xff"), 100, "expected a name in UTF-8"),
        ("a" * 101, 100, "needs 101 bytes"),
        ("é" * 20, 100, "120"),
        ("put_\x1b[2J_it", 100, r"'put_\\x1b\[2J_it': expected a name of printable characters"),
    ],
)
def test_a_name_that_fits_no_shard_is_refused(name: str, limit: int, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        require_fitting(name, limit)
    require_fitting("a" * limit, limit)


def test_missing_folder_says_where_it_looked_and_how_to_get_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder .*nowhere.*download_libero_datasets.*--source"):
        list_sources(tmp_path / "nowhere", "libero_object", [(".hdf5",)])


def test_empty_folder_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an empty folder"):
        list_sources(tmp_path, "libero_object", [(".hdf5",)])
    (tmp_path / "readme.txt").touch()
    with pytest.raises(UsageError, match=r"1 other entries \(readme.txt\)"):
        list_sources(tmp_path, "libero_object", [(".hdf5",)])


TASKS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 30), min_size=1)


@given(TASKS, st.integers(0, 5), st.sampled_from([0.5, 0.8, 0.9, 1.0]))
def test_split_is_stratified_deterministic_and_keeps_a_training_episode(
    counts: dict[str, int], seed: int, share: float
) -> None:
    ids = {task: [f"{task}/{n}" for n in range(count)] for task, count in counts.items()}
    split = split_episodes(ids, seed, share)
    assert split == split_episodes({task: ids[task][::-1] for task in reversed(list(ids))}, seed, share)
    assert set(split) == {name for names in ids.values() for name in names}
    held_out = 0
    for names in ids.values():
        val = sum(split[name] == "val" for name in names)
        held_out += val
        assert val < len(names)
    total = len(split)
    assert held_out <= (1 - share) * total + 0.5 + 1e-6
    if min(counts.values()) >= 4:  # no task is too small to give its part
        assert abs(held_out - (1 - share) * total) <= 0.5 + 1e-6
        for task, names in ids.items():
            assert abs(sum(split[name] == "val" for name in names) - (1 - share) * len(names)) <= 1.0 + 1e-6, task


def test_split_depends_on_the_seed_and_refuses_nonsense() -> None:
    ids = {"a": [f"a/{n}" for n in range(30)]}
    assert split_episodes(ids, 0, 0.5) != split_episodes(ids, 1, 0.5)
    with pytest.raises(UsageError, match="train_split"):
        split_episodes(ids, 0, 0.0)
