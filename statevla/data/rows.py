"""Batches of a view that is stored by frame: nothing is decoded or held, every row is read into its place."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from statevla.data.batch import Batch, ObservationBatch
from statevla.data.frames import Table, assemble
from statevla.data.numbers import Numbers
from statevla.data.prefetch import BatchPlan
from statevla.data.views import View


class RowSupply:
    """A stream over a view."""

    def __init__(self, table: Table, numbers: Numbers, view: View, with_next: bool) -> None:
        self.table, self.numbers, self.view, self.with_next = table, numbers, view, with_next

    def ask(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        """Nothing: a batch is read at once, and `stream` has some ready."""

    def batch(self, plan: BatchPlan, pool: ThreadPoolExecutor, pin: bool) -> Batch:
        segment = np.concatenate([rows.segment for rows in plan.rows])
        step = np.concatenate([rows.step for rows in plan.rows])
        frames = self.table.rows(segment, step)

        def observe(follow: NDArray[np.bool_], language: torch.Tensor) -> ObservationBatch:
            at = frames + follow
            state = torch.from_numpy(self.numbers.robot_state(at))
            return ObservationBatch(
                robot_state=state, language=language, **{"images": (), **self.view.observe(at, False, pool)}
            )

        chunk, is_pad = self.numbers.actions(frames, self.table.last_rows(segment), self.table.chunk)
        batch = assemble(self.table, segment, step, chunk, is_pad, observe, self.with_next)
        return batch.pin() if pin else batch

    def release(self, plan: BatchPlan, coming: Iterable[BatchPlan]) -> None:
        """Nothing is held."""
