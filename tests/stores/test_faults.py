"""The crash tests' own model of a disk."""

from pathlib import Path

from stores.disk import durable
from tests.stores.faults import every_pair


def test_what_others_do_above_the_disk_is_none_of_the_models_business(tmp_path: Path) -> None:
    """A writer makes the folders above its own durable too; there, entries vanish while they are listed (here: a link
    that leads nowhere).
    """
    (tmp_path / "beside").symlink_to("nowhere")

    def work(disk: Path) -> None:
        durable.write_bytes(disk / "file", b"content")
        durable.settle(disk, ["file"])

    pairs = list(every_pair(tmp_path, lambda disk: None, work, work, ("kill", "power"), "model", (2, 99)))
    assert len(pairs) > 4
    assert all((disk / "file").read_bytes() == b"content" for _, _, disk in pairs[-1:])
