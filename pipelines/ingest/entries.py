"""What lies in a source's folder beside the files that are read: nothing is passed over without a word."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from pipelines.ingest.plan import is_source, list_sources, natural_key
from pipelines.sources.source import FolderSource
from pipelines.sources.table import source_of
from stores.disk.durable import is_temporary
from stores.errors import SourceTrouble, UsageError
from stores.printable import plain

HDF5_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
SHOWN: Final = 10


def find_sources(source: Path, suite: str, names: Sequence[str]) -> tuple[tuple[Path, ...], list[str]]:
    """What is read of `source`: files or datasets (folders), naturally sorted, and the formats of `names` that they
    could be in. Raises UsageError when there is nothing to read, saying where it looked.
    """
    of_folders = {name: found for name in names if isinstance(found := source_of(name), FolderSource)}
    whole = Path(os.path.abspath(source))  # has a name, whatever was typed
    for name, found in of_folders.items():
        if found.is_dataset(whole):
            return (whole,), [name]
    of_files = [name for name in names if name not in of_folders]
    nothing = UsageError(
        f"suite {suite!r}: expected a dataset of format {' or '.join(of_folders)} (its folder, or a folder of such "
        f"folders) in {whole}, got {'none' if source.is_dir() else 'no folder'}"
    )
    if of_files:
        try:
            return list_sources(source, suite, [source_of(name).suffixes for name in of_files]), of_files
        except UsageError as error:
            nothing = error
    folders = sorted(source.iterdir(), key=lambda path: natural_key(_shown(path))) if source.is_dir() else []
    for name, found in of_folders.items():
        datasets = tuple(
            path for path in folders if not path.name.startswith(".") and path.is_dir() and found.is_dataset(path)
        )
        if datasets:
            return datasets, [name]
    raise nothing


def other_entries(
    source: Path, used: Collection[Path], suffixes: Collection[str]
) -> tuple[list[dict[str, str]], list[str]]:
    """Quarantine rows (of what is named like a source and is none) and notes (of all else) of folder `source`.

    used: the files that are read; suffixes: of their names. A single file as `source` has no other entries.
    """
    refused: list[dict[str, str]] = []
    notes: list[str] = []
    plain: list[str] = []
    if not source.is_dir() or Path(os.path.abspath(source)) in used:
        return refused, notes
    for path in sorted(set(source.iterdir()) - set(used), key=lambda path: natural_key(_shown(path))):
        name = _shown(path)
        if is_temporary(path.name):
            notes.append(f"{name}: not read: left by an interrupted writer, unless one is at work there now; remove it")
        elif path.is_dir():
            inside = sum(is_source(child, suffixes) for child in path.rglob("*"))
            held = f" with {inside} files in it that look like sources" if inside else ""
            notes.append(f"{name}/: sub-folder{held}, not read; ingest it with a --source of its own")
        elif is_source(path, suffixes):
            what = f"a link to {os.readlink(path)}, where nothing is" if path.is_symlink() else "no regular file"
            refused.append({"file": name, "demo": "", "reason": f"{name}: {what}"})
        elif path.name.startswith(".") and _is_hdf5(path):
            notes.append(f"{name}: hidden, not read: its name begins with a dot")
        elif suffixes and _is_hdf5(path):
            notes.append(f"{name}: HDF5, but not read: its name does not end in {' or '.join(suffixes)}; rename it")
        else:
            plain.append(name)
    if plain:
        more = f" and {len(plain) - SHOWN} more" if len(plain) > SHOWN else ""
        notes.append(f"not read, no demonstrations by their names: {', '.join(plain[:SHOWN])}{more}")
    return refused, notes


def _shown(path: Path) -> str:
    return plain(path.name)


def _is_hdf5(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    except OSError:
        return False


def require_targets(paths: Sequence[Path]) -> None:
    """Raise SourceTrouble naming every one of `paths` that is a link to what is not there."""
    gone = [path for path in paths if path.is_symlink() and not path.exists()]
    if gone:
        links = "; ".join(f"{path}: the link leads to {os.readlink(path)}" for path in gone)
        raise SourceTrouble(
            f"{links}, which {'is' if len(gone) == 1 else 'are'} not there; fetch the content (git annex get, dvc "
            "pull, hf download), or remove the link. Nothing was changed"
        )
