"""Only `stores.disk.durable` changes the disk: no other module of the toolkit opens a file for writing or renames one.

Calls are found in the syntax tree, so strings and comments do not count. Libraries that insist on writing by path get
one from `durable.staging_dir` or `durable.staging_file`, which make what they wrote durable.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [*sorted(p for d in ("stores", "statevla", "pipelines") for p in (ROOT / d).rglob("*.py")), ROOT / "cli.py"]
DOOR = ROOT / "stores/disk/durable.py"

WRITING_METHODS = {"write_bytes", "write_text", "touch", "mkdir", "rename", "unlink", "rmdir", "symlink_to"}
WRITING_FUNCTIONS = {
    "os": {"replace", "rename", "remove", "unlink", "mkdir", "makedirs", "rmdir", "truncate", "link", "symlink"},
    "shutil": {"copy", "copy2", "copyfile", "copytree", "move", "rmtree"},
    "np": {"save", "savez", "savez_compressed", "savetxt", "memmap"},
    "pq": {"write_table", "ParquetWriter"},
    "torch": {"save"},
    "zarr": {"save", "create_array", "create_group", "open_group"},
    "json": {"dump"},
}
ALLOWED = {
    "stores/disk/lock.py": {".unlink"},  # the lock itself, which need not outlive the power
    "stores/tables.py": {"pq.ParquetWriter"},  # into `durable`'s writer
    "pipelines/export/lerobot.py": {"pq.ParquetWriter"},  # into `durable.staging_dir`
    "pipelines/bench/ingest.py": {".mkdir", "h5py.File", "tarfile.open"},  # scratch files of a measurement
    "pipelines/bench/large.py": {".mkdir", ".symlink_to"},
    "pipelines/bench/index.py": {".mkdir", ".open", ".write_text"},  # a made-up store, for a measurement
    "statevla/bench/features.py": {".open"},  # the plain file that it is measured against
    "statevla/bench/stream_peers.py": {"np.save"},  # into memory
    "statevla/bench/remote.py": {".mkdir"},  # a bucket, in a server of the measurement's own
    "stores/arrays.py": {"np.memmap"},  # mapped for reading
    "statevla/bench/gpu/report.py": {".mkdir", ".write_text"},  # runs where only PyTorch is
    "pipelines/collect/libero_parts.py": {"np.savez"},  # into memory
    "pipelines/collect/writer.py": {"h5py.File", ".unlink"},  # a library writer; fsynced and renamed afterwards
    "statevla/models/kernels/build.py": {".mkdir", "os.replace"},  # compiled code: built again when it is not there
    "statevla/sims/libero/paths.py": {".mkdir"},  # the simulator's own configuration
    "statevla/sims/libero/worker.py": {".unlink"},  # a child process's log
}
"""Neither stores nor checkpoints nor reports, or not the disk: with the reason."""


def _writes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id == "open" and _mode(node, 1) not in (None, "r", "rb"):
            yield node.lineno, "open"
        elif isinstance(function, ast.Attribute):
            owner = function.value.id if isinstance(function.value, ast.Name) else ""
            if (owner, function.attr) in {("h5py", "File"), ("tarfile", "open")}:
                if (_mode(node, 1) or "r") != "r":
                    yield node.lineno, f"{owner}.{function.attr}"
            elif owner in WRITING_FUNCTIONS:
                if function.attr in WRITING_FUNCTIONS[owner]:
                    yield node.lineno, f"{owner}.{function.attr}"
            elif function.attr == "open" and set(_mode(node, 0) or "r") & set("wax+"):
                yield node.lineno, ".open"
            elif function.attr in WRITING_METHODS and owner != "durable":
                yield node.lineno, f".{function.attr}"


def _mode(node: ast.Call, position: int) -> str | None:
    given = [k.value for k in node.keywords if k.arg == "mode"] + node.args[position : position + 1]
    return str(given[0].value) if given and isinstance(given[0], ast.Constant) else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_else_writes(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = [f"{name}:{line} {call}" for line, call in _writes(ast.parse(path.read_text()))]
    if path == DOOR:
        assert found, "the search itself is broken"
    else:
        assert [text for text in found if text.split()[1] not in ALLOWED.get(name, set())] == []
