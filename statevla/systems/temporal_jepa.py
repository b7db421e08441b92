"""Phase 1, temporal JEPA: predict the next state, made by a slow copy of the encoder, from this one and the action.

Legend: B batch, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from statevla.config import Config
from statevla.data.batch import Batch
from statevla.models.encoder import StateEncoder
from statevla.models.losses import LossParts, masked_mse, mean_std, variance_covariance
from statevla.models.predictor import InverseDynamics, TemporalPredictor, ema_update
from statevla.models.standardize import Standardize
from statevla.models.tokenizer import Backbone
from stores.spec import LIBERO, ObsSpec
from stores.statistics import Normalization


class JepaModel(nn.Module):
    """encoder (trained), target (its moving average, never trained by gradient), predictor, inverse (an option)."""

    def __init__(
        self,
        config: Config,
        statistics: Normalization | None = None,
        backbone: Backbone | None = None,
        spec: ObsSpec = LIBERO,
    ) -> None:
        super().__init__()
        self.options = config.training.phase1
        self.encoder = StateEncoder(config.model, statistics, backbone, spec)
        self.target = StateEncoder(config.model, statistics, backbone, spec)
        self.target.load_state_dict(self.encoder.state_dict())
        self.target.requires_grad_(False)
        self.predictor = TemporalPredictor(config.model, spec)
        self.standardize_action = Standardize("action", statistics, spec)
        self.inverse = (
            InverseDynamics(config.model, self.options.inverse_dynamics_horizon, spec)
            if self.options.inverse_dynamics_weight > 0
            else None
        )

    def forward(self, batch: Batch) -> LossParts:
        """`loss`, under the name that wrappers such as DistributedDataParallel call."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> LossParts:
        """Over the rows with a successor: MSE to the target's next state, variance and covariance of predictions.

        Parts: ``mse``, ``variance``, ``covariance`` (unweighted), ``inverse`` where it is on; monitors ``z_std``
        (1 is healthy, 0 is collapse) and ``copy_mse``, the MSE of predicting that nothing changes.
        """
        keep = batch.has_next
        action = self.standardize_action(batch.action)
        z = self.encoder.state(batch.obs)
        wanted = self.target_state(batch)
        predicted = self.predictor(z, action)
        mse = masked_mse(predicted, wanted, keep)
        variance, covariance = variance_covariance(predicted, keep)
        total = mse + self.options.variance_weight * variance + self.options.covariance_weight * covariance
        parts = {"mse": mse, "variance": variance, "covariance": covariance}
        if self.inverse is not None:
            horizon = self.inverse.horizon
            future = self.standardize_action(batch.chunk[:, :horizon])
            told = keep[:, None] & ~batch.is_pad[:, :horizon]
            parts["inverse"] = masked_mse(self.inverse(z, wanted), future, told)
            total = total + self.options.inverse_dynamics_weight * parts["inverse"]
        parts["z_std"] = mean_std(z, keep)
        parts["copy_mse"] = masked_mse(z, wanted, keep)
        return LossParts(total, {name: part.detach() for name, part in parts.items()}, keep.sum().float())

    @torch.no_grad()
    def target_state(self, batch: Batch) -> Float[Tensor, "B D"]:
        """The target encoder's state of the next observation."""
        return self.target.state(batch.next_obs)

    def update_target(self, momentum: float) -> None:
        """One step of the moving average; call it after every optimizer step with `ema_momentum`."""
        ema_update(self.target, self.encoder, momentum)
