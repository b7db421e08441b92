"""Whether what is about to be written has room."""

import shutil
from pathlib import Path

from stores.disk.trouble import nearest
from stores.errors import StateVLAError


def require_room(folder: Path, size: int, what: str) -> None:
    """Raise StateVLAError when fewer than `size` bytes are free where `folder` is or would be."""
    free = shutil.disk_usage(nearest(folder)).free
    if size > free:
        raise StateVLAError(
            f"{folder}: {what} need {size / 1e9:,.3f} GB, {free / 1e9:,.3f} GB are free; make room, or choose less"
        )
