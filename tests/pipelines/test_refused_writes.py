"""Commands whose disk says no, in processes of their own: one line that names the file, and nothing half-written.

The limit on a file's size is the refusal that needs no mount and no second user; docs/reliability.md has what a quota
and another user's folders gave by hand.
"""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from stores.disk.trouble import describe
from stores.errors import StoreError
from stores.reader import Store
from tests.stores.make_store import make_tiny_store


def run(limit: int, *arguments: str, cwd: Path) -> str:
    """The only line of its error output that is no progress."""
    done = subprocess.run(
        [sys.executable, "-m", "statevla", *arguments],
        cwd=cwd, capture_output=True, text=True, check=False, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said == done.stderr.splitlines()[-1]
    return said


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_collecting(tmp_path: Path, workers: tuple[str, ...]) -> None:
    said = run(200_000, "collect", "tabletop", "--episodes", "5", "--out", "raw", *workers, cwd=tmp_path)
    assert "_demo.hdf5: larger than a file may be here (`ulimit -f`" in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_exporting(tmp_path: Path) -> None:
    pytest.importorskip("av")
    make_tiny_store(tmp_path / "store")
    said = run(2_000, "export", "lerobot", "store", "out", cwd=tmp_path)
    assert "out/" in said
    assert "`ulimit -f`" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_a_folder_that_may_not_be_read_has_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_store(tmp_path / "store")
    refused = PermissionError(13, "Permission denied", str(tmp_path / "store/manifest.json"))

    def refuse(*_: object, **__: object) -> None:
        raise refused

    monkeypatch.setattr("os.open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(StoreError) as told:
        Store.open(tmp_path / "store")
    assert describe(refused) in str(told.value)
    assert "credentials" not in str(told.value)
