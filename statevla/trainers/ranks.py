"""Processes that train one model together: what they tell each other, and what happens when one of them ends.

Started by `torchrun` or `statevla train --nproc N`, which set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
Without them there is one rank and nothing is told to anybody.

A step in which rows of all ranks meet: every rank gathers the terms of all rows (`Ranks.gather`), computes the same
loss of them, and sends the gradients of its own rows back through its own network; the gradients of the weights are
then summed (`Ranks.sum_`). So a loss that takes statistics over rows is that of the global batch, to the last term.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from stores.errors import StateVLAError, UsageError

T = TypeVar("T")

FAILED: Final = 1
WRONG_USAGE: Final = 2


def status_of(error: StateVLAError) -> int:
    """The exit status of a command that fails with `error`."""
    return WRONG_USAGE if isinstance(error, UsageError) else FAILED


def first_of_environment() -> bool:
    """Whether this process is the one that speaks, before the ranks have met."""
    return os.environ.get("RANK", "0") == "0"


class RankLost(StateVLAError):
    """Another rank ended while this one waited for it. Rank 0 says so for all."""


class OtherRankFailed(StateVLAError):
    """Another rank found the error and says it; this one ends with the same exit status and no line of its own."""

    def __init__(self, status: int) -> None:
        super().__init__("another rank failed and says why")
        self.status = status


@dataclass(frozen=True)
class Ranks:
    """This process among `world` ones. local: its number on this machine, which chooses its device."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this rank locks, logs, saves and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.world == 1

    def most(self, *numbers: int) -> tuple[int, ...]:
        """The largest of each number over all ranks."""
        if self.alone:
            return numbers
        told = torch.tensor(numbers, dtype=torch.int64)
        with _peers():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        return tuple(told.tolist())

    def gather(self, rows: Tensor) -> Tensor:
        """[n ...] of every rank, one after another: [world * n ...]; no gradients. All ranks have the same n."""
        if self.alone:
            return rows
        sent = rows.detach().contiguous()
        sent = sent.to(torch.uint8) if sent.dtype == torch.bool else sent
        came = [torch.empty_like(sent) for _ in range(self.world)]
        with _peers():
            dist.all_gather(came, sent)
        return torch.cat(came).to(rows.dtype)

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over all ranks, in place and to the same bits on each."""
        if self.alone:
            return
        held = list(tensors)
        flat = torch.cat([tensor.reshape(-1).float() for tensor in held])
        with _peers():
            dist.all_reduce(flat)
        for tensor, total in zip(held, torch.split(flat, [tensor.numel() for tensor in held]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def exchange(self, told: T) -> list[T]:
        """What each rank has to tell, as JSON, in the ranks' order."""
        if self.alone:
            return [told]
        data = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
        (size,) = self.most(len(data))
        padded = torch.full((size,), ord(" "), dtype=torch.uint8)
        padded[: len(data)] = data
        came = self.gather(padded).view(self.world, size)
        return [json.loads(row.numpy().tobytes()) for row in came]

    def in_turn(self, found: list[T]) -> list[T]:
        """Items that were dealt to the ranks one by one, in their order again."""
        told = self.exchange(found)
        return [told[number % self.world][number // self.world] for number in range(sum(map(len, told)))]

    def tensors_in_turn(self, found: list[dict[str, Tensor]], device: torch.device) -> list[dict[str, Tensor]]:
        """`in_turn` of groups of tensors, whose shapes may differ."""
        if self.alone:
            return found
        shapes: list[dict[str, Any]] = self.in_turn(
            [{name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in each.items()} for each in found]
        )
        every: list[dict[str, Tensor]] = []
        for number, named in enumerate(shapes):
            turn, owner = divmod(number, self.world)
            group: dict[str, Tensor] = {}
            for name, (shape, kind) in named.items():
                dtype = getattr(torch, kind)
                sent = torch.uint8 if dtype == torch.bool else dtype
                buffer = (
                    found[turn][name].to(sent).contiguous()
                    if owner == self.rank
                    else torch.empty(shape, dtype=sent, device=device)
                )
                with _peers():
                    dist.broadcast(buffer, owner)
                group[name] = buffer.to(dtype)
            every.append(group)
        return every

    def copy_from_first_(self, tensors: Iterable[Tensor]) -> None:
        """Rank 0's values everywhere, in place."""
        if not self.alone:
            with _peers():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until all ranks are here."""
        self.most(0)

    def together(self, work: Callable[[], T]) -> T:
        """Do `work` on all ranks; when one of them fails, all do, and the first that failed says why."""
        if self.alone:
            return work()
        error: StateVLAError | None = None
        try:
            done = work()
        except StateVLAError as caught:
            error = caught
        status = 0 if error is None else status_of(error)
        worst, first = self.most(status, 0 if error is None else self.world - self.rank)
        if error is not None and first == self.world - self.rank:
            raise error
        if worst:
            raise OtherRankFailed(worst) from error
        return done


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if dist.get_rank():
            raise OtherRankFailed(FAILED) from error
        raise RankLost(
            "another rank of this run ended, so this one ends too; a checkpoint of before, where there is one, is "
            "whole: go on with `statevla train --resume RUN`, on any number of ranks that divides the lanes"
        ) from error


def _is_first_to_fail() -> bool:
    """Whether no other rank has failed yet. Asked of the store by which the ranks met, since one that fails takes part
    in nothing else; where that is gone, so is the rank that held it, which said why.
    """
    try:
        return bool(dist.distributed_c10d._get_default_store().add("failed", 1) == 1)
    except RuntimeError:
        return False


@contextmanager
def join(cuda: bool) -> Iterator[Ranks]:
    """This process's place among those that the environment tells of; joined on entry, left on exit.

    cuda: tensors on GPUs are to be exchanged. Raises UsageError on an environment that tells only a part. Of the
    errors that several ranks find inside, each by itself, one stays; the others become OtherRankFailed.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(f"WORLD_SIZE is {world}, but {', '.join(missing)} is not set; start ranks with torchrun")
    rank = int(os.environ["RANK"])
    ranks = Ranks(rank, world, int(os.environ.get("LOCAL_RANK", rank)))
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", rank=rank, world_size=world)
    try:
        yield ranks
    except StateVLAError as error:
        if mine and not isinstance(error, OtherRankFailed) and not _is_first_to_fail():
            raise OtherRankFailed(status_of(error)) from error
        raise
    finally:
        if mine:
            dist.destroy_process_group()
