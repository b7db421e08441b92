"""A training run: what it holds between two steps, how it makes one, and what it writes.

With several ranks every one of them runs this same code: a batch is the global one unless a name says otherwise, each
rank computes its share of the rows, losses and gradients are those of the whole batch, and only the first rank writes.
"""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from statevla.config import Config
from statevla.config.load import only_sections
from statevla.config.schema import require_widths
from statevla.data.batch import Batch
from statevla.data.loaders import SegmentLoader, SplitReader
from statevla.data.prefetch import Position
from statevla.data.sequential import SequentialLoader
from statevla.encoders.features import made_from_by_name, require_same_kept
from statevla.encoders.vision import require_identity
from statevla.models.losses import LossParts
from statevla.models.optim import parameter_groups
from statevla.policies.prepare import choose_device
from statevla.runs import layout
from statevla.runs import write as checkpoint
from statevla.runs.metrics import plot_losses, read_metrics
from statevla.runs.state import KEPT, read_state, require_store
from statevla.systems.system import Given, System, Terms
from statevla.systems.table import config_of, own_sections
from statevla.trainers import pictures, sight
from statevla.trainers.aside import set_aside_later
from statevla.trainers.average import average_of
from statevla.trainers.kept import choose_backbone
from statevla.trainers.outcome import NonFiniteLoss, StepSize, TrainSummary, broken_rows, memory_advice
from statevla.trainers.parents import load_parent, origin, seen_beyond
from statevla.trainers.ranks import FAILED, OtherRankFailed, Ranks
from statevla.trainers.schedule import learning_rate, step_generator, total_steps
from statevla.trainers.setup import (
    attention_kernel,
    require_learnable,
    require_same_config,
    rows_of_rank,
    slow_bf16,
    use_bf16,
)
from statevla.trainers.snapshot import snapshot
from statevla.trainers.speed import Speed, Stopwatch
from statevla.trainers.step import Share, differentiate, micro_batches, seed_dropout
from statevla.trainers.stop import Stop, stop_on_signals
from statevla.trainers.trackers import Track, tracker, untracked
from statevla.trainers.validation import validate
from statevla.trainers.watch import Watch, update_norm
from stores.disk.durable import LineLog, write_bytes, write_json
from stores.errors import StateVLAError, UsageError
from stores.progress import Progress, ProgressEvent
from stores.reader import Store

ADAM_BETAS: Final = (0.9, 0.999)
ALONE: Final = Ranks()
SAVE_SECONDS: Final = 300.0
"""A run also saves checkpoint_latest when this long has passed since it last did."""


class Run:
    """The state of one training run between two steps.

    step: optimizer steps done. began: `step` when this process began. total: steps at which the run ends. best: step
    and validation loss of the best checkpoint so far; unsaved_best: its snapshot, until it is written. share, parts:
    this rank's rows of a global batch, and their micro-batches. average: of the weights, where the run keeps one.
    as_saved: whether checkpoint_latest is of this very step, and of a run of this length.
    """

    def __init__(
        self,
        system: System,
        config: Config,
        store: Store,
        run_dir: Path,
        parent: Path | None = None,
        progress: Progress | None = None,
        unfinished_parent: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        training = config.training
        self.ranks = ranks
        self.system, self.options, self.store = system, system.options_of(config), store
        self.config = only_sections(config, own_sections(system, config))
        self.run_dir, self.folder, self.progress = run_dir, layout.checkpoints(run_dir, system.folder), progress
        self.metrics = layout.metrics(run_dir, system.folder)
        spec = store.spec
        require_widths(config.model, spec.language_width, spec.robot_state_dim, spec.action_dim, str(store.root))
        self.device = choose_device(training.device, ranks.local)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # what names no device, NCCL's and libraries' own memory, is there too
        self.autocast = use_bf16(training.precision, self.device)
        self.statistics = store.stats()
        found = None if parent is None else load_parent(system, config, parent, store, unfinished_parent)
        self.parent = None if found is None else origin(found)
        torch.manual_seed(training.seed)
        self.backbone = choose_backbone(config, store, self.device)
        if found is not None:
            require_identity(self.backbone, found.state.backbone, str(found.folder))
        self.model = system.build(config, Given(spec, self.statistics, self.backbone, found)).to(self.device)
        needs = self.model.needs
        self.kept = made_from_by_name(store, (config.data.features, *needs.beside))
        require_learnable(system, needs, config, self.model.learns_unlabelled)
        sight.require_pictures(system, self.model, config.data.features)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, training.weight_decay, self.model.undecayed),
            lr=self.options.learning_rate, betas=ADAM_BETAS, fused=True,
        )  # fmt: skip
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        chunk = config.model.action_seq_len
        kind = SequentialLoader if config.data.stream == "sequential" else SegmentLoader
        self.loader: SegmentLoader | SequentialLoader = kind(
            store, "train", training.batch_size, training.seed, config.data, chunk, needs,
            rank=ranks.rank, world=ranks.world,
        )  # fmt: skip
        self.share = Share.of(self.loader.order, self.loader.lanes, ranks)
        rows = rows_of_rank(training.batch_size, ranks.world)
        self.parts = micro_batches(rows, training.accumulate)
        sized = "model" if system.sized_by_model else system.section
        self.step_size = StepSize(training.batch_size, rows, training.accumulate, f"{sized}.image_size")
        self.average = average_of(self.model, training)
        self.total = total_steps(self.options.num_epochs, self.loader.batches_per_epoch, training.max_steps)
        self.step = self.began = 0
        self.as_saved = False
        if found is not None and (beyond := seen_beyond(config, found, store)) is not None:
            self.say(beyond)
        if (slow := slow_bf16(self.autocast, self.device)) is not None:
            self.say(slow)
        self.validation = self._validation_reader()
        self.last_loss = math.nan
        self.watch = Watch()
        self.track: Track = untracked
        self.best: dict[str, Any] | None = None
        self.unsaved_best: checkpoint.Snapshot | None = None

    def _validation_reader(self) -> SplitReader | None:
        if self.store.manifest.splits["val"] == 0:
            self.say("no validation episodes in the store: no best checkpoint")
            return None
        training = self.config.training
        return SplitReader(
            self.store, "val", training.batch_size, self.config.model.action_seq_len, self.config.data,
            needs=self.model.needs, seed=training.seed, mixed=True,
        )  # fmt: skip

    def agree(self) -> None:
        """All ranks begin with the first one's weights, and with what it has fitted. Not where some rank may fail
        alone (`Ranks.together`): the others would wait for it without end.
        """
        self.ranks.copy_from_first_(self.model.state_dict().values())
        self.average = average_of(self.model, self.config.training)

    def start(self) -> Position:
        """Begin at step 0 with an empty metrics file."""
        sight.require_tower(self.system, self.model, self.config.model.vision)
        if self.ranks.first:
            write_bytes(self.metrics, b"")
            write_json(layout.configuration(self.run_dir, self.system.folder), self.config.to_dict())
        return Position(0, 0)

    def resume(self, source: Path) -> Position:
        """Restore everything from the checkpoint `source`, and drop the metrics of later steps. Where that is not the
        latest, checkpoints of later steps are set aside.

        Returns where its batches go on. Raises UsageError when configuration, encoder or kept features are others, or
        it is already past the run's end; StaleKey when it is of another store; StoreCorrupt when it is damaged.
        """
        state = read_state(source)
        require_store(state, self.store.content_hash, source, str(self.store.root))
        require_same_config(self.config, config_of(state, source), self.system, source)
        require_identity(self.backbone, state.backbone, str(source))
        require_same_kept(self.kept, state.loader.get(KEPT, {}), str(source))
        if state.step > self.total:
            raise UsageError(
                f"{source}: already at step {state.step}, the run is to end at {self.total}; "
                "raise training.max_steps or the epochs"
            )
        tensors = checkpoint.restore(source, state, self.model, self.optimizer, lambda: self.model.idle)
        if self.average is not None:
            self.average.restore(tensors, str(source))
        self.step = self.began = state.step
        self.as_saved = source == self.folder / layout.LATEST and state.total_steps == self.total
        self.best, self.last_loss = state.best, state.loss
        self.parent = state.parent
        records = read_metrics(self.metrics)
        kept = [record for record in records if record["step"] <= state.step]
        self.watch.said |= {record["monitor"] for record in kept if record["kind"] == "warning"}
        if kept != records and self.ranks.first:
            write_bytes(self.metrics, b"".join(json.dumps(record).encode() + b"\n" for record in kept))
        if self.ranks.first and source != self.folder / layout.LATEST:
            for aside in set_aside_later(self.folder, state.step):
                self.say(f"{aside.name}: a checkpoint of the steps that this run goes back from")
        return Position(int(state.loader["epoch"]), int(state.loader["batch"]))

    def loop(self, position: Position) -> TrainSummary:
        """Train from `position` to the last step or to a signal, and save checkpoint_latest."""
        if self.step == self.total:
            if not self.as_saved:  # else it would stand there as stopped, or further on than its metrics
                self.save(position, layout.LATEST)
            return self.summary(None)
        with stop_on_signals() as stop:  # until the checkpoint is there: a signal that comes again must not end it
            with contextlib.ExitStack() as stack:
                log = None
                if self.ranks.first:
                    log = stack.enter_context(LineLog(self.metrics))
                    where = self.run_dir, self.system.folder
                    told = tracker(self.config.training.tracker, *where, self.config, self.step)
                    self.track = stack.enter_context(told)
                position, signal = self._steps(position, stop, log, stack)
            self.save(position, layout.LATEST)
            if self.ranks.first:
                title = f"{self.run_dir.name}, {self.system.title}"
                plot_losses(self.metrics, layout.losses(self.run_dir, self.system.folder), title)
            self.ranks.wait()
        stopped = signal if self.step < self.total else None
        self.report(self.step, "done" if stopped is None else f"stopped, {layout.LATEST} saved")
        return self.summary(stopped)

    def _steps(
        self, position: Position, stop: Stop, log: LineLog | None, stack: contextlib.ExitStack
    ) -> tuple[Position, int | None]:
        """The steps of `loop`. Returns the position after the last one, and the signal on which all ranks stopped."""
        training = self.config.training
        saved_at, stopwatch = time.monotonic(), Stopwatch(self.step)
        batches = stack.enter_context(contextlib.closing(self.loader.batches(position)))
        (signal,) = self.ranks.most(stop.signal or 0)
        while self.step < self.total and not (signal and self.step):  # before the first there is nothing to go on from
            with stopwatch.waiting():
                position, batch = next(batches)
            logs = (self.step + 1) % training.log_interval == 0 or self.step + 1 == self.total
            held = [p.detach().clone() for p in self.trained] if logs and log is not None else []
            parts, norm, lr = self.train_step(batch)
            epoch_done = position.batch == 0
            if logs:
                norms, speed = (norm, update_norm(held, self.trained)), stopwatch.lap(self.step, training.batch_size)
                self.log_training(log, position, parts, norms, lr, speed)
            every = training.validate_every_steps
            if (epoch_done if every is None else self.step % every == 0) or self.step == self.total:
                with stopwatch.paused():
                    self.validate(log, position)
            if epoch_done and position.epoch % training.save_interval == 0:
                self.save(position, layout.epoch_name(position.epoch))
                self.save(position, layout.LATEST)
                saved_at = time.monotonic()
            late = self.ranks.first and time.monotonic() - saved_at > SAVE_SECONDS
            signal, due = self.ranks.most(stop.signal or 0, late)
            if due:
                self.save(position, layout.LATEST)
                saved_at = time.monotonic()
        return position, signal or None

    def train_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, float]:
        """One optimizer step. `batch` holds this rank's rows of the global batch.

        Returns the loss's parts with the total as ``loss``, the gradient's norm before clipping, and the learning rate:
        of the global batch, so the same on every rank. Raises NonFiniteLoss before any weight has changed.
        """
        training = self.config.training
        lr = learning_rate(self.step, self.total, self.options.learning_rate, training)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        noise = self.model.draw(training.batch_size, step_generator(training.seed, self.step))
        mine = {name: self.share.own(value).to(self.device) for name, value in noise.items()}
        self.optimizer.zero_grad(set_to_none=True)
        kernel = attention_kernel(self.device, self.autocast)
        with memory_advice(self.step_size, self._resumed_by), kernel:
            loss, terms = differentiate(
                self.model, self._on_device(batch), mine, self.share, self.parts, self._reseed,
                torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast),
            )  # fmt: skip
        self.ranks.sum_(p.grad for p in self.trained if p.grad is not None)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, training.gradient_clip)
        self.last_loss, size = torch.stack([loss.total.detach().float(), norm.float()]).tolist()  # one wait for the GPU
        if not (math.isfinite(self.last_loss) and math.isfinite(size)):
            self._stop_broken(loss, terms, size, batch)
        self.optimizer.step()
        self.model.after_step(self.step, self.total)
        self.step += 1
        if self.average is not None:
            self.average.follow(self.step)
        return {"loss": loss.total.detach(), **loss.parts}, norm, lr

    def _on_device(self, batch: Batch) -> Batch:
        """`batch` on the device, augmented: each row by draws of (seed, step) and its place in the global batch."""
        moved = batch.to(self.device)
        if not pictures.wanted(self.config.training):
            return moved
        draws = pictures.draws_of_step(self.config.training, self.step, len(self.store.spec.cameras))
        return pictures.augmented(moved, draws if self.ranks.alone else draws.rows(self.share.rows))

    def _resumed_by(self) -> str:
        return f"--resume {self.run_dir} " if layout.is_checkpoint(self.folder / layout.LATEST) else ""

    def _reseed(self, part: int) -> None:
        seed_dropout(self.config.training.seed, self.step, self.ranks.rank, part)

    def _stop_broken(self, loss: LossParts, terms: Terms, size: float, batch: Batch) -> NoReturn:
        """Raise NonFiniteLoss, after the best checkpoint is on the disk. size: the gradient's norm."""
        values = {name: float(value) for name, value in loss.parts.items()}
        where = self.share.whole({"episode": batch.episode, "frame": batch.frame})
        self._save_best()
        saved = any(map(layout.is_checkpoint, self.folder.glob("checkpoint_*")))
        before = f"{self.folder} holds the checkpoints saved before" if saved else "no checkpoint had been saved yet"
        raise self._failure(
            f"loss {self.last_loss}, gradient norm {size} at step {self.step + 1} of {self.system.name}, "
            f"parts {values}; {broken_rows(terms, where['episode'], where['frame'])}; nothing was overwritten, "
            f"{before}; "
            "lower the learning rate, or check the store with `statevla verify`"
        )

    def _failure(self, text: str) -> StateVLAError:
        """The error for this rank: the first one's says `text`, the others' that another rank failed."""
        return NonFiniteLoss(text) if self.ranks.first else OtherRankFailed(FAILED)

    def log_training(
        self, log: LineLog | None, position: Position, parts: dict[str, Tensor], norms: tuple[Tensor, float], lr: float,
        speed: Speed,
    ) -> None:  # fmt: skip
        """One line of metrics and one progress event. norms: of the gradient before clipping, and `update_norm`."""
        if log is None:
            return
        values = {name: float(value) for name, value in parts.items()}
        record = {"kind": "train", "step": self.step, "epoch": position.epoch, "lr": lr, **values}
        record |= {"grad_norm": float(norms[0]), "update_norm": norms[1]}
        record |= {"samples_per_s": round(speed.samples_per_s, 1), "data_wait": round(speed.data_wait, 4)}
        self.record(log, record)
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.report(self.step, f"{shown} | {speed.samples_per_s:,.0f} samples/s")

    def record(self, log: LineLog, record: dict[str, Any]) -> None:
        """Add `record` to the metrics, and warn of what in it is unhealthy, once for each monitor."""
        log.append(json.dumps(record))
        self.track(record)
        for name, sentence in self.watch.warnings(record, self.step):
            log.append(json.dumps({"kind": "warning", "step": self.step, "monitor": name, "text": sentence}))
            self.say(f"warning: {sentence}")

    def validate(self, log: LineLog | None, position: Position) -> None:
        """Log the validation losses, and keep a snapshot if the loss is the lowest so far."""
        if self.validation is None:
            return
        with self.acting_weights(), memory_advice(self.step_size, self._resumed_by, validating=True):
            values = validate(self.model, self.validation, self.device, self.autocast, self.ranks)
        if not math.isfinite(values["loss"]):
            self._save_best()
            raise self._failure(f"validation loss is {values['loss']} after step {self.step}; nothing was overwritten")
        if log is None:
            return
        self.record(log, {"kind": "val", "step": self.step, "epoch": position.epoch, **values})
        if self.best is None or values["loss"] < self.best["val_loss"]:
            self.best = {"step": self.step, "val_loss": values["loss"]}
            self.unsaved_best = snapshot(self, position)
        self.report(self.step, " ".join(f"val {name} {value:.4g}" for name, value in values.items()))

    def acting_weights(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, the model holds the weights that act: the averaged ones, where the run keeps an average."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def save(self, position: Position, name: str) -> None:
        """Write checkpoint `name`, and before it the best one since the last save. Only the first rank writes."""
        if self.ranks.first:
            self._save_best()
            checkpoint.save(self.folder / name, snapshot(self, position))

    def _save_best(self) -> None:
        if self.unsaved_best is not None:
            checkpoint.save(self.folder / layout.BEST, self.unsaved_best)
            self.unsaved_best = None

    def summary(self, stopped: int | None) -> TrainSummary:
        """What `train` returns. stopped: the signal that ended the run early."""
        latest = str(self.folder / layout.LATEST)
        return TrainSummary(str(self.run_dir), self.system.name, self.step, self.best, latest, self.began, stopped)

    def report(self, done: int, message: str) -> None:
        """One progress event of this run."""
        if self.progress is not None and self.ranks.first:
            self.progress(ProgressEvent(f"train {self.system.name}", done, self.total, "steps", message))

    def say(self, message: str) -> None:
        """One sentence of this run that must be read: it is not left out for the sake of fewer lines."""
        if self.progress is not None and self.ranks.first:
            self.progress(
                ProgressEvent(f"train {self.system.name}", self.step, self.total, "steps", message, said=True)
            )
