"""Pictures of what was learnt: actions over time, demonstrations with their traces, the states' main components.

Legend: T steps of an episode, A numbers of an action, D width of a state.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from statevla.data.batch import ObservationBatch
from statevla.observation import Observation
from statevla.policies.noise import Draw
from statevla.policies.policy import Policy
from statevla.reports.charts import Dot, Series, colour_of, panel
from statevla.reports.films import png_bytes
from statevla.reports.page import Demonstration, Scatter, Traces
from stores.reader import Store

SHOWN_DEMONSTRATIONS: Final = 20
STATE_EPISODES: Final = 40
STILL: Final = 1e-6
"""A dimension whose values differ by less never moves."""

THUMBNAIL: Final = 72


@dataclass(frozen=True)
class Episode:
    """One demonstration, decoded: images uint8 [T, H, W, 3] of each camera, robot_state [T, S], action [T, A]."""

    instruction: str
    images: tuple[NDArray[np.uint8], ...]
    robot_state: NDArray[np.float32]
    action: NDArray[np.float32]

    @classmethod
    def read(cls, store: Store, row: int) -> "Episode":
        """Row `row` of the episode table, its observations that have an action."""
        columns = store.episode_columns
        first, steps = int(columns["first_frame"][row]), int(columns["steps"][row])
        segment, lengths = int(columns["first_segment"][row]), store.segment_columns["steps"]
        segments = range(segment, segment + int(columns["segments"][row]))
        parts = [[camera[: int(lengths[n])] for camera in store.decode_segment(n)] for n in segments]
        rows = slice(first, first + steps)
        state, action = (np.asarray(store.frames[name][rows], np.float32) for name in ("robot_state", "action"))
        return cls(
            str(columns["instruction"][row]), tuple(map(np.concatenate, zip(*parts, strict=True))), state, action
        )

    def at(self, step: int) -> tuple[NDArray[np.uint8], ...]:
        return tuple(camera[step] for camera in self.images)

    def observation(self, step: int) -> Observation:
        return Observation(self.at(step), self.robot_state[step], self.instruction)


def rows_of(store: Store, split: str) -> list[int]:
    """Rows of the split's episodes, in an order that takes from every instruction in turn."""
    columns = store.episode_columns
    waiting: dict[str, list[int]] = {}
    for row in np.flatnonzero(columns["split"].astype(str) == split).tolist():
        waiting.setdefault(str(columns["instruction"][row]), []).append(row)
    longest = max(map(len, waiting.values()), default=0)
    return [rows[n] for n in range(longest) for rows in waiting.values() if n < len(rows)]


def every_action(store: Store) -> NDArray[np.float32]:
    """float32 [N, A]: a last frame without an action has none here."""
    actions = np.asarray(store.frames["action"], np.float32)
    return actions[np.isfinite(actions).all(1)]


def moving(actions: NDArray[np.float32]) -> list[int]:
    """Dimensions of actions [T, A] that ever change."""
    return np.flatnonzero(np.ptp(actions, axis=0) > STILL).tolist() if len(actions) else []


def traces(policy: Policy, store: Store, replan: int) -> Traces:
    """What the policy would do along a demonstration that it was not trained on, beside what was done.

    The robot follows the demonstration; every `replan` steps the policy plans a chunk, of which the next `replan`
    actions are drawn.
    """
    episode = Episode.read(store, rows_of(store, "val")[0])
    steps = len(episode.action)
    starts = list(range(0, steps, replan))
    draws = [Draw(0, 0, call) for call in range(len(starts))]
    acted = policy.act([episode.observation(start) for start in starts], draws)
    predicted = np.concatenate([chunk[:replan] for chunk in acted.chunk.numpy()])[:steps]
    times = tuple(float(n) for n in range(steps))
    drawn, still = [], []
    everywhere = every_action(store)
    for number, name in enumerate(store.spec.action_names):
        if number not in moving(everywhere):
            still.append(name)
            continue
        true = Series("demonstration", times, tuple(map(float, episode.action[:, number])))
        planned = Series("policy", times, tuple(map(float, predicted[:, number])))
        both = [*true.values, *planned.values]
        drawn.append(panel(name, [true, planned], min(both), max(both)))
    return Traces(episode.instruction, tuple(drawn), tuple(still))


def demonstrations(store: Store) -> tuple[Demonstration, ...]:
    """Some of the train split, of every instruction in turn: the first picture, and each moving action over time."""
    everywhere = every_action(store)
    shown = moving(everywhere)
    low, high = float(everywhere[:, shown].min()), float(everywhere[:, shown].max())
    found = []
    for row in rows_of(store, "train")[:SHOWN_DEMONSTRATIONS]:
        episode = Episode.read(store, row)
        times = tuple(float(n) for n in range(len(episode.action)))
        lines = [Series(store.spec.action_names[n], times, tuple(map(float, episode.action[:, n]))) for n in shown]
        trace = panel(f"{len(times)} steps", lines, low, high, height=96.0)
        found.append(Demonstration(png_bytes(episode.at(0), THUMBNAIL), episode.instruction, trace))
    return tuple(found)


def moving_names(store: Store) -> tuple[str, ...]:
    """Names of the action dimensions that ever change in the store, in the order of `demonstrations`' lines."""
    return tuple(store.spec.action_names[n] for n in moving(every_action(store)))


def states(policy: Policy, store: Store) -> Scatter | None:
    """The encoder's states of held-out demonstrations, on the two directions in which they differ most.

    None where the policy's network makes no states.
    """
    if not isinstance(policy.model, nn.Module) or not hasattr(policy.model, "encode"):
        return None
    episodes = [Episode.read(store, row) for row in rows_of(store, "val")[:STATE_EPISODES]]
    made = [_states_of(policy, episode) for episode in episodes]
    every = np.concatenate(made).astype(np.float64)
    centred = every - every.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ directions[:2].T
    shares = sizes**2 / max(float((sizes**2).sum()), 1e-12)
    tasks = sorted({episode.instruction for episode in episodes})
    by_task, by_progress, first = [], [], 0
    for episode, group in zip(episodes, made, strict=True):
        for step, (x, y) in enumerate(flat[first : first + len(group)]):
            by_task.append(Dot(float(x), float(y), colour_of(tasks.index(episode.instruction))))
            by_progress.append(Dot(float(x), float(y), progress_colour(step / max(len(group) - 1, 1))))
        first += len(group)
    return Scatter(tuple(by_task), tuple(by_progress), tuple(tasks), float(shares[0]), float(shares[1]), len(episodes))


@torch.no_grad()
def _states_of(policy: Policy, episode: Episode) -> NDArray[np.float32]:
    """float32 [T, D]."""
    batch: ObservationBatch = policy.observe([episode.observation(step) for step in range(len(episode.action))])
    encoded = policy.model.encode(batch.to(policy.device))  # type: ignore[attr-defined]  # asked for above
    return np.asarray(encoded.z.float().cpu().numpy())


def progress_colour(share: float) -> str:
    """From blue at the start of an episode to orange at its end, light enough and dark enough for both grounds."""
    return f"hsl({215 - 190 * share:.0f} 65% 52%)"
