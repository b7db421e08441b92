"""Every kind of damage to every kind of object: `verify` names it, and the reader raises instead of inventing."""

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cli import main
from statevla.bench.far import serve_folder
from stores.derived import seal_bytes
from stores.errors import StoreError, UsageError
from stores.kept import list_kept
from stores.manifest import Manifest, content_hash, hash_object, hash_objects
from stores.progress import ProgressEvent
from stores.reader import Store
from stores.schema import SEGMENTS
from stores.statistics import save_stats
from stores.tables import SEGMENTS_FILE, write_table
from stores.verify import count_objects, verify_store
from tests.stores.faults import read_tree
from tests.stores.make_store import make_tiny_store, train_statistics


def _flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped first": (lambda path: _flip(path, 0), "altered"),
    "flipped middle": (lambda path: _flip(path, 0.5), "altered"),
    "flipped last": (lambda path: _flip(path, 1), "altered"),
    "truncated": (_truncate, "short"),
    "appended": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "long"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "missing": (lambda path: path.unlink(), "missing"),
}
OBJECTS = (
    "episodes.parquet",
    "segments.parquet",
    "language.parquet",
    "shards/put_the_red_block_in_the_bin_demo-000.tar",
    "frames.zarr/zarr.json",
    "frames.zarr/action/zarr.json",
    "frames.zarr/action/c/0/0",
    "frames.zarr/index/c/0",
    "frames.zarr/index/zarr.json",
    "quarantine.jsonl",
    "units/put_the_red_block_in_the_bin_demo-000.json",
    "features/siglip/agentview/c/0",
)
UNREAD = ("quarantine.jsonl", "units/put_the_red_block_in_the_bin_demo-000.json")
"""Objects of a store that no reader reads."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A store with statistics and a derived folder."""
    root = tmp_path_factory.mktemp("sound") / "store"
    made = make_tiny_store(root, stats=False)
    for name in UNREAD:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"what was refused, and how a shard was made")
    manifest = Manifest.load(root)
    objects = (*manifest.objects, *hash_objects(root, UNREAD))
    replace(manifest, objects=objects).save(root)
    save_stats(root, content_hash(root), train_statistics(made))
    folder = root / "features/siglip"
    (folder / "agentview/c").mkdir(parents=True)
    (folder / "agentview/c/0").write_bytes(b"features")
    item = hash_object(folder, "agentview/c/0")
    (folder / "manifest.json").write_bytes(seal_bytes({"encoder": "test"}, {}, (item,)))
    return root


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "store")
    return tmp_path / "store"


def _read_everything(root: Path) -> None:
    store = Store.open(root)
    _ = store.frames, store.language, store.stats()
    for i in range(len(store)):
        store.decode_segment(i)


def test_a_sound_store_has_no_problems(root: Path) -> None:
    events: list[ProgressEvent] = []
    before = read_tree(root)
    assert verify_store(root, events.append) == []
    assert read_tree(root) == before
    assert events[-1].done == events[-1].total
    assert len(events) == count_objects(root)  # the manifest's objects and one feature, without the manifest
    _read_everything(root)


@pytest.mark.parametrize("kind", ["pipe", "link"])
@pytest.mark.parametrize("name", OBJECTS[1:6:2])
def test_a_pipe_or_a_link_in_the_place_of_an_object_is_damage_at_once(root: Path, name: str, kind: str) -> None:
    """A pipe would be waited for, a link may lead anywhere; here it leads to the right bytes."""
    (root / name).rename(root.parent / "elsewhere")
    os.mkfifo(root / name) if kind == "pipe" else (root / name).symlink_to(root.parent / "elsewhere")
    assert [problem.object for problem in verify_store(root)] == [name]
    with pytest.raises(StoreError, match=name):
        _read_everything(root)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", OBJECTS)
def test_damage_is_named_and_refused(root: Path, name: str, damage: str) -> None:
    spoil, kind = DAMAGE[damage]
    spoil(root / name)
    problems = verify_store(root)
    assert [problem.object for problem in problems] == [name]
    assert problems[0].problem.startswith(kind)
    if name.startswith("features/") or (name in UNREAD and damage.startswith("flipped")):
        _read_everything(root)  # what nothing is read from is compared by name and size only
        return
    with pytest.raises(StoreError, match=_pattern(name)):
        _read_everything(root)
    if not damage.startswith("flipped"):
        with pytest.raises(StoreError, match=_pattern(name)):
            Store.open(root)


def _pattern(name: str) -> str:
    return name.replace(".", r"\.")


@pytest.mark.parametrize("damage", ["flipped first", "flipped middle", "truncated", "appended", "empty"])
@pytest.mark.parametrize("name", ["manifest.json", "stats", "features/siglip/manifest.json"])
def test_damage_to_sealed_files_is_named(root: Path, name: str, damage: str) -> None:
    path = next((root / "stats").iterdir()) if name == "stats" else root / name
    DAMAGE[damage][0](path)
    assert path.relative_to(root).as_posix() in [problem.object for problem in verify_store(root)]
    if not name.startswith("features/"):
        with pytest.raises(StoreError, match=path.name):
            _read_everything(root)


def test_a_removed_manifest_is_no_store_and_a_removed_feature_manifest_disowns_its_objects(root: Path) -> None:
    (root / "features/siglip/manifest.json").unlink()
    assert [p.object for p in verify_store(root)] == ["features/siglip/agentview/c/0"]
    (root / "manifest.json").unlink()
    with pytest.raises(StoreError, match="is not a store"):
        verify_store(root)


@pytest.mark.parametrize(
    "name", ["notes.txt", "shards/extra.tar", "frames.zarr/action/c/1/0", "stats/notes.txt", "features/siglip/x"]
)
def test_an_extra_object_is_named(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"")
    problems = verify_store(root)
    assert [(p.object, p.problem) for p in problems] == [(name, "extra: no manifest names it")]
    if not name.startswith(("stats/", "features/")):  # derived folders are not the manifest's
        with pytest.raises(StoreError, match=f"{_pattern(name)} is extra: manifest.json does not name it"):
            Store.open(root)


def test_leftovers_of_a_writer_are_named_as_such(root: Path) -> None:
    (root / "shards/.tmp-0011-a.tar").write_bytes(b"half")
    (root / ".lock").write_bytes(b"")
    problems = verify_store(root)
    assert [p.object for p in problems] == ["shards/.tmp-0011-a.tar"]
    assert "interrupted writer" in problems[0].problem
    _read_everything(root)  # none of a reader's business


def test_all_problems_are_named_at_once_for_any_threads(root: Path) -> None:
    (root / "language.parquet").unlink()
    (root / "extra").write_bytes(b"x")
    _flip(root / "frames.zarr/robot_state/c/0/0", 0.3)
    named = [p.object for p in verify_store(root)]
    assert named == ["extra", "frames.zarr/robot_state/c/0/0", "language.parquet"]
    assert verify_store(root, threads=1) == verify_store(root, threads=5)


@pytest.mark.parametrize("change", [("offset", 512), ("size", -512), ("shard", "shards/none.tar")], ids=str)
def test_segments_that_do_not_fill_their_shards_are_refused_on_opening(root: Path, change: tuple[str, object]) -> None:
    """Tables written by a mistaken writer: all hashes hold."""
    rows = read_segments(root)
    name, value = change
    rows[1][name] = value if isinstance(value, str) else rows[1][name] + value
    write_table(root / SEGMENTS_FILE, rows, SEGMENTS)
    _renew(root, SEGMENTS_FILE)
    with pytest.raises(StoreError, match=r"do not fill .*shards/"):
        Store.open(root)
    assert "contradict" in verify_store(root)[0].problem


def read_segments(root: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = Store.open(root).segments.to_pylist()
    return rows


def _renew(root: Path, name: str) -> None:
    """Let the manifest say what is there."""
    manifest, fresh = Manifest.load(root), hash_object(root, name)
    objects = tuple(fresh if item.path == fresh.path else item for item in manifest.objects)
    (root / "manifest.json").write_bytes(replace(manifest, objects=objects).to_bytes())


def test_objects_that_contradict_each_other_are_a_problem_though_all_hashes_hold(root: Path, tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "other", seed=5, episodes=6)
    shutil.copy(tmp_path / "other/episodes.parquet", root / "episodes.parquet")
    _renew(root, "episodes.parquet")
    assert "contradict" in verify_store(root)[0].problem


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted where the system lists them")
def test_reading_leaves_no_native_thread_that_could_outlive_the_interpreter(root: Path) -> None:
    """A process once ended by SIGABRT after a clean verify: Arrow's own threads were still there at its exit."""
    program = (
        "import os, sys; from stores.reader import Store; from stores.verify import verify_store\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "assert verify_store(sys.argv[1]) == [] and Store.open(sys.argv[1]).language\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


class Plain(http.server.SimpleHTTPRequestHandler):
    """As `python -m http.server`: no ranges."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def serve_plain(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Plain, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def serve_ranges(folder: Path) -> Iterator[str]:
    with serve_folder(folder) as server:
        yield server.url


@pytest.mark.parametrize("serve", [serve_plain, serve_ranges])
def test_a_web_server_lists_nothing_and_what_the_manifest_names_is_checked(
    root: Path, serve: Callable[[Path], contextlib.AbstractContextManager[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.cloud.storage.REMOTE_PIECE", 30_000)  # objects of several pieces
    with serve(root) as url:
        assert verify_store(url) == []
        for name in OBJECTS[1:-1:3]:
            for damage, (spoil, kind) in DAMAGE.items():
                before = (root / name).read_bytes()
                spoil(root / name)
                found = [(problem.object, problem.problem[: len(kind)]) for problem in verify_store(url)]
                assert found == [(name, kind)], damage
                (root / name).write_bytes(before)
        with pytest.raises(UsageError, match="a web server lists no objects"):
            list_kept(url)


def test_verify_over_http_says_what_it_cannot_know(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_ranges(root) as url:
        for as_json in (["--json"], []):
            monkeypatch.setattr("sys.argv", ["statevla", "verify", url, *as_json])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code in (0, None)
    told, line, _ = capsys.readouterr().out.split("\n")
    assert json.loads(told) == {"ok": True, "objects": count_objects(root), "listed": False, "problems": []}
    assert line.endswith("a web server lists nothing, so derived folders and extras are not checked")
