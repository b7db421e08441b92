"""Work for a spawned process: what it is sent is unpickled there, as a worker of a user's program does it."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import statevla
from stores.errors import StateVLAError


def pickled(work: Callable[[Any], Any], given: Any) -> bytes:
    """A task for `run`, as it is sent to a process."""
    return bytes(ForkingPickler.dumps((work, given)))


def run(task: bytes) -> Any:
    """What a spawned process answers to a task. Raises what was raised there, of the toolkit's own errors."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,))
    process.start()
    there.close()
    here.send_bytes(task)
    answer = here.recv()
    process.join()
    if isinstance(answer, StateVLAError):
        raise answer
    return answer


def _serve(connection: Connection) -> None:
    try:
        work, given = connection.recv()
        connection.send(work(given))
    except StateVLAError as error:
        connection.send(error)


def frames_of(store: "statevla.Store") -> list[NDArray[np.uint8]]:
    """The pictures of its first camera, segment by segment."""
    return [store.decode_segment(i)[0] for i in range(len(store))]


def chunk_of(given: "tuple[statevla.Policy, statevla.Observation]") -> NDArray[np.float32]:
    """What a policy does, on one thread."""
    policy, observation = given
    torch.set_num_threads(1)
    return policy.act([observation], [statevla.Draw(seed=3)]).chunk.numpy()


class Segments(torch.utils.data.Dataset[tuple[int, torch.Tensor]]):
    """A user's dataset: (number, pictures) of a segment."""

    def __init__(self, store: "statevla.Store") -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, i: int) -> tuple[int, torch.Tensor]:
        return i, torch.from_numpy(self.store.decode_segment(i)[0])
