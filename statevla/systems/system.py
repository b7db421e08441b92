"""What a system that can be trained is: an `Objective`, and the row of `SYSTEMS` that says how one is built.

Legend: B batch, R rows of all batches that one optimizer step sees.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn

from statevla.config import Config
from statevla.config.schema import SystemOptions
from statevla.data.batch import Batch
from statevla.data.needs import NOW, Needs
from statevla.encoders.backbone import FrozenVision
from statevla.models.losses import LossParts
from statevla.models.optim import undecayed_names
from statevla.runs.state import CheckpointState
from stores.spec import LIBERO, ObsSpec
from stores.statistics import Normalization

SMALL: Final = "small"
"""The preset that options have where nothing else is said."""

Noise = Mapping[str, Tensor]
"""Everything random in one step, rows first, on the CPU: a rank takes its rows of the global batch's."""

Terms = Mapping[str, Tensor]
"""What a loss is made of, rows first: terms of several ranks or micro-batches are concatenated."""


class Objective(nn.Module):
    """A model with its loss. The forward pass is `terms`, so that wrappers which change it wrap what has gradients."""

    needs: Needs = NOW
    has_target: bool = False
    """Whether it keeps a moving average of its own, beside which no other is taken."""

    @property
    def learns_unlabelled(self) -> bool:
        """Whether rows teach it something whose actions are hidden (NaN, and all of them padding); the default: no."""
        return False

    def draw(self, rows: int, generator: torch.Generator) -> Noise:
        """Noise of a global batch, from `generator` alone; the default draws nothing."""
        return {}

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        """Of every row by itself, differentiable. `noise` is on the batch's device."""
        raise NotImplementedError

    def loss(self, terms: Terms) -> LossParts:
        """Of all rows [R ...] together; what averages over rows or takes their statistics stands here."""
        raise NotImplementedError

    def after_step(self, step: int, total: int) -> None:
        """What follows optimizer step number `step` (0-based) of `total`; the default does nothing."""

    def monitors(self, terms: Terms) -> dict[str, float]:
        """Numbers to watch in validation, from the terms of many rows; the default has none."""
        return {}

    @property
    def fit_rows(self) -> int:
        """Rows of the train split that `fit` is to see; the default needs none."""
        return 0

    def fit(self, batches: Iterable[Batch]) -> None:
        """Take what stays fixed in training, and goes with the checkpoint, from `batches`, before the first step. Where
        `needs` has kept states, observations of these batches hold nothing else but robot state and instruction.
        """

    @property
    def undecayed(self) -> frozenset[str]:
        """Parameters without weight decay: all but the weights of linear layers and convolutions."""
        return undecayed_names(self)

    @property
    def idle(self) -> frozenset[str]:
        """Parameters whose first step is yet to come: an optimizer has no state of them; the default has none."""
        return frozenset()

    @property
    def sees_by_tower(self) -> bool:
        """Whether the frozen tower is all that it sees pictures by, so that kept features may come in their place; the
        default: no.
        """
        return False

    @property
    def frozen_encoder(self) -> nn.Module | None:
        """Of a policy that sees of a frame only what this frozen encoder makes of it (a `StateEncoder`, or another that
        gives `state`): its states may be kept, and come as ``obs.latent``. The default has none.
        """
        return None

    @property
    def state_encoder(self) -> nn.Module | None:
        """The frozen encoder whose kept states `needs` wants, a `StateEncoder` or another that gives `state`; the
        default has none.
        """
        return self.frozen_encoder

    def forward(self, batch: Batch, noise: Noise) -> Terms:
        """`terms`."""
        return self.terms(batch, noise)


@dataclass(frozen=True)
class Parent:
    """The checkpoint whose encoder a policy takes, frozen. tensors: its model, by name."""

    folder: Path
    state: CheckpointState
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Given:
    """What building takes beside the configuration.

    spec: of the store. statistics: the store's; None where weights that are still to be loaded bring them. parent: None
    for systems without one, and where a whole policy is still to be loaded.
    """

    spec: ObsSpec = LIBERO
    statistics: Normalization | None = None
    backbone: FrozenVision | None = None
    parent: Parent | None = None


@dataclass(frozen=True)
class System:
    """One row of the table.

    folder: of its checkpoints in a run, and in the names of its metrics. build: fresh weights from torch's generator.
    options, section: its options and where they stand in the configuration, its own name for all but the documents' two
    phases. parent: systems whose checkpoint it may take as its frozen encoder; `parents_of`, those that will do with
    the options of a configuration.
    """

    name: str
    folder: str
    kind: Literal["encoder", "policy"]
    title: str
    build: Callable[[Config, Given], Objective]
    options: type[SystemOptions]
    section: str
    parent: tuple[str, ...] = ()

    @property
    def sized_by_model(self) -> bool:
        """Whether its sizes are the documents' ``model.*``; those of a system with a section of its own are there."""
        return self.section.startswith("training.")

    def options_of(self, config: Config) -> SystemOptions:
        """This system's options in `config`."""
        options: SystemOptions = config.section(self.section)
        return options

    def shown_as(self, preset: str) -> str:
        """For people: whose sizes the options have with a preset; the defaults are ``small``."""
        if self.sized_by_model or preset == SMALL or preset in self.options.PRESETS:
            return f"preset {preset}"
        return f"preset {preset}, of which {self.name} has no sizes: those of {SMALL}"

    def parents_of(self, config: Config) -> tuple[str, ...]:
        """Systems of which `config` wants a checkpoint's frozen encoder; none where it wants no encoder."""
        return self.options_of(config).parents(self.parent)
