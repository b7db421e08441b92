"""Every row of the table, and its policies in the ways that its options can make another model of it, small."""

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from statevla.config import Config, load_config
from statevla.config.world import WorldOptions
from statevla.data.batch import Batch
from statevla.systems.frozen import ENCODERS
from statevla.systems.system import Given, Objective, System
from statevla.systems.table import SYSTEMS, find_system, sections
from statevla.systems.world import Foretelling
from tests.models.build import normalization

SMALL = (
    "model.image_size=32", "model.embed_dim=32", "model.encoder_depth=1", "model.d_state=4", "model.policy_layers=1",
    "model.policy_d_state=4", "model.gripper_width=32",
    "stamo.image_size=16", "stamo.patch_size=4", "stamo.stages=8-16", "stamo.stem_width=16", "stamo.width=32",
    "stamo.depth=1", "stamo.state_width=8", "stamo.decoder_width=32", "stamo.decoder_depth=1",
)  # fmt: skip


class Squares:
    """A frozen tower: 24 numbers of each square of 12 pixels, of which every pixel counts."""

    name, revision = "squares", "1"

    def __init__(self) -> None:
        self.weights = torch.randn(432, 24, generator=torch.Generator().manual_seed(3)) / 432**0.5

    def patch_features(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, P, 24]."""
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        return F.unfold(pixels, 12, stride=12).transpose(1, 2) @ self.weights.to(pixels.device)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Squares":
        """It stays."""
        return self


@dataclass(frozen=True)
class Case:
    """A policy and options of it, as ``--set`` takes them."""

    row: System
    options: tuple[str, ...] = ()

    @property
    def config(self) -> Config:
        return load_config("tiny", None, (*SMALL, *self.options), sections())

    def make(self, seed: int = 0) -> Objective:
        torch.manual_seed(seed)
        backbone = Squares() if self.config.model.vision != "conv" else None
        return self.row.build(self.config, Given(statistics=normalization(), backbone=backbone))

    def __str__(self) -> str:
        return " ".join((self.row.name, *(text.partition(".")[2] for text in self.options)))


def noise_of(model: Objective, rows: int, seed: int = 0) -> dict[str, Tensor]:
    return dict(model.draw(rows, torch.Generator().manual_seed(seed)))


def loss_of(model: Objective, data: Batch, seed: int = 0) -> Tensor:
    return model.loss(model.terms(with_states(model, data), noise_of(model, len(data), seed))).total


def train(model: Objective, data: Batch, steps: int, rate: float = 2e-3) -> list[float]:
    """The loss of each step, always of the same rows, with other noise."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, data, step)
        loss.backward()
        optimizer.step()
        model.after_step(step, steps)
        losses.append(loss.item())
    return losses


def with_world(name: str, encoder: str, target: str, *more: str) -> Case:
    """more: further ``world_*`` options. `encoder` is for those that may choose one."""
    row = find_system(name)
    chosen = (f"{row.section}.encoder={encoder}",) if len(row.parent) > 1 else ()
    told = (f"world_target={target}", "world_horizon=1", *more)
    return Case(row, (*chosen, *(f"{row.section}.{text}" for text in told)))


def with_states(model: Objective, data: Batch, seed: int = 5) -> Batch:
    """`data` with the kept states that the model's batches hold, random; row 0's episode ends with its third frame."""
    offsets = model.needs.states
    if not offsets:
        return data
    assert isinstance(model, Foretelling)
    numbers = len(model.state_of(data.obs)[0])
    states = torch.randn(len(data), len(offsets), numbers, generator=torch.Generator().manual_seed(seed))
    there = torch.ones(len(data), len(offsets), dtype=torch.bool)
    there[0] = torch.tensor(offsets) < 3
    obs = dataclasses.replace(data.obs, extras={"states": states, "states_there": there})
    return dataclasses.replace(data, obs=obs, next_obs=obs)


def small(row: System) -> Case:
    """A row as it is, with pictures of 32 pixels a side where `SMALL` says nothing of them."""
    own = row.kind == "policy" and not row.sized_by_model and hasattr(row.options, "image_size")
    return Case(row, (f"{row.section}.image_size=32",) if own else ())


ROWS = [small(row) for row in SYSTEMS]
POLICIES = [row for row in SYSTEMS if row.kind == "policy"]
CASES = [Case(row) for row in POLICIES]
CASES += [Case(find_system("goal"), ("goal.fusion=state", f"goal.encoder={encoder}")) for encoder in ENCODERS]
LATENTS = ("stamo.decoder=vae", "stamo.patch_size=2")
CASES.append(Case(find_system("goal"), ("goal.fusion=state", "goal.encoder=stamo", *LATENTS)))
CASES += [with_world(row.name, "stamo", "motion") for row in POLICIES if issubclass(row.options, WorldOptions)]
CASES += [Case(find_system(name), (f"{name}.stem=conv",)) for name in ("vla", "goal")]
TOWER = ("model.vision=siglip", "model.vision_model=squares", "model.vision_width=24", "model.patch_size=16")
CASES += [Case(find_system(name), (*TOWER, f"{name}.vision=siglip")) for name in ("film", "act", "vla", "goal")]
CASES.append(Case(find_system("goal"), (*TOWER, "goal.vision=siglip", "goal.fusion=late")))
CASES.append(Case(find_system("vla"), (*TOWER, "vla.vision=siglip", "vla.fusion=perceiver", "vla.head=discrete")))
VECTOR = ("act.observation=vector", "act.prior=learned")
CASES += [
    Case(find_system("act"), (*TOWER, "act.vision=siglip", *VECTOR)),
    *(Case(find_system("act"), (*VECTOR, "act.vision=parent", f"act.encoder={encoder}")) for encoder in ENCODERS),
    Case(find_system("act"), ("act.vision=resnet18", "act.image_size=32")),
    Case(find_system("act"), ("act.instruction=queries",)),
    *(
        Case(find_system("vla"), ("vla.instruction=readout", f"vla.fusion={fusion}"))
        for fusion in ("concat", "perceiver")
    ),
]
CASES.append(with_world("film", "temporal_jepa", "state"))
CASES += [
    with_world("film", "stamo", "motions", "world_horizon=5", "world_components=4"),
    with_world("flow_matching", "", "motions", "world_horizon=5"),
    with_world("vla", "temporal_jepa", "latent", "world_code=3"),
]
