"""Typed batches: what loaders yield and what losses take.

Legend: B batch, P patches, V feature width, D state width, H height, W width, K chunk, R numbers of a robot state, A of
an action, L of an embedding.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int8, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class ObservationBatch:
    """Canonical observations in raw units.

    images: [B, H, W, 3] a camera, in the spec's order: RGB, upright, [0, 255]; none where another view stands for them.
    robot_state: the spec's units. language: the cached text embedding. latent: the state that a frozen encoder made of
    the whole observation, where that view is loaded (`statevla.data.views`); likewise features: of a frozen tower, by
    camera, float16, or int8 in units of `scales`. extras: what further views (`Needs.views`) give beside these, by
    name, a row each; in training only, since no live observation has them.
    """

    images: tuple[UInt8[Tensor, "B _ _ 3"], ...]
    robot_state: Float[Tensor, "B R"]
    language: Float[Tensor, "B L"]
    latent: Float[Tensor, "B D"] | None = None
    features: tuple[Float[Tensor, "B P V"] | Int8[Tensor, "B P V"], ...] = ()
    scales: tuple[Float[Tensor, "B P"], ...] = ()
    extras: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def each(self, change: Callable[[Tensor], Tensor]) -> "ObservationBatch":
        """The same batch with `change` made to every tensor."""
        return ObservationBatch(
            tuple(map(change, self.images)),
            change(self.robot_state),
            change(self.language),
            None if self.latent is None else change(self.latent),
            tuple(map(change, self.features)),
            tuple(map(change, self.scales)),
            {name: change(tensor) for name, tensor in self.extras.items()},
        )

    def to(self, device: torch.device) -> "ObservationBatch":
        """The same batch on `device`; copies from pinned memory do not block."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "ObservationBatch":
        """The same batch in page-locked memory, from where copies to a GPU do not block."""
        return self.each(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class Batch:
    """Transitions ``(obs_t, a_t, obs_{t+1}, chunk_t)`` in raw action units.

    next_obs: the observation `ahead` steps later, 1 unless a system asks for more: the one after `action`. Where ahead
    is 0 there is none, and `has_next` false.
    chunk: actions t ... t+K-1, past the episode's end the last one repeated, where `is_pad` is true.
    episode, frame: where each row is from. goal: a later observation of the same episode, at goal_frame, where the
    system needs one.
    """

    obs: ObservationBatch
    next_obs: ObservationBatch
    ahead: Int64[Tensor, " B"]
    action: Float[Tensor, "B A"]
    chunk: Float[Tensor, "B K A"]
    is_pad: Bool[Tensor, "B K"]
    episode: Int64[Tensor, " B"]
    frame: Int64[Tensor, " B"]
    goal: ObservationBatch | None = None
    goal_frame: Int64[Tensor, " B"] | None = None

    def see(self, change: Callable[[ObservationBatch], ObservationBatch]) -> "Batch":
        """The same batch with `change` made to every observation; one that stands for the next one too, once."""
        obs = change(self.obs)
        return dataclasses.replace(
            self,
            obs=obs,
            next_obs=obs if self.next_obs is self.obs else change(self.next_obs),
            goal=None if self.goal is None else change(self.goal),
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with `change` made to every tensor."""
        return dataclasses.replace(
            self.see(lambda obs: obs.each(change)),
            ahead=change(self.ahead),
            action=change(self.action),
            chunk=change(self.chunk),
            is_pad=change(self.is_pad),
            episode=change(self.episode),
            frame=change(self.frame),
            goal_frame=None if self.goal_frame is None else change(self.goal_frame),
        )

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`; copies from pinned memory do not block."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """The same batch in page-locked memory."""
        return self.each(lambda tensor: tensor.pin_memory())

    @property
    def has_next(self) -> Bool[Tensor, " B"]:
        """Where `next_obs` is a later observation."""
        return self.ahead > 0

    def __len__(self) -> int:
        return int(self.action.shape[0])
