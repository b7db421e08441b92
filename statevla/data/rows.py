"""Batches of views that are stored by frame: nothing is decoded or held, every row is read into its place."""

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from statevla.data.batch import Batch, ObservationBatch
from statevla.data.frames import Ints, Table, assemble
from statevla.data.numbers import Numbers
from statevla.data.prefetch import BatchPlan, Supply
from statevla.data.views import View


def _places(table: Table, plan: BatchPlan) -> tuple[Ints, Ints, Ints]:
    """Segment, step and frame of the store of each row."""
    segment = np.concatenate([rows.segment for rows in plan.rows])
    step = np.concatenate([rows.step for rows in plan.rows])
    return segment, step, table.rows(segment, step)


class RowSupply:
    """A stream over a view."""

    def __init__(self, table: Table, numbers: Numbers, view: View, with_next: bool) -> None:
        self.table, self.numbers, self.view, self.with_next = table, numbers, view, with_next

    def ask(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        """Nothing: a batch is read at once, and `stream` has some ready."""

    def batch(self, plan: BatchPlan, pool: ThreadPoolExecutor, pin: bool) -> Batch:
        segment, step, frames = _places(self.table, plan)

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


class BesideSupply:
    """Another supply's batches, with further views of the same frames beside (`ObservationBatch.extras`)."""

    def __init__(self, inner: Supply, table: Table, views: Sequence[View]) -> None:
        self.inner, self.table, self.views = inner, table, views

    def ask(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        self.inner.ask(plan, pool)

    def batch(self, plan: BatchPlan, pool: ThreadPoolExecutor, pin: bool) -> Batch:
        batch = self.inner.batch(plan, pool, pin)
        frames = _places(self.table, plan)[2]

        def attach(obs: ObservationBatch, rows: Ints) -> ObservationBatch:
            found = {key: value for view in self.views for key, value in view.observe(rows, pin, pool).items()}
            return dataclasses.replace(obs, extras=found)

        obs = attach(batch.obs, frames)
        if batch.next_obs is batch.obs:
            return dataclasses.replace(batch, obs=obs, next_obs=obs)
        return dataclasses.replace(batch, obs=obs, next_obs=attach(batch.next_obs, frames + batch.has_next.numpy()))

    def release(self, plan: BatchPlan, coming: Iterable[BatchPlan]) -> None:
        self.inner.release(plan, coming)
