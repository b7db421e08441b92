"""Binary dimensions of an action (LIBERO: the gripper): state → one logit a step of the chunk, positive for +1 (close).
They are classified, never regressed or normalized. An action may have none.

Legend: B batch, N tokens, D width, K chunk, G binary dimensions.
"""

import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from statevla.config import ModelConfig
from stores.spec import LIBERO, ObsSpec

POOL_HEADS = 4


def is_closing(gripper: Float[Tensor, "*rows"]) -> Bool[Tensor, "*rows"]:
    """Gripper commands (-1 open, +1 close) -> labels."""
    return gripper > 0


def command(logits: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """Logits -> +1 where positive, else -1."""
    return torch.where(logits > 0, 1.0, -1.0)


def logit_layer(width: int, logits: int) -> nn.Linear:
    """A linear layer to the logits of binary dimensions. Without any it has no weight, which torch would warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        return nn.Linear(width, logits)


class GripperClassifier(nn.Module):
    """z → hidden → hidden → K G logits, SiLU. Without binary dimensions it has no weights, and gives no logits.

    With ``policy_context: z+tokens`` the state asks the encoder's tokens once (attention, z as the query) and what it
    finds is added to z: whether to close is a matter of where hand and object are, which patches say best.
    """

    def __init__(self, config: ModelConfig, spec: ObsSpec = LIBERO) -> None:
        super().__init__()
        hidden, self.chunk, self.dims = config.gripper_width, config.action_seq_len, len(spec.binary)
        self.pool: nn.MultiheadAttention | None = None
        self.layers: nn.Sequential | None = None
        if not self.dims:
            return
        if config.policy_context == "z+tokens":
            self.pool = nn.MultiheadAttention(config.embed_dim, POOL_HEADS, batch_first=True)
        self.layers = nn.Sequential(
            nn.Linear(config.embed_dim, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, self.chunk * self.dims),
        )

    def forward(self, z: Float[Tensor, "B D"], tokens: Float[Tensor, "B N D"] | None = None) -> Float[Tensor, "B K G"]:
        if self.layers is None:
            return z.new_zeros(len(z), self.chunk, 0)
        if self.pool is not None:
            if tokens is None:
                raise ValueError("policy_context z+tokens needs the encoder's tokens, got None")
            z = z + self.pool(z.unsqueeze(1), tokens, tokens, need_weights=False)[0].squeeze(1)
        logits: Tensor = self.layers(z)
        return logits.reshape(len(z), self.chunk, self.dims)
