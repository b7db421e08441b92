"""A re-ingest that meets trouble leaves the store as it was, whenever that comes; what it had made is reused."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import pytest

import pipelines.ingest.commit
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import IngestSummary, ingest
from pipelines.sources import hdf5
from stores.errors import SourceError, SourceTrouble, UsageError
from stores.layout import CLAIM, STAGED
from stores.reader import Store
from stores.verify import verify_store
from tests.pipelines.make_hdf5 import write_suite
from tests.stores.faults import Tree, read_tree


def run(source: Path, out: Path, **options: Any) -> IngestSummary:
    summary = ingest(IngestConfig("toy", source, out, language="hashed"), isolated=False, **options)
    assert isinstance(summary, IngestSummary)
    return summary


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "source", tasks=3, demos=1)


def change(source: Path, files: int = 3) -> list[Path]:
    """Other actions in the first of the files."""
    paths = sorted(source.iterdir())[:files]
    for path in paths:
        with h5py.File(path, "r+") as file:
            file["data/demo_0/actions"][3, 0] = 0.123
    return paths


def standing(root: Path) -> Tree:
    """What is there but for what an unfinished ingest keeps."""
    return {name: data for name, data in read_tree(root).items() if name != CLAIM and not name.startswith(STAGED)}


class Failing:
    """The disk fails at the `at`-th read of what a source holds (from 0), and from then on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.reads, self.at = 0, at
        for name in ("read_rows", "attribute"):
            monkeypatch.setattr(hdf5, name, self.failing(getattr(hdf5, name)))

    def failing(self, read: Any) -> Any:
        def attempt(*arguments: Any, **options: Any) -> Any:
            self.reads += 1
            if self.reads > self.at:
                text = f"Can't read data (file read failed: errno = {errno.EIO}, error message = '{os.strerror(5)}')"
                raise OSError(text)  # as h5py does: without a number of its own
            return read(*arguments, **options)

        return attempt


@pytest.mark.parametrize("part", range(6))
def test_a_disk_that_fails_at_any_read_leaves_the_store_as_it_was(
    source: Path, tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "out"
    run(source, root)
    shutil.copytree(root, tmp_path / "fresh")
    before = read_tree(root)
    change(source)
    with monkeypatch.context() as patch:
        counted = Failing(patch, 1 << 30)
        run(source, tmp_path / "fresh")
    with monkeypatch.context() as patch:
        Failing(patch, part * (counted.reads - 1) // 5)
        with pytest.raises(SourceTrouble, match=r"_demo\.hdf5.*Input/output error.*Nothing was quarantined"):
            run(source, root)
    assert standing(root) == before
    assert verify_store(root) == []
    assert len(Store.open(root).episodes) == 3
    assert run(source, root).changed
    assert read_tree(root) == read_tree(tmp_path / "fresh")


def test_what_was_made_before_the_trouble_is_reused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "fresh")
    change(source)
    with monkeypatch.context() as patch:
        counted = Failing(patch, 1 << 30)
        run(source, tmp_path / "fresh")
    with monkeypatch.context() as patch:
        Failing(patch, counted.reads - 1)
        with pytest.raises(SourceTrouble):
            run(source, tmp_path / "out")
    assert run(source, tmp_path / "out").units_reused == 2


@pytest.mark.parametrize("refusal", ["strict", "nothing usable"])
def test_a_refused_re_ingest_leaves_the_store_as_it_was(source: Path, tmp_path: Path, refusal: str) -> None:
    root = tmp_path / "out"
    run(source, root)
    before = read_tree(root)
    for path in change(source, files=1 if refusal == "strict" else 3):
        with h5py.File(path, "r+") as file:
            file["data/demo_0/actions"][3, 0] = float("nan")
    with pytest.raises(SourceError, match=r"NaN|finite"):
        run(source, root, strict=refusal == "strict")
    assert standing(root) == before
    assert verify_store(root) == []


def test_a_changed_unit_lies_beside_the_store_until_all_are_made(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between: the next run finds it; told otherwise by then, it goes away with the commit."""
    root = tmp_path / "out"
    run(source, root)
    before = read_tree(root)
    kept = {path: path.read_bytes() for path in change(source, files=0) or sorted(source.iterdir())}
    change(source)
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.ingest.commit, "withdraw", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(source, root)
    assert standing(root) == before
    assert len(list((root / STAGED / "shards").iterdir())) == 3
    for path, data in kept.items():
        path.write_bytes(data)
    assert not run(source, root).changed
    assert read_tree(root) == before


def test_a_stranger_among_the_staged_is_not_removed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "out"
    run(source, root)
    stranger = root / STAGED / "shards/train-000.tar"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"theirs")
    change(source)
    with pytest.raises(UsageError, match=r"train-000.tar.*move them away"):
        run(source, root)
    assert stranger.read_bytes() == b"theirs"
