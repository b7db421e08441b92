"""LIBERO-PRO's suites are read from files, and what they lack is said."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from statevla.sims.libero import paths, pro, suites
from statevla.sims.libero.errors import SimulatorMissing, UnknownTask
from statevla.sims.suites import find_suite
from stores.npy import encode_npy

BDDL = "(define (problem P)\n  (:language Grab the {})\n)"


def npz(compressed: bool = False, **arrays: object) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def overwritten(content: bytes, start: int) -> bytes:
    """With some bytes from ``start`` on that are others."""
    return content[:start] + b"\xff" * 50 + content[start + 50 :]


NAME = b"states.npy"
"""In a zip, 30 bytes before what is compressed."""
NUMBERS = np.random.default_rng(0).normal(size=(40, 50))
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "no zip": lambda _: b"PK not a zip",
    "cut": lambda content: content[:-20],
    "other bytes": lambda _: overwritten(npz(states=NUMBERS), 1000),
    "no compressed bytes": lambda _: overwritten(squeezed := npz(True, states=NUMBERS), squeezed.index(NAME) + 30),
    "one array, no archive": lambda _: encode_npy(NUMBERS),
    "other arrays": lambda _: npz(poses=NUMBERS),
    "objects": lambda _: npz(states=np.array([[{}]], object)),
    "no numbers": lambda _: npz(states=np.array([[np.nan]])),
    "other numbers": lambda _: npz(states=NUMBERS.astype(np.float32)),
}
"""What has happened to a file of initial states -> its content."""


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


KINDS = ("lan", "object", "swap", "task", "temp_x0.1", "temp_y0.5", "with_mug", "with_wine_bottle")


def test_each_kind_is_found_and_its_instruction_and_states_are_read(package: Path) -> None:
    """Of `libero_object`, with one task each."""
    assert {p for p in pro.KINDS for kind in KINDS if re.fullmatch(p, kind)} == set(pro.KINDS), "one of each"
    base = package.parent / "site/libero/libero"
    (base / "benchmark/libero_suite_task_map.py").write_text("libero_task_map = {'libero_object': ['b']}")
    (base / "bddl_files/libero_object").mkdir()
    (base / "bddl_files/libero_object/b.bddl").write_text(BDDL.format("b"))
    for number, kind in enumerate(KINDS):
        for folder in (package / "bddl_files", package / "init_files"):
            (folder / f"libero_object_{kind}").mkdir()
        said = f"(define (problem P)\n  (:language  Do the\n {kind.upper()} )\n)"
        (package / f"bddl_files/libero_object_{kind}/b.bddl").write_text(said)
        np.savez(package / f"init_files/libero_object_{kind}/b.pruned_init.npz", states=np.full((2, 3), number, float))
    for none in ("libero_object_swapped", "libero_object_temp_z0.1", "libero_goals_swap"):  # of no kind, of no suite
        for folder in (package / "bddl_files", package / "init_files"):
            (folder / none).mkdir()
    (package / "bddl_files/libero_goal_swap").mkdir()  # without initial states
    (package / "bddl_files/libero_10_swap").touch()
    assert suites.suite_names()[5:] == (
        "libero_goal_lan", "libero_goal_with_mug", *(f"libero_object_{kind}" for kind in KINDS)
    )  # fmt: skip
    for number, kind in enumerate(KINDS):
        (task,) = suites.tasks(f"libero_object_{kind}")
        assert (task.instruction, task.index) == (f"do the {kind}", 0)
        assert (suites.init_states(task) == number).all()
        assert find_suite(task.suite).max_steps == suites.MAX_STEPS["libero_object"]
    with pytest.raises(UnknownTask, match=r"no LIBERO suite 'libero_goal_swap'.*of LIBERO-PRO libero_goal_lan"):
        suites.tasks("libero_goal_swap")


def test_a_scene_without_instruction_is_named(package: Path) -> None:
    (package / "bddl_files/libero_goal_lan/a.bddl").write_text("(define (problem P))")
    told = r"libero_goal_lan/a\.bddl has no \(:language.*Run: python -m statevla\.sims\.libero\.assets --pro"
    with pytest.raises(SimulatorMissing, match=told):
        suites.tasks("libero_goal_lan")


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


@pytest.mark.parametrize("damage", [*DAMAGES])
def test_damaged_states_are_named_and_what_to_do_about_them(
    package: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    file = package / "init_files/libero_goal_lan/b.pruned_init.npz"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    (task, _) = suites.tasks("libero_goal_lan")
    with pytest.raises(SimulatorMissing, match=r"b\.pruned_init\.npz: .*Unpack the package again, or") as told:
        suites.init_states(task)
    assert "\n" not in str(told.value)
    monkeypatch.delenv("LIBERO_PRO")  # what the cache holds is not downloaded over it
    with pytest.raises(SimulatorMissing, match=rf"Remove {pro.cache_folder()} and run: .* --pro$"):
        suites.init_states(task)


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
