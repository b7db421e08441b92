"""Batches of views that are stored by frame: nothing is decoded or held, every row is read into its place."""

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import torch

from statevla.data.batch import Batch, ObservationBatch
from statevla.data.frames import Ints, Table, assemble
from statevla.data.numbers import Numbers
from statevla.data.prefetch import BatchPlan, Supply
from statevla.data.views import Far, View

FEATURE_FIELDS: Final = ("features", "scales")
"""Of an `ObservationBatch`; what `statevla.data.views.Features` gives."""


def _places(table: Table, plan: BatchPlan) -> tuple[Ints, Ints, Ints]:
    """Segment, step and frame of the store of each row."""
    segment = np.concatenate([rows.segment for rows in plan.rows])
    step = np.concatenate([rows.step for rows in plan.rows])
    return segment, step, table.rows(segment, step)


class RunsOfFrames:
    """What views that are far have been asked to bring near: the frames of a segment at a time, of which a request is
    worth more than one of a frame.
    """

    def __init__(self, table: Table, views: Sequence[View]) -> None:
        self.table = table
        self.far = [view for view in views if isinstance(view, Far) and view.is_far]
        self._asked: dict[tuple[int, int, int], dict[int, list[Future[None]]]] = {}

    def ask(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        """Have `pool` bring near the segments of `plan`, if they are not asked for."""
        if not self.far:
            return
        for rows in plan.rows:
            asked = self._asked.setdefault(rows.key, {})
            for segment in rows.used:
                if segment not in asked:
                    at = np.array([segment], np.int64)
                    start = int(self.table.rows(at, np.zeros(1, np.int64))[0])
                    stop = start + int(self.table.observations[segment])
                    asked[segment] = [pool.submit(view.fetch, start, stop) for view in self.far]

    def wait(self, plan: BatchPlan) -> None:
        """Until the segments of `plan` are near. Raises what bringing them raised."""
        if not self.far:
            return
        for rows in plan.rows:
            asked = self._asked.get(rows.key, {})
            for segment in rows.used:
                for fetch in asked.get(segment, ()):
                    fetch.result()

    def release(self, plan: BatchPlan, coming: Iterable[BatchPlan]) -> None:
        """`plan` is used up."""
        if self._asked:
            still = {rows.key for later in coming for rows in later.rows}
            for key in {rows.key for rows in plan.rows} - still:
                self._asked.pop(key, None)


class RowSupply:
    """A stream over a view."""

    def __init__(self, table: Table, numbers: Numbers, view: View, ahead: int) -> None:
        self.table, self.numbers, self.view, self.ahead = table, numbers, view, ahead
        self._fetching = RunsOfFrames(table, (view,))

    def fetch(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        self._fetching.ask(plan, pool)

    def room(self, plan: BatchPlan) -> bool:
        """Nothing is held."""
        return True

    def ask(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        """Nothing: a batch is read at once, and `stream` has some ready."""

    def batch(self, plan: BatchPlan, pool: ThreadPoolExecutor, pin: bool) -> Batch:
        self._fetching.wait(plan)
        segment, step, frames = _places(self.table, plan)

        def observe(later: Ints, language: torch.Tensor) -> ObservationBatch:
            at = frames + later
            state = torch.from_numpy(self.numbers.robot_state(at))
            return ObservationBatch(
                robot_state=state, language=language, **{"images": (), **self.view.observe(at, False, pool)}
            )

        chunk, is_pad = self.numbers.actions(frames, self.table.last_rows(segment), self.table.chunk)
        batch = assemble(self.table, segment, step, chunk, is_pad, observe, self.ahead)
        return batch.pin() if pin else batch

    def release(self, plan: BatchPlan, coming: Iterable[BatchPlan]) -> None:
        self._fetching.release(plan, coming)


class BesideSupply:
    """Another supply's batches, with further views of the same frames beside: kept features in their own fields of
    `ObservationBatch`, every other view in its extras.
    """

    def __init__(self, inner: Supply, table: Table, views: Sequence[View]) -> None:
        self.inner, self.table, self.views = inner, table, views
        self._fetching = RunsOfFrames(table, views)

    def fetch(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        self.inner.fetch(plan, pool)
        self._fetching.ask(plan, pool)

    def room(self, plan: BatchPlan) -> bool:
        return self.inner.room(plan)

    def ask(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        self.inner.ask(plan, pool)

    def batch(self, plan: BatchPlan, pool: ThreadPoolExecutor, pin: bool) -> Batch:
        batch = self.inner.batch(plan, pool, pin)
        self._fetching.wait(plan)
        frames = _places(self.table, plan)[2]

        def attach(obs: ObservationBatch, rows: Ints) -> ObservationBatch:
            found: dict[str, Any] = {}
            for view in self.views:
                found.update(view.observe(rows, pin, pool))
            fields = {key: found.pop(key) for key in FEATURE_FIELDS if key in found}
            return dataclasses.replace(obs, extras=found, **fields)

        obs = attach(batch.obs, frames)
        if batch.next_obs is batch.obs:
            return dataclasses.replace(batch, obs=obs, next_obs=obs)
        return dataclasses.replace(batch, obs=obs, next_obs=attach(batch.next_obs, frames + batch.ahead.numpy()))

    def release(self, plan: BatchPlan, coming: Iterable[BatchPlan]) -> None:
        self.inner.release(plan, coming)
        self._fetching.release(plan, coming)
