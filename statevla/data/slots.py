"""Decoded segments in slots of one array a camera, from which a batch is one gather.

Legend: S slots, O most observations of a segment, T most action rows of one, B batch, H height, W width, R numbers of a
robot state, A of an action.
"""

from typing import Final

import numpy as np
import torch

from statevla.data.frames import Ints, Table
from statevla.data.gather import Memory, gather
from stores.errors import StoreCorrupt
from stores.reader import Segment

NOWHERE: Final = -1


def slots_of(held: int, rows: int) -> int:
    """How many segments a stream has room for, whose blocks have `held` together and whose batches `rows` rows: what
    the blocks hold, and half as much, or a batch, of what comes next.
    """
    return held + max(held // 2, rows)


class Slots:
    """Room for `count` decoded segments, which is used again: fresh memory costs a page fault every 4 KB, and on a
    virtual machine as much as decoding into it. The slot that was free for the shortest time is taken first, so that
    what is never needed is never touched.

    images: uint8 [S * O, H, W, 3] a camera. robot_state: float32 [S * O, R]. action: float32 [S * T, A]. is_pad: bool
    [S * T]. Every segment is held in one slot, however many blocks it is in. `load` may be called from any thread, each
    with another segment; the rest from one.
    """

    def __init__(self, table: Table, count: int) -> None:
        self.table = table
        self.length = int(table.observations.max())
        self.actions = int(table.steps.max()) + table.store_chunk - 1
        spec = table.spec
        self.images = tuple(np.empty((count * self.length, *size, 3), np.uint8) for size in spec.image_sizes)
        self.robot_state = np.empty((count * self.length, spec.robot_state_dim), np.float32)
        self.action = np.empty((count * self.actions, spec.action_dim), np.float32)
        self.is_pad = np.empty(count * self.actions, np.bool_)
        self._memory = Memory()
        self._free = list(range(count))[::-1]
        self._slot = np.full(len(table.steps), NOWHERE, np.int64)

    @property
    def free(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    def take(self, segment: int) -> None:
        """A slot for `segment`, which has none."""
        self._slot[segment] = self._free.pop()

    def give(self, segment: int) -> None:
        """Nobody reads `segment` any more, nor decodes it."""
        self._free.append(int(self._slot[segment]))
        self._slot[segment] = NOWHERE

    def load(self, segment: int, read: Segment) -> None:
        """Decode a segment into its slot. Raises StoreCorrupt when its arrays have another shape."""
        slot = int(self._slot[segment])
        obs = slice(slot * self.length, slot * self.length + int(self.table.observations[segment]))
        rows = int(self.table.steps[segment]) + self.table.store_chunk - 1
        acts = slice(slot * self.actions, slot * self.actions + rows)
        for name, target, value in (
            ("robot_state", self.robot_state[obs], read.robot_state),
            ("action", self.action[acts], read.action),
            ("is_pad", self.is_pad[acts], read.is_pad),
        ):
            if value.shape != target.shape or value.dtype != target.dtype:
                raise StoreCorrupt(
                    f"{read.where}, {name}: expected {target.dtype} {target.shape}, "
                    f"got {value.dtype} {value.shape}; run `statevla verify STORE`"
                )
            target[...] = value
        read.decode(out=[pictures[obs] for pictures in self.images])

    def rows(self, segment: Ints, step: Ints) -> tuple[Ints, Ints]:
        """Rows of the observation and of the action of each (segment, step)."""
        slot = self._slot[segment]
        return slot * self.length + step, slot * self.actions + step

    def pictures(self, rows: Ints, pin: bool) -> tuple[torch.Tensor, ...]:
        """uint8 [B, H, W, 3] a camera, copied once, by gathers that release the GIL; `pin`: in page-locked memory."""
        found = []
        for pictures in self.images:
            out = self._memory.tensor((len(rows), *pictures.shape[1:]), "uint8", pin)
            gather(pictures, rows, out.numpy())
            found.append(out)
        return tuple(found)


def decoded_bytes(table: Table, segments: Ints) -> int:
    """Memory that the decoded pictures of `segments` take."""
    pixels = sum(height * width for height, width in table.spec.image_sizes)
    return int(table.observations[segments].sum()) * pixels * 3
