"""Tokens -> state: a stack of causal Mamba blocks whose last token, CLS, has seen all others.

Legend: B batch, N tokens, D width.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from statevla.config import ModelConfig
from statevla.data.batch import ObservationBatch
from statevla.models.mamba import Mamba, MambaState
from statevla.models.streaming import extend
from statevla.models.tokenizer import Backbone, Tokenizer
from stores.spec import LIBERO, ObsSpec
from stores.statistics import Normalization

NORM_EPS = 1e-5


class Encoded(NamedTuple):
    """z: the state. tokens: the context encoder's output at every position, CLS last."""

    z: Float[Tensor, "B D"]
    tokens: Float[Tensor, "B N D"]


class MambaBlock(nn.Module):
    """RMSNorm → Mamba → residual. The residual stream stays in the input's dtype."""

    def __init__(self, config: ModelConfig, d_state: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.embed_dim, eps=NORM_EPS)
        self.mamba = Mamba(
            config.embed_dim,
            d_state=d_state,
            d_conv=config.d_conv,
            expand=config.expand,
            backend=config.mamba_backend,
        )

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        out: Tensor = x + self.mamba(self._normed(x))
        return out

    def extend(self, x: Float[Tensor, "B N D"], state: MambaState | None) -> tuple[Float[Tensor, "B N D"], MambaState]:
        """`forward` over more tokens of sequences that `state` remembers; and the state after them."""
        y, state = extend(self.mamba, self._normed(x), state)
        return x + y, state

    def _normed(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        normed: Tensor = self.norm(x)
        return normed.to(self.mamba.in_proj.weight.dtype)


class ContextEncoder(nn.Module):
    """`depth` Mamba blocks, RMSNorm, LayerNorm. Output n depends on tokens 0 … n only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MambaBlock(config, config.d_state) for _ in range(config.encoder_depth))
        self.final_norm = nn.RMSNorm(config.embed_dim, eps=NORM_EPS)
        self.output_norm = nn.LayerNorm(config.embed_dim)

    def blocks_only(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """The residual stream before the two final norms."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def finish(self, stream: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """The two final norms; they act on each token alone."""
        out: Tensor = self.output_norm(self.final_norm(stream))
        return out

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.finish(self.blocks_only(tokens))


class StateEncoder(nn.Module):
    """Tokenizer, context encoder and state projection: one observation -> its state z."""

    def __init__(
        self,
        config: ModelConfig,
        statistics: Normalization | None = None,
        backbone: Backbone | None = None,
        spec: ObsSpec = LIBERO,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.tokenizer = Tokenizer(config, statistics, backbone, spec)
        self.context_encoder = ContextEncoder(config)
        self.state_projection = nn.Sequential(
            nn.Linear(config.embed_dim, config.embed_dim), nn.LayerNorm(config.embed_dim)
        )

    def forward(self, obs: ObservationBatch) -> Encoded:
        """State and token outputs."""
        return self.encode(self.tokenizer(obs))

    def encode(self, tokens: Float[Tensor, "B N D"]) -> Encoded:
        """`forward` from the tokenizer's tokens on."""
        out = self.context_encoder(tokens)
        return Encoded(self.state_projection(out[:, -1]), out)

    def state(self, obs: ObservationBatch) -> Float[Tensor, "B D"]:
        """The same z without the final norms of the other tokens."""
        return self.encode_state(self.tokenizer(obs))

    def encode_state(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """`state` from the tokenizer's tokens on."""
        stream = self.context_encoder.blocks_only(tokens)
        z: Tensor = self.state_projection(self.context_encoder.finish(stream[:, -1]))
        return z
