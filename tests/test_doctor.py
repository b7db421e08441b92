"""The doctor names what is broken and what to run, and breaks itself over nothing."""

import hashlib
import pickle
import re
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cli import main
from statevla import doctor as module
from statevla.doctor import Check, doctor, healthy
from statevla.sims.libero import assets, experts, paths, pro, render_check, suites


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str | None]:
    """Versions that are pretended to be installed, without assets."""
    versions: dict[str, str | None] = dict(paths.PACKAGES)
    monkeypatch.setattr(paths, "installed_version", lambda package: versions[package])
    monkeypatch.setattr(paths, "package_root", lambda: tmp_path)
    monkeypatch.setattr(assets, "candidates", lambda: [])
    monkeypatch.delenv(paths.FORCE_MUJOCO, raising=False)
    return versions


def test_this_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_rendering", lambda: [])  # starts processes; has its own tests
    checks = {check.name: check for check in doctor()}
    assert {"Python", "packages", "device", "image codec", "LIBERO simulator", "disk", "memory"} <= set(checks)
    assert checks["Python"].status == "ok"
    assert checks["image codec"].status == "ok"
    assert any(name.startswith("mamba: ") and "used" in check.value for name, check in checks.items())


def test_a_check_that_raises_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Check]:
        raise OSError("disk on fire")

    monkeypatch.setattr(module, "_disk", broken)
    monkeypatch.setattr(module, "_rendering", lambda: [])
    (failed,) = [check for check in doctor() if check.name == "broken"]
    assert (failed.status, failed.value) == ("failed", "OSError: disk on fire")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("numpy", "no-such-package"))
    missing = next(check for check in module._python() if check.name == "missing packages")
    assert (missing.status, missing.value) == ("failed", "no-such-package")


def test_an_optional_part_that_is_not_there_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXTRAS", {"text": ("no-such-package",)})
    extra = module._python()[-1]
    assert (extra.name, extra.status, extra.advice) == ("extra: text", "absent", "pip install 'statevla[text]'")
    assert healthy([extra])


def test_no_simulator_is_no_failure(simulator: dict[str, str | None]) -> None:
    simulator.update(dict.fromkeys(simulator))
    (check,) = module._simulator()
    assert (check.status, check.advice) == ("absent", "make libero")
    assert healthy([check])


def test_a_wrong_mujoco_is_refused_with_the_reason(
    simulator: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator["mujoco"] = "3.3.7"
    checks = {check.name: check for check in module._simulator()}
    assert checks["MuJoCo version"].status == "failed"
    assert "darker" in checks["MuJoCo version"].value
    assert not healthy(list(checks.values()))
    monkeypatch.setenv(paths.FORCE_MUJOCO, "1")
    forced = {check.name: check for check in module._simulator()}["MuJoCo version"]
    assert (forced.status, forced.value) == ("warning", "3.3.7, forced")


def test_half_a_simulator_and_no_assets(simulator: dict[str, str | None]) -> None:
    checks = {check.name: check for check in module._simulator()}
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"):
        assert checks[suite].status == "failed"
        assert checks[suite].advice == f"python -m statevla.sims.libero.assets {suite}"
    simulator["bddl"] = None
    checks = {check.name: check for check in module._simulator()}
    assert "missing bddl" in checks["LIBERO simulator"].value


@pytest.fixture
def whole(simulator: dict[str, str | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Assets of two suites of 3 and of 10 tasks, of 6 initial states and of 6 or 4; returns the assets' folder."""
    sizes = {"libero_object": [6] * 3, "libero_90": [6] * 9 + [4]}
    content = {"scenes/a.xml": (b"scene", {*sizes}), "bowl/bowl.msh": (b"bowl", {"libero_90"})}
    table = tuple(
        assets.Asset(path, len(data), hashlib.sha256(data).hexdigest(), 1, frozenset(of))
        for path, (data, of) in content.items()
    )
    folder = tmp_path / "assets"
    for path, (data, _) in content.items():
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes(data)

    def tasks(suite: str) -> tuple[suites.Task, ...]:
        names = [f"{suite}_{index}" for index in range(len(sizes[suite]))]
        return tuple(suites.Task(suite, i, n, n, Path(), tmp_path / f"{n}.pruned_init") for i, n in enumerate(names))

    for suite, counts in sizes.items():
        for task, count in zip(tasks(suite), counts, strict=True):
            with zipfile.ZipFile(task.init_file, "w") as archive:
                pickled = pickle.dumps(np.zeros((count, 5)), 2)
                archive.writestr("a/data.pkl", pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    monkeypatch.setattr(assets, "listed", lambda: table)
    monkeypatch.setattr(assets, "candidates", lambda: [folder])
    monkeypatch.setattr(suites, "BASES", tuple(sizes))
    monkeypatch.setattr(suites, "tasks", tasks)
    monkeypatch.setattr(pro, "suite_names", lambda bases: ())
    programs = {"libero_object": None, "libero_90": ("a",) * 8 + (None, None)}
    monkeypatch.setattr(experts, "programs_of", lambda suite: programs[suite])
    return folder


def test_a_suite_that_is_there_says_what_it_has(whole: Path) -> None:
    object_, ninety = module.libero_suites()[:2]
    assert (object_.name, object_.status, object_.advice) == ("libero_object", "ok", "")
    assert object_.value == f"1 asset files in {whole}; 3 tasks of 6 initial states; no expert; 2.4 GiB a worker"
    assert ninety.value == (
        f"2 asset files in {whole}; 10 tasks of 4-6 initial states; "
        "expert for its tasks, but for 8, 9; 2.4 GiB a worker"
    )
    assert healthy([object_, ninety])


def test_an_asset_of_other_content_is_to_be_removed(whole: Path) -> None:
    (whole / "bowl/bowl.msh").write_bytes(b"wlob")
    object_, ninety = module.libero_suites()[:2]
    assert (object_.status, ninety.status) == ("ok", "failed")
    assert f"2 asset files in {whole}, bowl/bowl.msh has other content (sha256); 10 tasks" in ninety.value
    assert ninety.advice == f"remove {whole}/bowl/bowl.msh; python -m statevla.sims.libero.assets libero_90"


def test_an_asset_of_another_size_makes_a_suite_absent(whole: Path) -> None:
    (whole / "bowl/bowl.msh").write_bytes(b"bow")
    object_, ninety = module.libero_suites()[:2]
    assert (object_.status, ninety.status) == ("ok", "absent")
    assert "bowl/bowl.msh has 3 bytes instead of 4" in ninety.value
    assert ninety.advice == "python -m statevla.sims.libero.assets libero_90"
    (whole / "scenes/a.xml").unlink()  # and none is whole
    assert {check.status for check in module.libero_suites()[:2]} == {"failed"}


def test_initial_states_that_cannot_be_read_are_the_package_s_fault(whole: Path) -> None:
    suites.tasks("libero_90")[3].init_file.write_bytes(b"cut")
    object_, ninety = module.libero_suites()[:2]
    assert (object_.status, ninety.status, ninety.advice) == ("ok", "failed", paths.INSTALL)
    assert "libero_90_3.pruned_init: no LIBERO initial states in it" in ninety.value


@pytest.mark.parametrize(
    ("mean", "status", "advice"),
    [
        (render_check.KNOWN_MEAN, "ok", ""),
        ((80.2, 54.3, 32.4), "failed", "mujoco==3.3.2"),  # what MuJoCo 3.3.7 draws
        (None, "failed", "libegl-mesa0"),
    ],
)
def test_a_picture_is_compared_with_the_known_one(
    simulator: dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
    mean: tuple[float, float, float] | None,
    status: str,
    advice: str,
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(render_check, "check", lambda backend: render_check.Rendered(backend, mean, "no driver"))
    egl = module._rendering()[0]
    assert egl.name == "OpenGL: egl"
    assert egl.status == status
    assert advice in egl.advice


def test_a_store_that_is_none(tmp_path: Path) -> None:
    (check,) = module._store(tmp_path)
    assert check.status == "failed"
    assert str(tmp_path) in check.value


def test_what_to_run_is_one_line_that_can_be_copied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    advice = "python -m statevla.sims.libero.assets --pro"
    monkeypatch.setattr(module, "doctor", lambda store: [Check("LIBERO-PRO", "absent", "not here", advice)])
    monkeypatch.setattr(sys, "argv", ["statevla", "doctor"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    assert f"LIBERO-PRO: {advice}" in capsys.readouterr().out.splitlines()


def test_every_extra_that_brings_a_package_for_a_run_is_checked() -> None:
    """But those with lines of their own (gpu, libero) and what is for work on the toolkit."""
    given = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(module.EXTRAS) == set(given) - {"gpu", "libero", "dev"}
    for name, packages in module.EXTRAS.items():
        assert packages == tuple(re.split("[<>=]", requirement)[0] for requirement in given[name])
