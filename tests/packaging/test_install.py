"""Installed where it was not developed: beside a user's own modules, from sdist and wheel, without a compiler."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from statevla import __main__ as entry
from statevla.sims.libero import paths

ROOT = Path(__file__).parents[2]
FOREIGN = "raise SystemExit('FOREIGN {name} WAS RUN')\n"


def users_project(folder: Path) -> Path:
    """A project that has a cli.py, a stores and a pipelines of its own, none of which may run."""
    for name in ("stores", "pipelines"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(FOREIGN.format(name=name))
    (folder / "cli.py").write_text(FOREIGN.format(name="cli"))
    return folder


def run(*command: object, folder: Path, path: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HOME": str(folder), "PYTHONPATH": path, **extra}
    if not path:
        del env["PYTHONPATH"]
    return subprocess.run(
        [*map(str, command)], cwd=folder, env=env, capture_output=True, text=True, timeout=1200, check=False
    )


@pytest.mark.parametrize("name", ["stores", "pipelines"])
def test_a_foreign_module_that_comes_first_is_one_line_that_names_its_file(tmp_path: Path, name: str) -> None:
    project = users_project(tmp_path)
    for other in {"stores", "pipelines"} - {name}:
        shutil.rmtree(project / other)
    done = run(sys.executable, "-P", "-m", "statevla", "inspect", "x", folder=tmp_path, path=f"{project}:{ROOT}")
    assert done.returncode == 2
    assert str(project / name / "__init__.py") in done.stderr
    assert done.stderr.count("\n") == 1
    assert "WAS RUN" not in done.stderr


def test_a_foreign_cli_and_a_folder_that_is_no_package_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "cli.py").write_text(FOREIGN.format(name="cli"))
    (tmp_path / "stores").mkdir()  # data, say
    done = run(sys.executable, "-m", "statevla", "--help", folder=tmp_path, path=f"{tmp_path}:{ROOT}")
    assert done.returncode == 0, done.stderr
    assert "ingest" in done.stdout


def test_a_cli_that_another_package_replaced_or_took_away_is_named(tmp_path: Path) -> None:
    assert entry.foreign_cli(ROOT) is None
    assert "is missing" in str(entry.foreign_cli(tmp_path))
    (tmp_path / "cli.py").write_text('"""Another tool."""\n')
    assert "another package has put its cli.py over" in str(entry.foreign_cli(tmp_path))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_our_letters_gets_them_escaped(tmp_path: Path, encoding: str) -> None:
    done = run(sys.executable, "-m", "statevla", "--help", folder=tmp_path, path=str(ROOT), PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "Demonstrations \\u2192 store" in done.stdout


@pytest.mark.parametrize(("command", "closed"), [("config", ">&-"), ("config", "<&-"), ("inspect x", ">&- 2>&-")])
def test_a_closed_stream_is_no_crash_and_its_number_no_files(tmp_path: Path, command: str, closed: str) -> None:
    done = run("sh", "-c", f"'{sys.executable}' -m statevla {command} {closed}", folder=tmp_path, path=str(ROOT))
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if command == "config" else 1)


def test_ctrl_c_while_the_command_loads_is_status_130(tmp_path: Path) -> None:
    code = "from statevla import __main__ as entry\n" + (
        "def stopped():\n    raise KeyboardInterrupt\nentry.foreign_module = stopped\nentry.main()\n"
    )
    done = run(sys.executable, "-c", code, folder=tmp_path, path=str(ROOT))
    assert (done.returncode, done.stderr) == (130, "")


def test_a_name_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    code = "import cli\ndef command():\n    'a line\\n{out: \\udcfc}\\n'.encode()\ncli.app = command\ncli.main()\n"
    done = run(sys.executable, "-c", code, folder=tmp_path, path=str(ROOT))
    assert done.returncode == 1
    assert done.stderr.startswith("error: not UTF-8: {out: \\udcfc; rename the file or folder")
    assert done.stderr.count("\n") == 1


def test_advice_on_the_simulator_works_without_a_checkout(tmp_path: Path) -> None:
    assert paths.install_command(ROOT) == "make libero"
    word, script, python = shlex.split(paths.install_command(tmp_path))
    assert (word, python) == ("sh", sys.executable)
    assert Path(script).is_file()
    assert subprocess.run([word, "-n", script], check=False).returncode == 0


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, statevla\n"
        "heavy = {'torch', 'dask', 'distributed', 'matplotlib', 'transformers', 'zarr'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = run(sys.executable, "-c", code, folder=ROOT)
    assert done.returncode == 0, done.stderr


def copy_tree(target: Path) -> Path:
    """What an sdist and a wheel are made of, nothing that was built in it."""
    target.mkdir(parents=True)
    unwanted = shutil.ignore_patterns(".*", "*.so", "__pycache__")
    for name in ("stores", "statevla", "pipelines"):
        shutil.copytree(ROOT / name, target / name, ignore=unwanted)
    for name in ("cli.py", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


def build(kind: str, target: Path, source: Path, **env: str) -> None:
    """An "sdist" or a "wheel" in the folder `target`, with the setuptools that is here."""
    code = "import sys; from setuptools import build_meta as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"
    made = run(sys.executable, "-c", code, kind, target, folder=source, **env)
    assert made.returncode == 0, made.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist of the tree, and a wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    build("sdist", folder, copy_tree(folder / "tree"))
    shutil.unpack_archive(next(folder.glob("*.tar.gz")), folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    for name, env in {"wheel": {}, "bare": {"CXX": "", "PATH": str(folder / "nothing")}}.items():
        (folder / name).mkdir()
        build("wheel", folder / name, source, **env)
        shutil.rmtree(source / "build")
        for library in source.rglob("*.so"):
            library.unlink()
    return {"sdist": source, **{name: next((folder / name).glob("*.whl")) for name in ("wheel", "bare")}}


def make_environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with the wheel in it that finds every other package in this one; its folder of programs."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # not the editable install: no .pth of a .pth
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    done = run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.mark.slow
def test_one_wheel_for_every_python(built: dict[str, Path]) -> None:
    assert built["wheel"].name.split("-")[2:4] == ["py3", "none"]


@pytest.mark.slow
def test_nothing_of_the_tree_is_left_out(built: dict[str, Path]) -> None:
    packed = set(zipfile.ZipFile(built["wheel"]).namelist())
    kept = [
        str(file.relative_to(ROOT))
        for name in ("stores", "statevla", "pipelines")
        for file in (ROOT / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(("_native", "."))
    ]
    assert set(kept) - packed == set()
    assert "cli.py" in packed
    assert all((built["sdist"] / name).is_file() for name in kept)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "bare"])
def test_it_works_beside_a_users_own_project(built: dict[str, Path], tmp_path: Path, kind: str) -> None:
    programs = make_environment(tmp_path / "env", built[kind])
    project = users_project(tmp_path / "project")
    for command in (
        ["--version"],
        ["collect", "tabletop", "--episodes", 8],
        ["ingest", "tabletop", "--language", "hashed"],
    ):
        done = run(programs / "statevla", *command, folder=project)
        assert done.returncode == 0, done.stderr
    done = run(
        programs / "statevla",
        "ingest",
        "tabletop",
        "--language",
        "hashed",
        "--workers",
        2,
        "--out",
        "other",
        folder=project,
    )
    assert done.returncode == 0, done.stderr
    where = run(programs / "python", "-P", "-c", "import statevla; print(statevla.__file__)", folder=project)
    assert str(tmp_path / "env") in where.stdout
    native = run(
        programs / "python",
        "-P",
        "-c",
        "from statevla.models.kernels import native; print(native.__file__)",
        folder=project,
    )
    library = Path(native.stdout.strip()).parent / "_native.so"
    assert library.is_file() is (kind == "wheel")
    refused = run(programs / "statevla", "inspect", "other", folder=project, path=str(project))
    assert refused.returncode == 2
    assert "WAS RUN" not in refused.stderr
