"""Temporal JEPA: predict the next state, made by a slow copy of the encoder, from this one and the action.

With a gap of G, the state up to G observations later, by G steps of the same predictor.

Legend: B batch, R rows of a step, D width, G gap, A numbers of an action, H horizon of the inverse dynamics.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from statevla.config import Config
from statevla.data.batch import Batch, ObservationBatch
from statevla.data.needs import Needs
from statevla.models.encoder import StateEncoder
from statevla.models.losses import LossParts, masked_mse, mean_std, sigreg, variance_covariance
from statevla.models.monitors import correlation_excess, rank_me, within_episodes
from statevla.models.predictor import InverseDynamics, TemporalPredictor, ema_momentum, ema_update
from statevla.models.standardize import Standardize
from statevla.models.tokenizer import Backbone, FrozenFeatures
from statevla.systems.system import Given, Noise, Objective, Terms
from stores.spec import LIBERO, ObsSpec
from stores.statistics import Normalization

TINY = 1e-12
"""Errors below it are none."""


class JepaModel(Objective):
    """encoder (trained), target (its moving average, never trained by gradient), predictor, inverse (an option)."""

    has_target = True

    def __init__(
        self,
        config: Config,
        statistics: Normalization | None = None,
        backbone: Backbone | None = None,
        spec: ObsSpec = LIBERO,
    ) -> None:
        super().__init__()
        self.options = config.training.phase1
        self.needs = Needs(offsets=(0, self.options.gap), require=True, rows=2)
        self.width = config.model.embed_dim
        self.momentum = config.training.ema_momentum
        self.encoder = StateEncoder(config.model, statistics, backbone, spec)
        self.target = StateEncoder(config.model, statistics, backbone, spec)
        self.target.load_state_dict(self.encoder.state_dict())
        self.target.requires_grad_(False)
        hidden = self.options.temporal_predictor_hidden_dim
        self.predictor = TemporalPredictor(config.model, hidden, spec)
        self.standardize_action = Standardize("action", statistics, spec)
        self.inverse = (
            InverseDynamics(config.model, self.options.inverse_dynamics_horizon, hidden, spec)
            if self.options.inverse_dynamics_weight > 0
            else None
        )

    @property
    def state_shape(self) -> tuple[int, int]:
        """One token of so many numbers."""
        return 1, self.width

    @property
    def sees_by_tower(self) -> bool:
        return isinstance(self.encoder.tokenizer.vision, FrozenFeatures)

    def state(self, obs: ObservationBatch) -> Float[Tensor, "B 1 D"]:
        """The encoder's."""
        return self.encoder.state(obs).unsqueeze(1)

    def draw(self, rows: int, generator: torch.Generator) -> Noise:
        """``directions`` [R D] of SIGReg, where it is on."""
        if not self.options.sigreg_weight:
            return {}
        return {"directions": torch.randn(rows, self.width, generator=generator)}

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        """``z``, ``predicted`` and ``wanted`` [B D], ``keep`` [B] (has a successor); with the inverse dynamics also
        ``told``, ``actions`` [B H A] and ``told_keep`` [B H]; in validation, for the monitors, ``between`` [B G A],
        ``ahead`` and ``episode`` [B]."""
        between = self.standardize_action(batch.chunk[:, : self.options.gap])
        z = self.encoder.state(batch.obs)
        wanted = self.target_state(batch)
        predicted = self.predictor.roll(z, between, batch.ahead)
        terms = {"z": z, "predicted": predicted, "wanted": wanted, "keep": batch.has_next, **noise}
        if not self.training:
            terms |= {"between": between, "ahead": batch.ahead, "episode": batch.episode}
        if self.inverse is not None:
            horizon = self.inverse.horizon
            terms["told"] = self.inverse(z, wanted)
            terms["actions"] = self.standardize_action(batch.chunk[:, :horizon])
            terms["told_keep"] = batch.has_next[:, None] & ~batch.is_pad[:, :horizon]
        return terms

    def loss(self, terms: Terms) -> LossParts:
        """Over the rows with a successor: MSE to the target's next state, variance and covariance of the states that
        ``training.phase1.regularize`` names: predictions (the documents'), the encoder's, or the sum of both.

        With ``training.phase1.sigreg_weight`` also SIGReg of the same states (part ``jepa_sigreg``).

        Parts, named as the StateVLA documents log them: ``jepa_mse``, ``jepa_variance``, ``jepa_covariance``
        (unweighted); ``inverse`` where it is on; monitors ``z_std`` (1 is healthy, 0 is collapse) and ``copy_mse``, the
        MSE of predicting that nothing changes.
        """
        z, predicted, wanted, keep = terms["z"], terms["predicted"], terms["wanted"], terms["keep"]
        mse = masked_mse(predicted, wanted, keep)
        spread = {"z_next": (predicted,), "z": (z,), "both": (predicted, z)}[self.options.regularize]
        variance, covariance = torch.stack([torch.stack(variance_covariance(states, keep)) for states in spread]).sum(
            dim=0
        )
        total = (
            self.options.prediction_weight * mse
            + self.options.variance_weight * variance
            + self.options.covariance_weight * covariance
        )
        parts = {"jepa_mse": mse, "jepa_variance": variance, "jepa_covariance": covariance}
        if self.options.sigreg_weight:
            parts["jepa_sigreg"] = torch.stack([sigreg(states, keep, terms["directions"]) for states in spread]).sum()
            total = total + self.options.sigreg_weight * parts["jepa_sigreg"]
        if self.inverse is not None:
            parts["inverse"] = masked_mse(terms["told"], terms["actions"], terms["told_keep"])
            total = total + self.options.inverse_dynamics_weight * parts["inverse"]
        parts["z_std"] = mean_std(z, keep)
        parts["copy_mse"] = masked_mse(z, wanted, keep)
        return LossParts(total, {name: part.detach() for name, part in parts.items()}, keep.sum().float())

    @torch.no_grad()
    def target_state(self, batch: Batch) -> Float[Tensor, "B D"]:
        """The target encoder's state of the next observation."""
        return self.target.state(batch.next_obs)

    def after_step(self, step: int, total: int) -> None:
        """Move the target towards the encoder."""
        self.update_target(ema_momentum(step, total, self.momentum))

    def update_target(self, momentum: float) -> None:
        """One step of the moving average."""
        ema_update(self.target, self.encoder, momentum)

    @torch.no_grad()
    def monitors(self, terms: Terms) -> dict[str, float]:
        """Of states: ``z_rank``, the effective rank; ``z_std_least``, the smallest deviation of a dimension;
        ``z_correlation``, above what chance shows (`correlation_excess`); ``z_within``, share of variance within
        episodes. Of predictions: ``copy_ratio``, their error over that of "nothing changes"; ``action_ratio``, their
        error with another row's action over that with their own: 1 is blind to actions.
        """
        z, wanted, keep = terms["z"].float(), terms["wanted"], terms["keep"]
        others = self.predictor.roll(z, terms["between"].roll(len(z) // 2, dims=0), terms["ahead"]).detach()
        error = masked_mse(terms["predicted"], wanted, keep).clamp(min=TINY)
        return {
            "z_rank": rank_me(z),
            "z_std_least": float(z.std(dim=0).min()),
            "z_correlation": correlation_excess(z),
            "z_within": within_episodes(z, terms["episode"]),
            "copy_ratio": float(error / masked_mse(z, wanted, keep).clamp(min=TINY)),
            "action_ratio": float(masked_mse(others, wanted, keep) / error),
        }


def build(config: Config, given: Given) -> JepaModel:
    """Fresh weights; the target starts as the encoder."""
    return JepaModel(config, given.statistics, given.backbone, given.spec)
