"""Episodes to compare: what a store holds, and what a world shows when the store's own actions are executed in it.

Legend: T frames, H height, W width, S numbers of a robot state, A of an action.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statevla.observation import Observation, from_simulator
from statevla.sims.world import Start, World
from stores.reader import Store


@dataclass(frozen=True, eq=False)
class Episode:
    """images: uint8 [T, H, W, 3] a camera. states: float32 [T, S]. actions: float32 [n, A], n is T or T - 1; action t
    was executed after frame t. name: for people. success: None where nobody looked."""

    name: str
    instruction: str
    images: tuple[NDArray[np.uint8], ...]
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    success: bool | None = None

    def observation(self, t: int) -> Observation:
        """Frame ``t``."""
        return Observation(tuple(frames[t] for frames in self.images), self.states[t], self.instruction)


def stored(store: Store, episode: int) -> Episode:
    """An episode of a store, its pictures decoded."""
    rows = store.episode_columns
    first, frames, steps = (int(rows[name][episode]) for name in ("first_frame", "frames", "steps"))
    segments = range(
        int(rows["first_segment"][episode]), int(rows["first_segment"][episode] + rows["segments"][episode])
    )
    pieces = []
    for number in segments:
        own = int(store.segment_columns["steps"][number])  # the observation after them begins the next segment
        last = number == segments[-1]
        pieces.append([frames if last else frames[:own] for frames in store.decode_segment(number)])
    images = tuple(np.concatenate(camera)[:frames] for camera in zip(*pieces, strict=True))
    return Episode(
        name=str(rows["id"][episode]),
        instruction=str(rows["instruction"][episode]),
        images=images,
        states=np.asarray(store.frames["robot_state"][first : first + frames], np.float32),
        actions=np.asarray(store.frames["action"][first : first + steps], np.float32),
    )


def start_number(store: Store, episode: int) -> int | None:
    """The benchmark's initial state that an episode started from; None where the store does not know."""
    rows = store.episode_columns
    task, demo, source = (str(rows[name][episode]) for name in ("task", "demo", "source"))
    for file in store.manifest.sources:
        state = file.get("init_states", {}).get(task, {}).get(demo) if file.get("file") == source else None
        if isinstance(state, str) and state.isdecimal():
            return int(state)
    return None


def shown(world: World, start: Start, actions: NDArray[np.float32]) -> Episode:
    """What a world shows while ``actions`` are executed from a start; ends at their end or at success."""
    if world.starting:
        world.come_up()
    world.begin(start)
    text = world.task.instruction
    seen = [from_simulator(world.receive().observation, text)]
    world.run(np.asarray(actions, np.float64), look=True, film=1)
    answer = world.receive()
    seen += [from_simulator(frame, text) for frame in answer.film]
    done = np.asarray(answer.actions, np.float32)
    return of_observations(f"start {start.number}", seen, done, answer.success_step is not None)


def of_observations(
    name: str, seen: list[Observation], actions: NDArray[np.float32], success: bool | None = None
) -> Episode:
    """An episode of frames that were seen one after the other."""
    images = tuple(np.stack(frames) for frames in zip(*(o.images for o in seen), strict=True))
    return Episode(name, seen[0].instruction, images, np.stack([o.robot_state for o in seen]), actions, success)
