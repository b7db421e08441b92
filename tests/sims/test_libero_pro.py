"""LIBERO-PRO's suites are read from files, and what they lack is said."""

from pathlib import Path

import numpy as np
import pytest

from statevla.sims.libero import paths, pro, suites
from statevla.sims.libero.errors import SimulatorMissing, UnknownTask

BDDL = "(define (problem P)\n  (:language Grab the {})\n)"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks of libero_goal, and their variants in other words; returns LIBERO-PRO's folder."""
    root, place = tmp_path / "site/libero/libero", tmp_path / "pro"
    for folder, suite in ((root, "libero_goal"), (place, "libero_goal_lan"), (place, "libero_goal_with_mug")):
        (folder / "bddl_files" / suite).mkdir(parents=True)
        (folder / "init_files" / suite).mkdir(parents=True)
        for name in ("b", "a"):
            (folder / "bddl_files" / suite / f"{name}.bddl").write_text(BDDL.format(name))
    (root / "benchmark").mkdir()
    (root / "benchmark/libero_suite_task_map.py").write_text("libero_task_map = {'libero_goal': ['b', 'a']}")
    np.savez(place / "init_files/libero_goal_lan/b.pruned_init.npz", states=np.arange(6.0).reshape(2, 3))
    np.savez(place / "init_files/libero_goal_lan/a.pruned_init.npz", states=np.zeros(0))
    monkeypatch.setattr(paths, "package_root", lambda: root)
    monkeypatch.setenv("LIBERO_PRO", str(place))
    suites.tasks.cache_clear()
    yield place  # type: ignore[misc]
    suites.tasks.cache_clear()


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ("libero_10_swap", ("libero_10", "swap")),
        ("libero_object_temp_x0.2", ("libero_object", "temp_x0.2")),
        ("libero_goal_with_mug", ("libero_goal", "with_mug")),
        ("libero_goal", None),
        ("libero_goal_swapped", None),
        ("libero_object_temp_z0.2", None),
    ],
)
def test_what_a_variant_is_a_variant_of(suite: str, expected: tuple[str, str] | None) -> None:
    assert pro.split(suite, suites.BASES) == expected


def test_a_variants_tasks_stand_in_the_order_of_its_base(package: Path) -> None:
    tasks = suites.tasks("libero_goal_lan")
    assert [(task.index, task.name, task.instruction) for task in tasks] == [
        (0, "b", "grab the b"),
        (1, "a", "grab the a"),
    ]
    assert suites.init_states(tasks[0]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert suites.max_steps("libero_goal_lan") == suites.MAX_STEPS["libero_goal"]
    assert suites.suite_names()[5:] == ("libero_goal_lan", "libero_goal_with_mug")


def test_tasks_under_other_names_stand_where_those_do_that_they_are(package: Path) -> None:
    """LIBERO-PRO's ``*_with_*`` name their files after scenes of their own; `--tasks` is to mean the same in each."""
    folder = package / "bddl_files/libero_goal_with_milk"
    for place in (folder, package / "init_files/libero_goal_with_milk"):
        place.mkdir()
    for name, said in (("FLOOR_SCENE1_c", "b"), ("FLOOR_SCENE1_a", "letter"), ("FLOOR_SCENE1_0", "something new")):
        (folder / f"{name}.bddl").write_text(BDDL.format(said))
    tasks = suites.tasks("libero_goal_with_milk")
    assert [(task.index, task.name) for task in tasks] == [
        (0, "FLOOR_SCENE1_c"),  # says what the base's first says
        (1, "FLOOR_SCENE1_a"),  # named as the base's second is, but for the scene
        (2, "FLOOR_SCENE1_0"),
    ]


def test_a_task_without_initial_states_is_named(package: Path) -> None:
    with pytest.raises(SimulatorMissing, match=r"a\.pruned_init\.npz in libero_goal_lan is empty.*--tasks"):
        suites.init_states(suites.tasks("libero_goal_lan")[1])
    with pytest.raises(SimulatorMissing, match="has no initial states of this task"):
        suites.init_states(suites.tasks("libero_goal_with_mug")[0])


@pytest.mark.parametrize("content", [b"", b"PK not a zip"])
def test_damaged_states_are_named(package: Path, content: bytes) -> None:
    file = package / "init_files/libero_goal_lan/b.pruned_init.npz"
    file.write_bytes(content)
    with pytest.raises(SimulatorMissing, match=r"b\.pruned_init\.npz"):
        pro.read_init_states(file)


def test_objects_and_infinities_in_states_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", states=np.array([[{}]], object))
    np.savez(tmp_path / "n.npz", states=np.array([[np.nan]]))
    for name in ("o", "n"):
        with pytest.raises(SimulatorMissing, match=rf"{name}\.npz"):
            pro.read_init_states(tmp_path / f"{name}.npz")


def test_a_variant_that_is_not_here_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIBERO_PRO", raising=False)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    with pytest.raises(
        UnknownTask, match=r"suite of LIBERO-PRO, which is not on this machine. Run: python -m .* --pro"
    ):
        suites.check_suite("libero_goal_swap")
    monkeypatch.setenv("LIBERO_PRO", str(tmp_path))
    with pytest.raises(SimulatorMissing, match="expected a folder with bddl_files"):
        pro.folder()
