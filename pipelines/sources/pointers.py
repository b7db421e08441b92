"""Small files that stand in the place of large ones that were not fetched."""

from pathlib import Path
from typing import Final

from stores.errors import SourceTrouble

_POINTERS: Final = (
    (b"version https://git-lfs", "a Git LFS pointer", "git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer", "git annex get"),
)
_LONGEST: Final = max(len(begin) for begin, _, _ in _POINTERS)


def require_content(path: Path) -> None:
    """Raise SourceTrouble where only a pointer to the file is there: its content is elsewhere, and not damaged."""
    with path.open("rb") as file:
        begins = file.read(_LONGEST)
    for begin, named, command in _POINTERS:
        if begins.startswith(begin):
            raise SourceTrouble(
                f"{path.name}: {named} instead of the file; run `{command}`, or move it away. Nothing was changed"
            )
