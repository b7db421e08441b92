"""Temporal JEPA: from a state and an action, predict the next state.

The state to predict is made by the *target*, a slowly following copy of the encoder (a moving average of its weights).
With a gap G above 1 the predictor is applied G times, to the actions between, and predicts the state G observations
later, or as many as there are.

Legend: B batch, R rows of a global batch, D width, G gap, A numbers of an action, H horizon of the inverse dynamics.
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
    """What phase 1 trains.

    encoder: trained. target: its moving average, which no gradient reaches. predictor: of the next state. inverse: of
    the actions between two states, None unless ``training.phase1.inverse_dynamics_weight`` asks for it.
    """

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
        """(tokens, numbers of a token): one token of width D."""
        return 1, self.width

    @property
    def sees_by_tower(self) -> bool:
        return isinstance(self.encoder.tokenizer.vision, FrozenFeatures)

    def state(self, obs: ObservationBatch) -> Float[Tensor, "B 1 D"]:
        """The encoder's state, as one token."""
        return self.encoder.state(obs).unsqueeze(1)

    def draw(self, rows: int, generator: torch.Generator) -> Noise:
        """``directions`` [R D] that SIGReg projects states on; nothing where SIGReg is off."""
        if not self.options.sigreg_weight:
            return {}
        return {"directions": torch.randn(rows, self.width, generator=generator)}

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        """What the loss and the monitors are made of.

        Always: states ``z``, predictions ``predicted`` and their targets ``wanted`` [B D], ``keep`` [B] (the row has a
        later observation), and the noise. With the inverse dynamics: its answer ``told`` and the true ``actions``
        [B H A], ``told_keep`` [B H]. In validation: standardized actions ``between`` the states [B G A], ``ahead`` and
        ``episode`` [B].
        """
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
        """A weighted sum over the rows that have a later observation.

        It adds the error of the prediction (MSE), and the variance and covariance losses of the states that
        ``training.phase1.regularize`` names: the predictions (as in the StateVLA documents), the encoder's states, or
        both. Where their weights ask for them, SIGReg of the same states and the error of the inverse dynamics too.

        Parts, unweighted, by the documents' names: ``jepa_mse``, ``jepa_variance``, ``jepa_covariance``; where they are
        on, ``jepa_sigreg`` and ``inverse``. Monitors: ``z_std``, the mean deviation of a dimension of the state (1 is
        healthy, 0 is collapse), and ``copy_mse``, the error of predicting that nothing changes.
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
        parts["z_std"] = mean_std(z, keep)
        parts["copy_mse"] = masked_mse(z, wanted, keep)
        found = LossParts(total, {name: part.detach() for name, part in parts.items()}, keep.sum().float())
        if self.inverse is None:
            return found
        steps = terms["told_keep"]
        told = masked_mse(terms["told"], terms["actions"], steps)
        weighted = self.options.inverse_dynamics_weight * told
        return found.beside(LossParts(weighted, {"inverse": told.detach()}, steps.sum().float()))

    @torch.no_grad()
    def target_state(self, batch: Batch) -> Float[Tensor, "B D"]:
        """The target's state of the later observation."""
        return self.target.state(batch.next_obs)

    def after_step(self, step: int, total: int) -> None:
        """Move the target towards the encoder, by the momentum of this step."""
        self.update_target(ema_momentum(step, total, self.momentum))

    def update_target(self, momentum: float) -> None:
        """One step of the moving average: target = momentum * target + (1 - momentum) * encoder."""
        ema_update(self.target, self.encoder, momentum)

    @torch.no_grad()
    def monitors(self, terms: Terms) -> dict[str, float]:
        """How healthy states and predictions are.

        Of the states: ``z_rank``, their effective rank; ``z_std_least``, the smallest deviation of a dimension;
        ``z_correlation`` of dimensions, beyond what chance gives (`correlation_excess`); ``z_within``, the share of
        their variance that lies within episodes. Of the predictions: ``copy_ratio``, their error over the error of
        predicting that nothing changes; ``action_ratio``, their error with another row's actions over that with their
        own (1: they do not depend on actions).
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
