"""bare.sh, which collects on a machine without a network: what it runs, in which order, and where it goes on. The
programs that it calls are stand-ins that write down what they were asked for; tests/libero/test_bare.py runs it with
the simulator."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "statevla/sims/libero/bare.sh"
PYTHON = """#!/bin/sh
# Python there, and that of the environment that it makes
echo "python $*" >>"$LOG"
case "$*" in
"-c import torch") [ -z "${NO_TORCH:-}" ] ;;
"-c "*) echo "$TOOLS" ;;
"-m venv "*) mkdir -p "$4/bin" && cp "$TOOLS/python" "$TOOLS/statevla" "$4/bin" ;;
*"pip --disable-pip-version-check freeze"*) cat "$TOOLS/frozen.txt" ;;
*"pip --disable-pip-version-check download"*) touch "$9/numpy-2.0-py3-none-any.whl" "$9/future-1.0.tar.gz" ;;
*"pip --disable-pip-version-check wheel"*.tar.gz) touch "$8/future-1.0-py3-none-any.whl" ;;
*"pip --disable-pip-version-check wheel"*) touch "$8/statevla-0.1.0-py3-none-any.whl" ;;
"-m statevla.sims.libero.render_check") case " ${DRAWS:-egl osmesa} " in *" $MUJOCO_GL "*) ;; *) exit 1 ;; esac ;;
esac
"""
STATEVLA = """#!/bin/sh
echo "$*" >>"$LOG"
[ "$1 $2" != "${STOP:-}" ] || exit 130
case "$1" in
collect) mkdir -p "$4" && touch "$4/demo.hdf5" ;;
ingest) [ -e "$4/demo.hdf5" ] && mkdir -p "$6" && touch "$6/manifest.json" ;;
esac
"""
REMOVE = """#!/bin/sh
case "$*" in */"${STOP_REMOVING:-nothing}"*) exit 1 ;; esac
exec /bin/rm "$@"
"""
PACKAGES = "numpy==2.0\nhf-libero==0.1.4\nPyOpenGL==3.1.10\nabsl_py==2.0\n"
WHEELS = ("numpy-2.0", "hf_libero-0.1.4", "PyOpenGL-3.1.10", "absl_py-2.0", "statevla-0.1.0")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in (("python", PYTHON), ("statevla", STATEVLA), ("rm", REMOVE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def bare(tools: Path, tmp_path: Path) -> Run:
    def run(*arguments: object, script: Path = SCRIPT, **settings: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{tools}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "TOOLS": str(tools)}
        env |= {"PYTHON": str(tools / "python")} | settings
        return subprocess.run(
            ["sh", script, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `pack` leaves."""
    packed = tmp_path / "packed"
    for name in ("wheels", "assets"):
        (packed / name).mkdir(parents=True)
    for wheel in WHEELS:
        (packed / "wheels" / f"{wheel}-py3-none-any.whl").touch()
    (packed / "packages.txt").write_text(PACKAGES)
    shutil.copy(SCRIPT, packed)
    return packed


@pytest.fixture
def collected(bare: Run, folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Runs the script for two suites; what the `statevla` of its environment was asked for. status: its exit status."""

    def run(*suites: str, status: int = 0, **settings: str) -> list[str]:
        (tmp_path / "log").write_text("")
        done = bare("run", *(suites or ("libero_object", "libero_goal")), script=folder / "bare.sh", **settings)
        assert done.returncode == status, done.stderr
        asked = (tmp_path / "log").read_text().replace(f"{folder}/", "").splitlines()
        return [line for line in asked if not line.startswith("python")]

    return run


def whole(suite: str) -> list[str]:
    return [
        f"collect {suite} --out raw/{suite} --episodes 50",
        f"ingest {suite} --source raw/{suite} --out stores/{suite} --language minilm",
        f"stats --store stores/{suite}",
    ]


def stores_of(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.glob("stores/*/manifest.json"))


BOTH = ["stores/libero_goal/manifest.json", "stores/libero_object/manifest.json"]


def test_it_leaves_a_store_a_suite_and_nothing_of_the_files(collected: Callable[..., list[str]], folder: Path) -> None:
    assert collected() == [*whole("libero_object"), *whole("libero_goal")]
    assert stores_of(folder) == BOTH
    assert list((folder / "raw").iterdir()) == []
    assert collected() == [], "what is finished is not looked at again"


def test_what_is_set_is_passed_on(collected: Callable[..., list[str]]) -> None:
    settings = {"EPISODES": "8", "TASKS": "0,1", "INIT_STATES": "20", "NOISE": "0.3", "WORKERS": "2"}
    collect, ingest, _ = collected("libero_object", LANGUAGE="hashed", **settings)
    assert collect.endswith("--episodes 8 --tasks 0,1 --init-states 20 --noise 0.3 --workers 2")
    assert ingest.endswith("--language hashed")


@pytest.mark.parametrize("keep", ["", "1"])
@pytest.mark.parametrize("step", range(3))
def test_it_goes_on_where_it_was_stopped(
    collected: Callable[..., list[str]], folder: Path, step: int, keep: str
) -> None:
    stop = ("collect libero_goal", "ingest libero_goal", "stats --store")[step]
    if step < 2:
        first = collected(STOP=stop, KEEP_RAW=keep, status=130)
        assert first == [*whole("libero_object"), *whole("libero_goal")[: step + 1]]
    else:
        collected("libero_object", KEEP_RAW=keep)
        assert collected(STOP=stop, KEEP_RAW=keep, status=130) == whole("libero_goal")
    assert collected(KEEP_RAW=keep) == whole("libero_goal")
    assert stores_of(folder) == BOTH
    assert collected(KEEP_RAW=keep) == []


def test_files_that_are_half_removed_are_no_beginning(collected: Callable[..., list[str]], folder: Path) -> None:
    assert collected("libero_object", STOP_REMOVING="libero_object.unwanted", status=1) == whole("libero_object")
    assert [file.name for file in (folder / "raw").iterdir()] == ["libero_object.unwanted"]
    assert collected("libero_object") == []
    assert list((folder / "raw").iterdir()) == []


def test_files_that_were_kept_stay(collected: Callable[..., list[str]], folder: Path) -> None:
    assert collected("libero_object", KEEP_RAW="1") == whole("libero_object")
    assert collected("libero_object", KEEP_RAW="1") == []
    assert collected("libero_object") == []
    assert (folder / "raw/libero_object/demo.hdf5").is_file()


def test_with_other_settings_it_goes_on_from_the_files_or_says_that_it_cannot(
    collected: Callable[..., list[str]], bare: Run, folder: Path
) -> None:
    collected("libero_object", KEEP_RAW="1")
    more = collected("libero_object", KEEP_RAW="1", EPISODES="60")
    assert more[0] == "collect libero_object --out raw/libero_object --episodes 60"
    assert len(more) == 3
    collected("libero_goal")
    refused = bare("run", "libero_goal", script=folder / "bare.sh", EPISODES="60")
    assert refused.returncode == 1
    assert refused.stderr == (
        f"bare.sh: {folder}/stores/libero_goal was made with EPISODES=50 TASKS= INIT_STATES= NOISE= LANGUAGE=minilm, "
        "this is EPISODES=60 TASKS= INIT_STATES= NOISE= LANGUAGE=minilm; move it away, or say the same\n"
    )
    assert stores_of(folder) == BOTH


@pytest.mark.parametrize(
    ("missing", "named"), [("hf_libero", " hf_libero"), ("statevla", " statevla"), ("*", " statevla numpy hf_libero")]
)
def test_a_missing_wheel_is_one_line(bare: Run, folder: Path, missing: str, named: str) -> None:
    for wheel in (folder / "wheels").glob(f"{missing}-*"):
        wheel.unlink()
    done = bare("run", "libero_object", script=folder / "bare.sh")
    assert done.returncode == 1
    assert done.stderr.startswith(f"bare.sh: {folder}/wheels has no wheel of{named}")
    assert done.stderr.endswith("; make it again with: bare.sh pack FOLDER\n")
    assert done.stderr.count("\n") == 1
    assert not (folder / "env").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"NO_TORCH": "1"}, "has no PyTorch; name one that has: PYTHON=... "),
        ({"DRAWS": "none"}, "bare.sh: neither EGL nor OSMesa draws here; install libegl1"),
    ],
)
def test_what_the_machine_lacks_is_one_line(bare: Run, folder: Path, settings: dict[str, str], told: str) -> None:
    done = bare("run", "libero_object", script=folder / "bare.sh", **settings)
    assert done.returncode == 1
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "by"), [({}, "egl"), ({"DRAWS": "osmesa"}, "osmesa"), ({"DRAWS": "", "MUJOCO_GL": "osmesa"}, "osmesa")]
)
def test_it_draws_with_a_gpu_where_that_works(bare: Run, folder: Path, settings: dict[str, str], by: str) -> None:
    done = bare("run", "libero_object", script=folder / "bare.sh", **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"bare.sh: draws by {by}\n" in done.stdout


def test_a_folder_that_was_not_packed_says_how_to(bare: Run, tmp_path: Path) -> None:
    done = bare("run", "libero_object")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "has no wheels and assets; make it with: bare.sh pack FOLDER" in done.stderr


def test_packing_takes_what_works_here_but_what_the_other_python_brings(bare: Run, tools: Path, tmp_path: Path) -> None:
    (tools / "frozen.txt").write_text(
        "numpy==2.0\ntorch==2.9.1+cpu\nnvidia-nccl-cu12==2.27\ntriton==3.5\npytest-xdist==3.8\nmoto==5.1\n"
        "local @ file:///home/me/local\nfuture==1.0\n"
    )
    packed = tmp_path / "new"
    done = bare("pack", packed, SUITES="libero_object")
    assert done.returncode == 0, done.stderr
    assert (packed / "packages.txt").read_text() == "numpy==2.0\nfuture==1.0\n"
    assert sorted(wheel.name.split("-")[0] for wheel in (packed / "wheels").iterdir()) == [
        "future",
        "numpy",
        "statevla",
    ]
    assert f"-m statevla.sims.libero.assets libero_object --copy {packed}/assets" in (tmp_path / "log").read_text()
    (packed / "assets").mkdir()
    assert bare("run", "libero_object", script=packed / "bare.sh").returncode == 0
