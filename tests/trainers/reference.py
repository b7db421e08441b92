"""A second training loop, by hand, that knows nothing of `statevla.trainers`: the real one must agree, bitwise.

It takes the models' networks, the loader's batches and torch's AdamW; losses, noise, decay groups, clipping, schedule,
moving average and validation are written out again.
"""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from statevla.config import Config
from statevla.data.batch import Batch
from statevla.data.loaders import SegmentLoader, SplitReader
from statevla.data.needs import NOW, PAIRS, Needs
from statevla.models.encoder import StateEncoder
from statevla.models.losses import variance_covariance
from statevla.systems.flow_matching import PolicyModel
from statevla.systems.temporal_jepa import JepaModel
from stores.reader import Store

VALIDATION_SEED = 2**31 - 1
ALONE = ("A_log", "cls", "modality", "position", "position_cameras", "position_language", "position_robot")
"""Parameters of two dimensions that do not decay."""


Summands = list[tuple[Tensor, int]]
"""Of a loss, each with the number of rows or steps that it averages."""


@dataclass(frozen=True)
class Expected:
    """weights: after the last step. train, val: losses after every step, by step."""

    weights: dict[str, Tensor]
    train: dict[int, float]
    val: dict[int, float]


def masked_mean(values: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, values, 0.0).sum() / keep.sum().clamp(min=1)


def noise(seed: int, step: int, rows: int, chunk: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 1) % 2**63)
    return torch.rand(rows, generator=generator), torch.randn(rows, chunk, 6, generator=generator)


def jepa_loss(model: JepaModel, batch: Batch, config: Config) -> Summands:
    keep, options = batch.has_next, config.training.phase1
    z = model.encoder.state(batch.obs)
    with torch.no_grad():
        wanted = model.target.state(batch.next_obs)
    predicted = model.predictor(z, model.standardize_action(batch.action))
    total = masked_mean((predicted - wanted).square().mean(dim=-1), keep)
    variance, covariance = variance_covariance(predicted, keep)
    total = total + options.variance_weight * variance + options.covariance_weight * covariance
    assert model.inverse is not None
    future = model.standardize_action(batch.chunk[:, : options.inverse_dynamics_horizon])
    real = keep[:, None] & ~batch.is_pad[:, : options.inverse_dynamics_horizon]
    wrong = (model.inverse(z, wanted) - future).square().mean(dim=-1)
    told = options.inverse_dynamics_weight * masked_mean(wrong, real)
    return [(total, int(keep.sum())), (told, int(real.sum()))]


def later_states(model: PolicyModel, batch: Batch, config: Config) -> tuple[Tensor, Tensor]:
    """How far the frozen states move, and which rows hold the later one."""
    options = config.training.phase2
    with torch.no_grad():
        moved = model.encoder.state(batch.next_obs) - model.encoder.state(batch.obs)
    return moved, batch.ahead == options.world_horizon


def fit_world(model: PolicyModel, config: Config, store: Store) -> None:
    """Mean and deviation of the targets over the train split."""
    reader = SplitReader(
        store, "train", config.training.batch_size, config.model.action_seq_len, config.data, needs=model.needs,
        mixed=True,
    )  # fmt: skip
    found = [later_states(model, batch, config) for batch in reader.batches()]
    targets = torch.cat([moved[keep] for moved, keep in found]).double()
    assert model.world is not None
    model.world.mean.copy_(targets.mean(dim=0))
    model.world.scale.copy_(targets.std(dim=0, correction=0))


def world_loss(model: PolicyModel, read: Tensor, batch: Batch, config: Config) -> tuple[Tensor, int]:
    assert model.world is not None
    moved, keep = later_states(model, batch, config)
    real = (~batch.is_pad).float()[..., None]
    wanted = (moved - model.world.mean) / model.world.scale
    error = model.world.layers((read * real).sum(dim=1) / real.sum(dim=1)) - wanted
    square, absolute = error.square().mean(dim=-1), error.abs().mean(dim=-1)
    foretold = masked_mean(square, keep) + masked_mean(absolute, keep)
    return config.training.phase2.world_weight * foretold, int(keep.sum())


def flow_loss(model: PolicyModel, batch: Batch, seed: int, step: int, config: Config) -> Summands:
    sigma, epsilon = noise(seed, step, len(batch), batch.chunk.shape[1])
    keep = ~batch.is_pad
    with torch.no_grad():
        z = model.encoder.state(batch.obs)
    clean = model.standardize_action(batch.chunk)[..., :6]
    s = sigma[:, None, None]
    read = model.flow.read((1 - s) * clean + s * epsilon, sigma, z, z.new_empty(len(z), 0, z.shape[1]))
    velocity = model.flow.head(read)
    flow = masked_mean((velocity - (epsilon - clean)).square().mean(dim=-1), keep)
    closing = (batch.chunk[..., 6] > 0).float()
    each = F.binary_cross_entropy_with_logits(model.gripper(z).squeeze(-1), closing, reduction="none")
    total = flow + model.gripper_weight * masked_mean(each, keep)
    beside = [world_loss(model, read, batch, config)] if config.training.phase2.world_target != "none" else []
    return [(total, int(keep.sum())), *beside]


def decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and name.split(".")[-1] not in ALONE


def train_by_hand(system: str, config: Config, path: Path, encoder: Path | None = None) -> Expected:
    """`config.training.max_steps` steps of ``temporal_jepa`` or ``flow_matching``, validated after each."""
    training, chunk, store = config.training, config.model.action_seq_len, Store.open(path)
    steps = training.max_steps
    assert steps is not None
    first = system == "temporal_jepa"
    torch.manual_seed(training.seed)
    model: JepaModel | PolicyModel
    if first:
        model, needs, base = JepaModel(config, store.stats()), PAIRS, training.phase1.learning_rate
    else:
        assert encoder is not None
        state = StateEncoder(config.model, store.stats())
        saved = load_file(encoder / "model.safetensors")
        state.load_state_dict({n[8:]: value for n, value in saved.items() if n.startswith("encoder.")})
        model, needs, base = PolicyModel(config, state, store.stats()), NOW, training.phase2.learning_rate
        if model.world is not None:
            needs = Needs(offsets=(0, training.phase2.world_horizon or 0))
            fit_world(model, config, store)

    def loss(batch: Batch, seed: int, step: int) -> Summands:
        if isinstance(model, JepaModel):
            return jepa_loss(model, batch, config)
        return flow_loss(model, batch, seed, step, config)

    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in trained if decays(n, p)], "weight_decay": training.weight_decay},
        {"params": [p for n, p in trained if not decays(n, p)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=base, betas=(0.9, 0.999), fused=True)
    loader = SegmentLoader(store, "train", training.batch_size, training.seed, config.data, chunk, needs)
    reader = SplitReader(store, "val", training.batch_size, chunk, config.data, needs=needs, mixed=True)
    train, val = {}, {}
    with closing(loader.batches()) as batches:
        for step in range(steps):
            total = sum((value for value, _ in loss(next(batches)[1], training.seed, step)), torch.tensor(0.0))
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            clip([p for group in optimizer.param_groups for p in group["params"]], training.gradient_clip)
            for group in optimizer.param_groups:
                group["lr"] = rate(step, steps, base, training.warmup_steps)
            optimizer.step()
            if isinstance(model, JepaModel):
                follow(model, 1 - (1 - training.ema_momentum) * (1 + math.cos(math.pi * step / steps)) / 2)
            train[step + 1] = float(total.detach())
            with torch.no_grad():
                each = [loss(batch, VALIDATION_SEED, number) for number, batch in enumerate(reader.batches())]
            val[step + 1] = sum(
                sum(float(value) * rows for value, rows in summand) / sum(rows for _, rows in summand)
                for summand in zip(*each, strict=True)
            )
    return Expected(model.state_dict(), train, val)


def rate(step: int, steps: int, base: float, warmup: int) -> float:
    """Linear warmup, then a cosine to zero."""
    if step < warmup:
        return base * (step + 1) / warmup
    return base * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def clip(parameters: list[nn.Parameter], limit: float) -> None:
    """By the norm of all gradients together."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    assert norm > limit, "the test must clip to see whether it is done"
    for gradient in gradients:
        gradient.mul_(torch.clamp(limit / (norm + 1e-6), max=1.0))


@torch.no_grad()
def follow(model: JepaModel, momentum: float) -> None:
    """One step of the moving average."""
    for slow, fast in pairs(model):
        slow.lerp_(fast, 1 - momentum)


def pairs(model: JepaModel) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(model.target.parameters(), model.encoder.parameters(), strict=True)
