"""An option of every policy: its readout foretells a frozen encoder's later state (StaMo, 2510.05057, and the
world-model terms of its relatives). Training only: acting never asks the head.

Legend: B batch, D width of the readout, Q readouts, F numbers of a state, H horizon.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from statevla.config import Config
from statevla.config.world import WorldOptions
from statevla.data.batch import Batch, ObservationBatch
from statevla.data.needs import Needs
from statevla.models.heads import masked_l1
from statevla.models.losses import masked_mse
from statevla.systems.system import Objective, Terms
from stores.errors import UsageError

HIDDEN: Final = 512
FITTED_ROWS: Final = 8192
"""Of the train split, from which the targets' mean and deviation are taken."""
TINY: Final = 1e-12


class WorldHead(nn.Module):
    """MLP D → 512 → 512 → F. target: ``state``, the one H steps later, or ``motion``, its difference from now's; both
    standardized by number, as `fit` found them. shuffled: a control, in training each row has the target of another
    episode's.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, numbers: int, target: str, horizon: int, shuffled: bool = False) -> None:
        super().__init__()
        self.target, self.horizon, self.shuffled = target, horizon, shuffled
        self.layers = nn.Sequential(
            nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, numbers)
        )
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))

    def forward(self, readout: Float[Tensor, "B D"] | Float[Tensor, "B Q D"]) -> Float[Tensor, "B F"]:
        """Of several readouts, from their mean."""
        out: Tensor = self.layers(readout if readout.dim() == 2 else readout.mean(dim=1))
        return out.float()

    def targets(
        self, now: Float[Tensor, "B F"], later: Float[Tensor, "B F"], batch: Batch
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B F"], Bool[Tensor, " B"]]:
        """What is to be foretold, what "nothing changes" would say, and where there is an observation so far on.

        now, later: states of the batch's two observations.
        """
        keep = batch.ahead == self.horizon
        if self.target == "motion":
            return later - now, torch.zeros_like(now), keep
        return later, now, keep

    def terms(
        self, readout: Float[Tensor, "B D"] | Float[Tensor, "B Q D"], now: Float[Tensor, "B F"],
        later: Float[Tensor, "B F"], batch: Batch,
    ) -> dict[str, Tensor]:  # fmt: skip
        """``world``, ``world_wanted``, ``world_copied`` [B F] standardized, ``world_keep`` [B]; ``world_episode`` [B]
        where targets are shuffled.
        """
        wanted, copied, keep = self.targets(now, later, batch)
        return {
            "world": self(readout),
            "world_wanted": (wanted - self.mean) / self.scale,
            "world_copied": (copied - self.mean) / self.scale,
            "world_keep": keep,
            **({"world_episode": batch.episode} if self.shuffled else {}),
        }

    def loss(self, terms: Terms) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """MSE + L1 over the rows with a later observation. Parts: ``world_mse``, ``world_l1`` and ``world_copy_mse``,
        the MSE of "nothing changes".
        """
        told, wanted, keep = terms["world"], terms["world_wanted"], terms["world_keep"]
        if self.shuffled and self.training:  # here, where all rows of all ranks and micro-batches are
            episode, away = terms["world_episode"], len(wanted) // 2
            wanted, keep = wanted.roll(away, 0), keep.roll(away, 0) & (episode != episode.roll(away, 0))
        parts = {
            "world_mse": masked_mse(told, wanted, keep),
            "world_l1": masked_l1(told, wanted, keep),
            "world_copy_mse": masked_mse(terms["world_copied"], wanted, keep),
        }
        return parts["world_mse"] + parts["world_l1"], parts

    def monitors(self, terms: Terms) -> dict[str, float]:
        """``world_copy_ratio``: error over that of "nothing changes"; ``world_rows``: share of rows with a target."""
        parts = self.loss(terms)[1]
        ratio = parts["world_mse"] / parts["world_copy_mse"].clamp(min=TINY)
        return {"world_copy_ratio": ratio.item(), "world_rows": terms["world_keep"].float().mean().item()}

    @torch.no_grad()
    def fit(self, found: Float[Tensor, "N F"]) -> None:
        """Mean and deviation of the targets; a number that never changes is only centred. Raises UsageError where no
        row has a target.
        """
        if not len(found):
            raise UsageError(
                f"world_horizon: no segment of the train split holds an observation {self.horizon} steps after "
                "another; set a smaller one, or ingest longer segments"
            )
        deviation, mean = torch.std_mean(found.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > TINY, deviation, 1.0))


class Foretelling(Objective):
    """A policy that may have a world head. world: that head, where the options say so."""

    world: WorldHead | None

    def __init__(self) -> None:
        super().__init__()
        self.world = None

    def make_world(self, options: WorldOptions, config: Config, width: int, numbers: int) -> None:
        """Where the options say so, a head on readouts of `width`; called last, so that it changes no other weight.

        numbers: of a state.
        """
        if not options.has_world:
            return
        horizon = options.world_horizon or config.model.action_seq_len
        self.world = WorldHead(width, numbers, options.world_target, horizon, options.world_shuffled)
        self.needs = Needs(offsets=(0, horizon))

    def state_of(self, obs: ObservationBatch) -> Float[Tensor, "B F"]:
        """The frozen encoder's, float32 and without gradients."""
        raise NotImplementedError

    @property
    def learns_unlabelled(self) -> bool:
        """With a world head."""
        return self.world is not None

    @property
    def fit_rows(self) -> int:
        """For the world head's targets."""
        return 0 if self.world is None else FITTED_ROWS

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """The world head's targets."""
        if self.world is not None:
            self.world.fit(torch.cat(list(self._targets(self.world, batches))))

    def _targets(self, world: WorldHead, batches: Iterable[Batch]) -> Iterator[Tensor]:
        for batch in batches:
            wanted, _, keep = world.targets(self.state_of(batch.obs), self.state_of(batch.next_obs), batch)
            yield wanted[keep]

    def foretell(self, readout: Float[Tensor, "B D"] | Float[Tensor, "B Q D"], batch: Batch) -> dict[str, Tensor]:
        """`WorldHead.terms`; none without one."""
        if self.world is None:
            return {}
        return self.world.terms(readout, self.state_of(batch.obs), self.state_of(batch.next_obs), batch)

    def world_loss(self, options: WorldOptions, terms: Terms) -> tuple[Float[Tensor, ""] | float, dict[str, Tensor]]:
        """`WorldHead.loss`, weighted, and its parts, detached; 0 without a head."""
        if self.world is None:
            return 0.0, {}
        foretold, parts = self.world.loss(terms)
        return options.world_weight * foretold, {name: part.detach() for name, part in parts.items()}

    def world_monitors(self, terms: Terms) -> dict[str, float]:
        """`WorldHead.monitors`; none without one."""
        return {} if self.world is None else self.world.monitors(terms)
