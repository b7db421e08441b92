"""What lies in a source's folder beside the files that are read: nothing is passed over without a word."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from pipelines.ingest.plan import is_source, natural_key
from stores.errors import SourceTrouble

HDF5_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
SHOWN: Final = 10


def other_entries(
    source: Path, used: Collection[Path], suffixes: Collection[str]
) -> tuple[list[dict[str, str]], list[str]]:
    """Quarantine rows (of what is named like a source and is none) and notes (of all else) of folder `source`.

    used: the files that are read; suffixes: of their names. A single file as `source` has no other entries.
    """
    refused: list[dict[str, str]] = []
    notes: list[str] = []
    plain: list[str] = []
    if not source.is_dir():
        return refused, notes
    for path in sorted(set(source.iterdir()) - set(used), key=lambda path: natural_key(_shown(path))):
        name = _shown(path)
        if path.is_dir():
            inside = sum(is_source(child, suffixes) for child in path.rglob("*"))
            held = f" with {inside} files in it that look like sources" if inside else ""
            notes.append(f"{name}/: sub-folder{held}, not read; ingest it with a --source of its own")
        elif is_source(path, suffixes):
            what = f"a link to {os.readlink(path)}, where nothing is" if path.is_symlink() else "no regular file"
            refused.append({"file": name, "demo": "", "reason": f"{name}: {what}"})
        elif _is_hdf5(path):
            notes.append(f"{name}: HDF5, but not read: its name does not end in {' or '.join(suffixes)}; rename it")
        else:
            plain.append(name)
    if plain:
        more = f" and {len(plain) - SHOWN} more" if len(plain) > SHOWN else ""
        notes.append(f"not read, no demonstrations by their names: {', '.join(plain[:SHOWN])}{more}")
    return refused, notes


def _shown(path: Path) -> str:
    return path.name.encode(errors="backslashreplace").decode()


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
