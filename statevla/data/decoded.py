"""All pictures of a store, decoded once: one file a camera, in a derived folder, which every process maps.

Legend: N frames of the store, H height, W width.
"""

import contextlib
from pathlib import Path
from typing import Any, Final

from statevla.data.frames import make_table
from statevla.data.walk import walk_pictures
from stores.arrays import ArraySpec, whole_writer
from stores.derived import Derived, begin, key_of, open_derived, room_needed
from stores.disk.lock import lock
from stores.disk.room import require_room
from stores.errors import StaleKey, StoreCorrupt, StoreMissing
from stores.layout import DECODED
from stores.progress import Progress, ProgressEvent, told
from stores.reader import Store

FORMAT: Final = 1
MAKE: Final = "statevla train with --set data.cache=decoded"
FRAMES: Final = 64


def made_from(store: Store) -> dict[str, Any]:
    """Everything that decoded pictures are a function of."""
    return {"format": FORMAT, "content_hash": store.content_hash}


def find_decoded(store: Store, beside: Path | None = None) -> Derived | None:
    """Those of the store, or of the folder `beside` it; None when they are yet to be made, or of another size."""
    for root in (store.root if "://" not in store.root else None, beside):
        if root is not None:
            with contextlib.suppress(StoreMissing, StaleKey, StoreCorrupt):
                return open_derived(root, DECODED, made_from(store), MAKE)
    return None


def decode_store(store: Store, root: Path, threads: int, progress: Progress | None = None) -> Derived:
    """Write ``decoded/<key>`` below `root`, [N, H, W, 3] uint8 a camera, unless another process does it meanwhile,
    which is waited for. An interrupted call begins anew. Raises StateVLAError when the disk has no room.
    """
    frames, made = store.manifest.counts["frames"], made_from(store)
    specs = {
        name: ArraySpec((frames, *size, 3), "uint8", frames)
        for name, size in zip(store.spec.camera_names, store.spec.image_sizes, strict=True)
    }
    size = sum(spec.chunk_bytes for spec in specs.values())
    with lock(root, "decoding", told(progress, "decode", "frames")):
        with contextlib.suppress(StoreMissing, StaleKey, StoreCorrupt):
            return open_derived(root, DECODED, made, MAKE)
        if progress is not None:
            progress(ProgressEvent("decode", 0, frames, "frames", f"{size / 1e9:,.3f} GB"))
        key = key_of(made)
        require_room(Path(root, DECODED, key), room_needed(root, DECODED, key, specs), "decoded pictures")
        with begin(root, DECODED, key, made, specs) as folder:
            with contextlib.ExitStack() as stack:
                writers = [stack.enter_context(whole_writer(folder.root, name, spec)) for name, spec in specs.items()]
                for begun, pictures in walk_pictures(store, make_table(store, 1), 0, frames, FRAMES, threads):
                    for write, images in zip(writers, pictures, strict=True):
                        write(images)
                    if progress is not None:
                        progress(ProgressEvent("decode", begun + len(pictures[0]), frames, "frames"))
            folder.commit({"cameras": list(specs)})
    return open_derived(root, DECODED, made, MAKE)
