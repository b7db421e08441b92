"""Transformer parts that several systems share: pre-norm blocks, cross-attention, fixed sinusoids.

The layers are PyTorch's own (`nn.TransformerEncoderLayer`, `nn.MultiheadAttention`); what stands here is how they are
put together: norm first, GELU, a final norm after the last layer. A backbone computes in the dtype of its weights, so
that a policy for acting may hold it in bfloat16.

Legend: B batch, N tokens, M tokens that are looked at, Q queries, D width.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from statevla.models.pixels import dtype_of
from statevla.models.tokenizer import embedding


def encoder_layer(
    width: int, heads: int, hidden: int, dropout: float = 0.0, norm_first: bool = True
) -> nn.TransformerEncoderLayer:
    """x + Attention(LN(x)), then x + MLP(LN(x)), GELU; or LN(x + Attention(x)), then LN(x + MLP(x))."""
    return nn.TransformerEncoderLayer(
        width, heads, hidden, dropout, activation="gelu", batch_first=True, norm_first=norm_first
    )


class Backbone(nn.Module):
    """`depth` pre-norm blocks and a final LayerNorm, or post-norm blocks alone; without blocks, nothing at all."""

    def __init__(
        self, width: int, heads: int, hidden: int, depth: int, dropout: float = 0.0, norm_first: bool = True
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(encoder_layer(width, heads, hidden, dropout, norm_first) for _ in range(depth))
        self.norm = nn.LayerNorm(width) if depth and norm_first else nn.Identity()

    def forward(self, x: Float[Tensor, "B N D"], ignore: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, "B N D"]:
        """ignore: tokens that no other token may look at (padding)."""
        if not len(self.layers):
            return x
        x = x.to(dtype_of(self))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=ignore)
        out: Tensor = self.norm(x)
        return out


class DecoderLayer(nn.Module):
    """Self-attention among the queries, cross-attention to the memory, MLP; norm first or last, GELU."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0, norm_first: bool = True) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(
            width, heads, hidden, dropout, activation="gelu", batch_first=True, norm_first=norm_first
        )

    def forward(self, queries: Float[Tensor, "B Q D"], memory: Float[Tensor, "B M D"]) -> Float[Tensor, "B Q D"]:
        out: Tensor = self.layer(queries, memory)
        return out


class CrossLayer(nn.Module):
    """q + Attention(LN(q), LN(memory)), then q + MLP(LN(q)), GELU."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm_query, self.norm_memory = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, query: Float[Tensor, "B Q D"], memory: Float[Tensor, "B M D"]) -> Float[Tensor, "B Q D"]:
        seen = self.norm_memory(memory)
        query = query + self.attention(self.norm_query(query), seen, seen, need_weights=False)[0]
        out: Tensor = query + self.mlp(self.norm(query))
        return out


class Queries(nn.Module):
    """`count` learned tokens, the same for every row."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.queries = embedding(count, width)

    def forward(self, rows: int) -> Float[Tensor, "B Q D"]:
        return self.queries.expand(rows, -1, -1)


def sinusoids(count: int, width: int) -> Float[Tensor, "N D"]:
    """Fixed positions (Vaswani et al. 2017): sines in the even columns, cosines in the odd ones."""
    angle = torch.arange(count).unsqueeze(1) * torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def grid_sinusoids(side: int, width: int) -> Float[Tensor, "N D"]:
    """Fixed positions of a side × side grid, row by row: the row in the first half of D, the column in the other."""
    line = sinusoids(side, width // 2)
    rows, columns = line.unsqueeze(1).expand(-1, side, -1), line.unsqueeze(0).expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
