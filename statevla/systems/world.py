"""An option of every policy: its readout foretells a frozen encoder's later state (StaMo, 2510.05057, and the
world-model terms of its relatives). Training only: acting never asks the head.

Legend: B batch, D width of the readout, Q readouts, F numbers of a state, H horizon, P components.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from statevla.config import Config
from statevla.config.world import LATENT, MOTIONS, WorldOptions
from statevla.data.batch import Batch, ObservationBatch
from statevla.data.needs import Needs
from statevla.models.heads import masked_l1
from statevla.models.latent_actions import LatentActions
from statevla.models.losses import LossParts, masked_mse
from statevla.systems.system import Objective, Terms
from stores.errors import UsageError

HIDDEN: Final = 512
FITTED_ROWS: Final = 8192
"""Of the train split, from which the targets' mean and deviation are taken."""
LATENT_ROWS: Final = 65536
"""Of the train split, from which latent actions are learned."""
TINY: Final = 1e-12
StateOf = Callable[[ObservationBatch], Tensor]
"""States [B F] of observations."""


class WorldHead(nn.Module):
    """MLP D → 512 → 512 → F, or → H P with ``motions``.

    target: ``state``, the one H steps later; ``motion``, its difference from now's; ``motions``, the H differences from
    one frame to the next until then, of kept states (StaMo's chunk of motions); ``latent``, the code of the way there
    that `LatentActions` gives, which `fit` learns from kept states alone. Each number is standardized as `fit` found
    it. components: principal ones of a standardized motion, P, that stand for its numbers; all of them are
    divided by one number, so that their mean square is 1 and their proportions stay; 0: none. shuffled: a control, in
    training each row has the target of another episode's.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor | None

    def __init__(self, width: int, numbers: int, options: WorldOptions, horizon: int) -> None:
        """numbers: of a state. Raises UsageError for components that there are not."""
        super().__init__()
        self.target, self.horizon, self.shuffled = options.world_target, horizon, options.world_shuffled
        components = options.world_components
        if components and (self.target != MOTIONS or components > numbers):
            raise UsageError(
                f"world_components: {components} of world_target={self.target}, whose states have {numbers} numbers; "
                f"expected world_target={MOTIONS} and no more than these; set it to 0, or a smaller number"
            )
        code = options.world_code
        if self.target == LATENT and code >= numbers:
            raise UsageError(
                f"world_code: {code} of states of {numbers} numbers, so that a code could hold the later state itself; "
                "set a smaller one"
            )
        numbers_of_state, numbers = numbers, code if self.target == LATENT else numbers
        told = components or numbers
        self.shape = (horizon, told) if self.target == MOTIONS else (told,)
        self.layers = nn.Sequential(
            nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(),
            nn.Linear(HIDDEN, told * horizon if self.target == MOTIONS else told),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))
        self.register_buffer("basis", torch.zeros(numbers, components) if components else None)
        self.actions = LatentActions(numbers_of_state, code) if self.target == LATENT else None

    @property
    def needs(self) -> Needs:
        """What batches must hold for the targets."""
        if self.target == MOTIONS:
            return Needs(states=tuple(range(self.horizon + 1)))
        if self.target == LATENT:
            return Needs(states=(0, self.horizon))
        return Needs(offsets=(0, self.horizon))

    def forward(self, readout: Float[Tensor, "B D"] | Float[Tensor, "B Q D"]) -> Float[Tensor, "B *steps F"]:
        """Of several readouts, from their mean."""
        out: Tensor = self.layers(readout if readout.dim() == 2 else readout.mean(dim=1))
        return out.float().view(len(out), *self.shape)

    def targets(
        self, batch: Batch, state_of: StateOf
    ) -> tuple[Float[Tensor, "B *steps F"], Float[Tensor, "B *steps F"], Bool[Tensor, " B *steps"]]:
        """What is to be foretold, what "nothing changes" would say, and where there is an observation so far on; none
        of it standardized.
        """
        if self.target == MOTIONS:
            states = batch.obs.extras["states"].float()
            moved = states[:, 1:] - states[:, :-1]
            return moved, torch.zeros_like(moved), batch.obs.extras["states_there"][:, 1:]
        if self.actions is not None:
            now, later, keep = ends(batch)
            return self.actions(now, later), self.actions(now, now), keep
        now, later, keep = state_of(batch.obs), state_of(batch.next_obs), batch.ahead == self.horizon
        if self.target == "motion":
            return later - now, torch.zeros_like(now), keep
        return later, now, keep

    def standardized(self, targets: Float[Tensor, "*rows F"]) -> Float[Tensor, "*rows P"]:
        """By number, and reduced where the options say so."""
        unit = (targets - self.mean) / self.scale
        return unit if self.basis is None else unit @ self.basis

    def terms(
        self, readout: Float[Tensor, "B D"] | Float[Tensor, "B Q D"], batch: Batch, state_of: StateOf
    ) -> dict[str, Tensor]:
        """``world``, ``world_wanted``, ``world_copied`` [B F] standardized, ``world_keep`` [B]; with motions [B H P]
        and [B H]. ``world_episode`` [B] where targets are shuffled.
        """
        wanted, copied, keep = self.targets(batch, state_of)
        return {
            "world": self(readout),
            "world_wanted": self.standardized(wanted),
            "world_copied": self.standardized(copied),
            "world_keep": keep,
            **({"world_episode": batch.episode} if self.shuffled else {}),
            **({} if self.actions is None or self.training else self.actions.errors(*ends(batch)[:2])),
        }

    def loss(self, terms: Terms) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """MSE + L1 over the rows with a later observation. Parts: ``world_mse``, ``world_l1`` and ``world_copy_mse``,
        the MSE of "nothing changes".
        """
        told, wanted, keep = terms["world"], terms["world_wanted"], terms["world_keep"]
        if self.shuffled and self.training:  # here, where all rows of all ranks and micro-batches are
            episode, away = terms["world_episode"], len(wanted) // 2
            other = (episode != episode.roll(away, 0)).view(-1, *(1 for _ in keep.shape[1:]))
            wanted, keep = wanted.roll(away, 0), keep.roll(away, 0) & other
        parts = {
            "world_mse": masked_mse(told, wanted, keep),
            "world_l1": masked_l1(told, wanted, keep),
            "world_copy_mse": masked_mse(terms["world_copied"], wanted, keep),
        }
        return parts["world_mse"] + parts["world_l1"], parts

    def monitors(self, terms: Terms) -> dict[str, float]:
        """``world_copy_ratio``: error over that of "nothing changes"; ``world_rows``: share of rows with a target. With
        latent actions ``world_code_ratio``: error of the state that a code leads to, over that of "nothing changes".
        """
        parts, keep = self.loss(terms)[1], terms["world_keep"]
        ratio = parts["world_mse"] / parts["world_copy_mse"].clamp(min=TINY)
        found = {"world_copy_ratio": ratio.item(), "world_rows": keep.float().mean().item()}
        if "code_error" in terms:
            error, moved = (torch.where(keep, terms[name], 0.0).sum() for name in ("code_error", "code_moved"))
            found["world_code_ratio"] = (error / moved.clamp(min=TINY)).item()
        return found

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch], state_of: StateOf) -> None:
        """Mean and deviation of the targets, of motions of the first one in each row; a number that never changes is
        only centred. Raises UsageError where no row has a target.
        """
        if self.actions is None:
            found = torch.cat(list(self._kept(batches, state_of)))
        else:
            pairs = [(now[keep], later[keep]) for now, later, keep in map(ends, batches)]
            now, later = (torch.cat(column) for column in zip(*pairs, strict=True))
            if len(now):
                self.actions.fit(now, later)
            found = self.actions(now, later)
        if not len(found):
            where, longer = ("episode", "") if self.needs.states else ("segment", ", or ingest with a larger --window")
            raise UsageError(
                f"world_horizon: no {where} of the train split holds an observation {self.horizon} steps after "
                f"another; set a smaller one{longer}"
            )
        deviation, mean = torch.std_mean(found.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > TINY, deviation, 1.0))
        if self.basis is not None:
            self.basis.copy_(principal((found - self.mean) / self.scale, self.basis.shape[1]))

    def _kept(self, batches: Iterable[Batch], state_of: StateOf) -> Iterator[Float[Tensor, "n F"]]:
        for batch in batches:
            wanted, _, keep = self.targets(batch, state_of)
            if self.target == MOTIONS:
                wanted, keep = wanted[:, 0], keep[:, 0]
            yield wanted[keep]


def ends(batch: Batch) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B F"], Bool[Tensor, " B"]]:
    """The first and the last of a row's kept states, and where the episode has the last."""
    states = batch.obs.extras["states"].float()
    return states[:, 0], states[:, -1], batch.obs.extras["states_there"][:, -1]


def principal(found: Float[Tensor, "N F"], components: int) -> Float[Tensor, "F P"]:
    """Directions of the largest variance of centred numbers, largest first, divided by one number so that the mean
    square of what they give is 1; the largest entry of each is positive.
    """
    values = found.double()
    variance, directions = torch.linalg.eigh(values.T @ values / len(values))
    variance, directions = variance.flip(0)[:components], directions.flip(1)[:, :components]
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    scaled: Tensor = directions * largest.sign() / variance.mean().clamp(min=TINY).sqrt()
    return scaled


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
        self.world = WorldHead(width, numbers, options, horizon)
        self.needs = self.world.needs

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
        if self.world is None:
            return 0
        return FITTED_ROWS if self.world.actions is None else LATENT_ROWS

    def fit(self, batches: Iterable[Batch]) -> None:
        """The world head's targets."""
        if self.world is not None:
            self.world.fit(batches, self.state_of)

    def foretell(self, readout: Float[Tensor, "B D"] | Float[Tensor, "B Q D"], batch: Batch) -> dict[str, Tensor]:
        """`WorldHead.terms`; none without one."""
        return {} if self.world is None else self.world.terms(readout, batch, self.state_of)

    def world_loss(self, loss: LossParts, options: WorldOptions, terms: Terms) -> LossParts:
        """`loss` and beside it `WorldHead.loss`, weighted, of the rows that have a target; itself without a head."""
        if self.world is None:
            return loss
        foretold, found = self.world.loss(terms)
        parts = {name: part.detach() for name, part in found.items()}
        return loss.beside(LossParts(options.world_weight * foretold, parts, terms["world_keep"].sum().float()))

    def world_monitors(self, terms: Terms) -> dict[str, float]:
        """`WorldHead.monitors`; none without one."""
        return {} if self.world is None else self.world.monitors(terms)
