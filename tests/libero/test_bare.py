"""bare.sh as it runs on a machine without a network, with what is here for what that machine has: its own environment
from a wheel, the library that draws by itself, one demonstration, and the store that comes back."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from statevla.sims.libero import assets
from stores.reader import Store
from tests.packaging.test_install import ROOT, build, copy_tree

pytestmark = [pytest.mark.libero, pytest.mark.slow]

SUITE = "libero_object"
BUTTER = 6
"""A task whose demonstrations are short."""


@pytest.fixture
def packed(simulator_installed: None, tmp_path: Path) -> Path:
    """What `pack` leaves, but for the wheels of what this environment has anyway."""
    folder = tmp_path / "packed"
    (folder / "wheels").mkdir(parents=True)
    build("wheel", folder / "wheels", copy_tree(tmp_path / "tree"), CXX="", PATH=str(tmp_path / "nothing"))
    (folder / "packages.txt").touch()
    (folder / "assets").symlink_to(assets.find(SUITE))
    shutil.copy(ROOT / "statevla/sims/libero/bare.sh", folder)
    return folder


def run(folder: Path, **settings: str) -> str:
    """What the script printed."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    env |= {"EPISODES": "1", "TASKS": str(BUTTER), "LANGUAGE": "hashed"} | settings
    done = subprocess.run(
        ["sh", folder / "bare.sh", "run", SUITE], cwd=folder, env=env, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_stores_come_back_and_a_second_call_has_nothing_to_do(packed: Path) -> None:
    assert "bare.sh: draws by " in run(packed)
    store = Store.open(packed / "stores" / SUITE)
    assert store.manifest.counts["episodes"] == 1
    assert all(pictures.std() > 20 for pictures in store.decode_segment(0)), "the cameras saw something"
    assert max(store.stats().action.std) > 0
    assert not (packed / "raw" / SUITE).exists()
    assert list(packed.glob("env/lib/python3*/site-packages/statevla/sims/libero/bare.sh")), "from the wheel"
    before = (packed / "stores" / SUITE / "manifest.json").stat().st_mtime_ns
    assert f"bare.sh: {SUITE} is finished" in run(packed, KEEP_RAW="1")
    assert (packed / "stores" / SUITE / "manifest.json").stat().st_mtime_ns == before
