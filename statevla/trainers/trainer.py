"""The one way to train every system of `statevla.systems.table.SYSTEMS`."""

import contextlib
from functools import partial
from pathlib import Path

import torch

from statevla.config import Config
from statevla.data.machine import in_words
from statevla.data.prefetch import Position
from statevla.data.remote import open_to_train
from statevla.runs import layout
from statevla.runs.starts import note_start
from statevla.systems.system import System
from statevla.systems.table import find_system
from statevla.trainers.fit import fit_to_data
from statevla.trainers.kept import use_what_is_kept
from statevla.trainers.outcome import TrainSummary
from statevla.trainers.parents import sources
from statevla.trainers.ranks import Ranks, join
from statevla.trainers.run import Run
from statevla.trainers.trackers import require_tracker
from stores.disk import durable
from stores.disk.lock import lock
from stores.progress import Progress, ProgressEvent


def train(
    system: System | str,
    config: Config,
    store_path: Path | str,
    run_dir: Path,
    resume: Path | bool = False,
    encoder_checkpoint: Path | None = None,
    progress: Progress | None = None,
    unfinished_encoder: bool = False,
) -> TrainSummary:
    """Train one system until its epochs or ``training.max_steps`` are done, or until SIGINT or SIGTERM.

    Checkpoints go to ``<run_dir>/checkpoints/<system's folder>/``. A signal saves checkpoint_latest and returns. Where
    the environment says that there are several ranks (`statevla.trainers.ranks`), each of them calls this function.

    Args:
        system: a system, or its name.
        store_path: folder or URL of the store.
        resume: True goes on from checkpoint_latest, a path from that checkpoint; on a CPU with the very same numbers
            as a run that was not interrupted.
        encoder_checkpoint: of the parent system, for a system that is trained on a frozen encoder; None: the one in
            this run.
        progress: told of every logged step.
        unfinished_encoder: accept a parent whose training did not reach its end.

    Raises:
        UsageError: checkpoints are already there, there is nothing to resume, the configuration is another than the
            checkpoint's, the encoder is missing or unfinished, or a batch has too few rows.
        StaleKey: checkpoint or statistics are of another store.
        StoreCorrupt: the store or the checkpoint is damaged.
        NonFiniteLoss: a loss or gradient is not a finite number.
        OutOfMemory: the device has too little memory for a batch.
        RankLost: another rank has died.
    """
    row = find_system(system) if isinstance(system, str) else system
    if config.training.torch_threads is not None:
        torch.set_num_threads(config.training.torch_threads)
    folder = layout.checkpoints(run_dir, row.folder)
    with join(config.training.device != "cpu" and torch.cuda.is_available()) as ranks, contextlib.ExitStack() as stack:

        def begin() -> tuple[Run, Position]:
            source, parent = sources(row, config, folder, run_dir, resume, encoder_checkpoint)
            if ranks.first:
                require_tracker(config.training.tracker)
                made = [each for each in (folder, folder.parent, run_dir) if not each.exists()]
                stack.callback(durable.remove_empty, made)  # of a run that is refused nothing stays
                stack.enter_context(lock(folder, f"train {row.name}"))
            store = open_to_train(store_path, config.data, partial(_say, row, ranks, progress))
            run = Run(row, config, store, run_dir, parent, progress, unfinished_encoder, ranks)
            start = run.start() if source is None else run.resume(source)
            if ranks.first and run.step < run.total:
                note_start(run_dir, row.folder, run.step, str(run.device), ranks.world)
            return run, start

        run, start = ranks.together(begin)
        run.say(in_words(config.data))
        use_what_is_kept(run)
        if run.step == 0:
            ranks.together(partial(fit_to_data, run))
            run.agree()
        return run.loop(start)


def _say(row: System, ranks: Ranks, progress: Progress | None, text: str) -> None:
    """Tell `progress` something before there is a `Run` to do so."""
    if progress is not None and ranks.first:
        progress(ProgressEvent(f"train {row.name}", 0, None, "steps", text, said=True))
