"""The one training loop. What differs between phases is in `phase1.py` and `phase2.py`."""

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from statevla import __version__
from statevla.config import Config, Phase1Config, Phase2Config
from statevla.data.batch import Batch
from statevla.data.loaders import SegmentLoader, SplitReader
from statevla.data.prefetch import Position
from statevla.encoders.siglip import SiglipBackbone
from statevla.encoders.vision import identity, load_backbone, require_identity
from statevla.models.losses import LossParts
from statevla.models.optim import parameter_groups
from statevla.runs import write as checkpoint
from statevla.runs.files import FORMAT, PHASE_FOLDERS, CheckpointState, read_state, require_phase, require_store
from statevla.runs.metrics import plot_losses, read_metrics
from statevla.systems import flow_matching_build as phase2
from statevla.systems import temporal_jepa_build as phase1
from statevla.trainers.monitors import rank_me
from statevla.trainers.schedule import learning_rate, step_generator, total_steps
from statevla.trainers.setup import choose_device, encoder_origin, require_same_config, use_bf16
from statevla.trainers.stop import stop_on_signals
from stores.disk.durable import LineLog, lock, write_bytes, write_json
from stores.errors import StateVLAError, UsageError
from stores.progress import Progress, ProgressEvent
from stores.reader import Store

ADAM_BETAS: Final = (0.9, 0.999)
SAVE_SECONDS: Final = 300.0
"""A run also saves checkpoint_latest when this long has passed since it last did."""

VALIDATION_SEED: Final = 2**31 - 1
MONITOR_ROWS: Final = 2048


class NonFiniteLoss(StateVLAError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Phase:
    """What the loop needs of a phase."""

    number: int
    build: Callable[[Config, Store, Path | None, SiglipBackbone | None], Any]
    loss: Callable[[nn.Module, Batch, torch.Generator], LossParts]
    after_step: Callable[[Any, Config, int, int], None]
    options: Callable[[Config], Phase1Config | Phase2Config]


PHASES: Final = {
    1: Phase(1, phase1.build, phase1.loss, phase1.after_step, lambda config: config.training.phase1),
    2: Phase(2, phase2.build, phase2.loss, phase2.after_step, lambda config: config.training.phase2),
}


@dataclass(frozen=True)
class TrainSummary:
    """Outcome of a run. best: {"step", "val_loss"}, None without validation episodes. stopped: by a signal, early."""

    run: str
    phase: int
    steps: int
    best: dict[str, Any] | None
    checkpoint: str
    stopped: bool

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `statevla train --json` prints."""
        return {
            "run": self.run,
            "phase": self.phase,
            "steps": self.steps,
            "best": self.best,
            "checkpoint": self.checkpoint,
        }


def train(
    phase: int,
    config: Config,
    store_path: Path | str,
    run_dir: Path,
    resume: bool = False,
    encoder_checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> TrainSummary:
    """Train one phase until its epochs or ``training.max_steps`` are done, or a signal says stop.

    Checkpoints go to ``<run_dir>/checkpoints/<phase folder>/``; with `resume` the run goes on from checkpoint_latest,
    on a CPU to the bit. SIGINT and SIGTERM save checkpoint_latest and return.

    Raises UsageError (checkpoints already there, nothing to resume, another configuration), StaleKey (checkpoint or
    statistics of another store), NonFiniteLoss, StoreCorrupt.
    """
    if phase not in PHASES:
        raise UsageError(f"phase: expected 1 or 2, got {phase}")
    if config.training.torch_threads is not None:
        torch.set_num_threads(config.training.torch_threads)
    folder = run_dir / "checkpoints" / PHASE_FOLDERS[phase]
    latest = folder / checkpoint.LATEST
    if latest.exists() and not resume:
        raise UsageError(f"{latest} exists already; use --resume to go on from it, or another --run folder")
    if resume and not latest.exists():
        raise UsageError(f"{latest}: nothing to resume; train without --resume first")
    if phase == 2 and encoder_checkpoint is None and not resume:
        raise UsageError(
            "phase 2 needs the state encoder of a phase-1 checkpoint; run `statevla train --phase 1` first"
        )
    encoder = None if resume else encoder_checkpoint  # a resumed policy has its encoder in its own checkpoint
    with lock(folder, f"train phase {phase}"):
        run = Run(PHASES[phase], config, Store.open(store_path), run_dir, folder, encoder, progress)
        start = run.resume(latest) if resume else run.start()
        return run.loop(start)


class Run:
    """The state of one training run between steps."""

    def __init__(
        self,
        phase: Phase,
        config: Config,
        store: Store,
        run_dir: Path,
        folder: Path,
        encoder_checkpoint: Path | None,
        progress: Progress | None,
    ) -> None:
        training = config.training
        self.phase, self.config, self.store = phase, config, store
        self.run_dir, self.folder, self.progress = run_dir, folder, progress
        self.metrics = run_dir / f"metrics_phase{phase.number}.jsonl"
        self.device = choose_device(training.device)
        self.autocast = use_bf16(training.precision, self.device)
        self.statistics = store.stats()
        torch.manual_seed(training.seed)
        self.backbone = load_backbone(config.model, self.device)
        self.model = phase.build(config, store, encoder_checkpoint, self.backbone).to(self.device)
        self.encoder = None if encoder_checkpoint is None else encoder_origin(encoder_checkpoint)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, training.weight_decay),
            lr=phase.options(config).learning_rate,
            betas=ADAM_BETAS,
            fused=True,
        )
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.loader = SegmentLoader(
            store, "train", training.batch_size, training.seed, config.data, config.model.action_seq_len, phase.number
        )
        self.total = total_steps(phase.options(config).num_epochs, self.loader.batches_per_epoch, training.max_steps)
        self.validation = self._validation_reader()
        self.step = 0
        self.last_loss = math.nan
        self.best: dict[str, Any] | None = None
        self.unsaved_best: checkpoint.Snapshot | None = None

    def _validation_reader(self) -> SplitReader | None:
        if self.store.manifest.splits["val"] == 0:
            self.report(0, "no validation episodes in the store: no best checkpoint")
            return None
        training = self.config.training
        return SplitReader(
            self.store, "val", training.batch_size, self.config.model.action_seq_len, self.config.data,
            phase=self.phase.number, seed=training.seed, mixed=True,
        )  # fmt: skip

    def start(self) -> Position:
        """Begin at step 0 with an empty metrics file."""
        write_bytes(self.metrics, b"")
        write_json(self.run_dir / f"config_phase{self.phase.number}.json", self.config.to_dict())
        return Position(0, 0)

    def resume(self, latest: Path) -> Position:
        """Put everything back as `latest` has it; metrics of later steps are dropped."""
        state = read_state(latest)
        require_phase(state, self.phase.number, latest)
        require_store(state, self.store.content_hash, latest, str(self.store.root))
        require_same_config(self.config, state, latest)
        require_identity(self.backbone, state.backbone, str(latest))
        checkpoint.restore(latest, state, self.model, self.optimizer)
        self.step, self.best, self.last_loss = state.step, state.best, state.loss
        self.encoder = state.encoder
        kept = [record for record in read_metrics(self.metrics) if record["step"] <= state.step]
        write_bytes(self.metrics, b"".join(json.dumps(record).encode() + b"\n" for record in kept))
        return Position(int(state.loader["epoch"]), int(state.loader["batch"]))

    def loop(self, position: Position) -> TrainSummary:
        """Steps from `position` to the end, or to a signal."""
        with contextlib.ExitStack() as stack:
            stopping = stack.enter_context(stop_on_signals())
            log = stack.enter_context(LineLog(self.metrics))
            saved_at = logged_at = time.monotonic()
            logged_step = self.step
            batches = stack.enter_context(contextlib.closing(self.loader.batches(position)))
            while self.step < self.total and not stopping.is_set():
                position, batch = next(batches)
                parts, norm, lr = self.train_step(batch.to(self.device))
                training, epoch_done = self.config.training, position.batch == 0
                if self.step % training.log_interval == 0 or self.step == self.total:
                    now = time.monotonic()
                    rate = (self.step - logged_step) * training.batch_size / max(now - logged_at, 1e-9)
                    logged_at, logged_step = now, self.step
                    self.log_training(log, position, parts, norm, lr, rate)
                every = training.validate_every_steps
                if (epoch_done if every is None else self.step % every == 0) or self.step == self.total:
                    pause = time.monotonic()
                    self.validate(log, position)
                    logged_at += time.monotonic() - pause
                if epoch_done and position.epoch % training.save_interval == 0:
                    self.save(position, checkpoint.epoch_name(position.epoch))
                    self.save(position, checkpoint.LATEST)
                    saved_at = time.monotonic()
                elif time.monotonic() - saved_at > SAVE_SECONDS:
                    self.save(position, checkpoint.LATEST)
                    saved_at = time.monotonic()
        self.save(position, checkpoint.LATEST)
        title = f"{self.run_dir.name}, phase {self.phase.number}"
        plot_losses(self.metrics, self.metrics.with_name(f"losses_phase{self.phase.number}.png"), title)
        stopped = self.step < self.total
        self.report(self.step, f"stopped, {checkpoint.LATEST} saved" if stopped else "done")
        latest = str(self.folder / checkpoint.LATEST)
        return TrainSummary(str(self.run_dir), self.phase.number, self.step, self.best, latest, stopped)

    def train_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, float]:
        """One optimizer step. Returns loss parts with the total, gradient norm before clipping, learning rate.

        Raises NonFiniteLoss before any weight changes.
        """
        training = self.config.training
        lr = learning_rate(self.step, self.total, self.phase.options(self.config).learning_rate, training)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.phase.loss(self.model, batch, step_generator(training.seed, self.step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.trained, training.gradient_clip)
        self.last_loss, size = torch.stack([loss.total.detach().float(), norm.float()]).tolist()  # one wait for the GPU
        if not (math.isfinite(self.last_loss) and math.isfinite(size)):
            values = {name: float(value) for name, value in loss.parts.items()}
            raise NonFiniteLoss(
                f"loss {self.last_loss}, gradient norm {size} at step {self.step + 1} of phase {self.phase.number}, "
                f"parts {values}; nothing was overwritten, {self.folder} holds the checkpoints saved before; "
                "lower the learning rate, or check the store with `statevla verify`"
            )
        self.optimizer.step()
        self.phase.after_step(self.model, self.config, self.step, self.total)
        self.step += 1
        return {"loss": loss.total.detach(), **loss.parts}, norm, lr

    def log_training(
        self, log: LineLog, position: Position, parts: dict[str, Tensor], norm: Tensor, lr: float, rate: float
    ) -> None:
        """One metrics line and one progress event."""
        values = {name: float(value) for name, value in parts.items()}
        record = {"kind": "train", "step": self.step, "epoch": position.epoch, "lr": lr, **values}
        log.append(json.dumps({**record, "grad_norm": float(norm), "samples_per_s": round(rate, 1)}))
        left = (self.total - self.step) * self.config.training.batch_size / max(rate, 1e-9)
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.report(self.step, f"{shown} | {rate:,.0f} samples/s | {left:.0f} s left")

    @torch.no_grad()
    def validate(self, log: LineLog, position: Position) -> None:
        """Loss over the validation split with always the same noise; keeps a snapshot when it is the best so far."""
        if self.validation is None:
            return
        self.model.eval()
        sums: dict[str, float] = {}
        weights = 0.0
        states: list[Tensor] = []
        for number, batch in enumerate(self.validation.batches()):
            batch = batch.to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
                loss = self.phase.loss(self.model, batch, step_generator(VALIDATION_SEED, number))
                if self.phase.number == 1 and len(states) * len(batch) < MONITOR_ROWS:
                    states.append(self.model.encoder.state(batch.obs).float())
            weight = float(loss.weight)
            weights += weight
            for name, value in {"loss": loss.total, **loss.parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * weight
        values = {name: value / weights for name, value in sums.items()}
        if states:
            values["z_rank"] = rank_me(torch.cat(states))
        if not math.isfinite(values["loss"]):
            raise NonFiniteLoss(f"validation loss is {values['loss']} after step {self.step}; nothing was overwritten")
        log.append(json.dumps({"kind": "val", "step": self.step, "epoch": position.epoch, **values}))
        if self.best is None or values["loss"] < self.best["val_loss"]:
            self.best = {"step": self.step, "val_loss": values["loss"]}
            self.unsaved_best = self.snapshot(position)
        self.report(self.step, " ".join(f"val {name} {value:.4g}" for name, value in values.items()))

    def snapshot(self, position: Position) -> checkpoint.Snapshot:
        """The run as it is, copied to the CPU."""
        training = self.config.training
        instructions = sorted(self.store.manifest.instructions)
        language = self.store.language
        state = CheckpointState(
            format=FORMAT,
            phase=self.phase.number,
            epoch=position.epoch,
            step=self.step,
            loader=self.loader.state(position),
            loss=self.last_loss,
            best=self.best,
            scheduler={
                "name": training.schedule,
                "base": self.phase.options(self.config).learning_rate,
                "warmup_steps": training.warmup_steps,
                "total_steps": self.total,
            },
            rng={**checkpoint.rng_state(), "noise_seed": training.seed},
            config=self.config.to_dict(),
            obs_spec=self.store.obs_spec,
            statistics=self.statistics.to_dict(),
            manifest_hash=self.store.content_hash,
            instructions=instructions,
            language={"encoder": language.encoder, "revision": language.revision},
            backbone=identity(self.backbone),
            encoder=self.encoder,
            code_version=__version__,
            files={},
        )
        vectors = torch.stack([torch.from_numpy(language.vector(text).copy()) for text in instructions])
        return checkpoint.Snapshot(
            state,
            checkpoint.copy_tensors(self.model.state_dict()),
            checkpoint.copy_tensors(checkpoint.optimizer_tensors(self.optimizer)),
            vectors,
        )

    def save(self, position: Position, name: str) -> None:
        """Write a checkpoint, after the best one that validation has found since the last save."""
        if self.unsaved_best is not None:
            checkpoint.save(self.folder / checkpoint.BEST, self.unsaved_best)
            self.unsaved_best = None
        checkpoint.save(self.folder / name, self.snapshot(position))

    def report(self, done: int, message: str) -> None:
        """One progress event of this run."""
        if self.progress is not None:
            self.progress(ProgressEvent(f"train phase {self.phase.number}", done, self.total, "steps", message))
