"""One rank of a test: trains every job of a JSON file in turn, in one process, among ranks that met once."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from statevla.data.batch import Batch
from statevla.trainers import run as running
from statevla.trainers.ranks import Ranks, join
from statevla.trainers.trainer import train
from stores.errors import StateVLAError
from stores.progress import ProgressEvent
from tests.trainers.double import in_double
from tests.trainers.micro import config_of_all


def do(job: dict[str, Any], ranks: Ranks) -> None:
    """`signal_at`: the step after which the rank `signal_rank` gets that signal."""
    if job.get("kill_rank") == ranks.rank:
        os.kill(os.getpid(), signal.SIGKILL)
    wide = in_double() if job.get("double") else contextlib.nullcontext()
    strays = begun_elsewhere() if job.get("strays") == ranks.rank else contextlib.nullcontext()
    with wide, strays, trouble(job, ranks) if "trouble_at" in job else contextlib.nullcontext():
        _train(job, ranks)


@contextlib.contextmanager
def begun_elsewhere() -> Iterator[None]:
    """Other first weights than the seed gives, as another machine's arithmetic may."""
    made = running.Run.__init__

    def moved(self: running.Run, *given: Any) -> None:
        made(self, *given)
        with torch.no_grad():
            for weight in filter(lambda weight: weight.requires_grad, self.model.parameters()):
                weight.add_(0.1)  # what is frozen comes from a file, the same for all

    with mock.patch.object(running.Run, "__init__", moved):
        yield


@contextlib.contextmanager
def trouble(job: dict[str, Any], ranks: Ranks) -> Iterator[None]:
    """In step `trouble_at` a row of the rank `spoils` is not finite, and the rank `full` has no memory. `save_seconds`:
    of each rank.
    """
    put = running.Run._on_device

    def troubled(self: running.Run, batch: Batch) -> Batch:
        if self.step + 1 == job["trouble_at"]:
            if job.get("full") == ranks.rank:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            if job.get("spoils") == ranks.rank:
                batch.obs.robot_state[1] = torch.nan
                print(f"spoilt: episode {int(batch.episode[1])} frame {int(batch.frame[1])}", file=sys.stderr)
        return put(self, batch)

    with (
        mock.patch.object(running.Run, "_on_device", troubled),
        mock.patch.object(running, "SAVE_SECONDS", job["save_seconds"][ranks.rank]),
    ):
        yield


def _train(job: dict[str, Any], ranks: Ranks) -> None:
    extra = [f"data.cache_gib={ranks.rank}"] if job.get("caches_differ") else []
    if job.get("lacks") == ranks.rank:
        extra = ["training.device=none"]
    train(
        job["system"], config_of_all(*job["set"], *extra), job["store"], Path(job["run"]),
        resume=job.get("resume", False),
        encoder_checkpoint=None if job.get("encoder") is None else Path(job["encoder"]),
        progress=signals(job) if ranks.first else None,
    )  # fmt: skip


def signals(job: dict[str, Any]) -> Any:
    sent: list[bool] = []

    def watch(event: ProgressEvent) -> None:
        if event.done == job.get("signal_at") and not sent:
            sent.append(True)
            os.kill(int(Path(job["pids"], str(job["signal_rank"])).read_text()), job.get("signal", signal.SIGTERM))

    return watch


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    running.plot_losses = lambda *given: None  # drawing takes longer than these runs
    with join(cuda=False) as ranks:
        for job in jobs:
            if "pids" in job:
                Path(job["pids"]).mkdir(exist_ok=True)
                Path(job["pids"], str(ranks.rank)).write_text(str(os.getpid()))
                ranks.wait()
            try:
                do(job, ranks)
            except StateVLAError as error:
                print(f"{ranks.rank} {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                if job.get("leaves"):
                    raise SystemExit(1) from error  # by the way that the command takes, and no other rank knows
                with contextlib.suppress(StateVLAError):
                    ranks.wait()
                if job.get("last"):
                    os._exit(1)


if __name__ == "__main__":
    main()
