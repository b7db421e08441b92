"""ACT: a chunk from learned queries, trained with a CVAE whose latent explains the demonstrator's style (2304.13705).

In training an encoder reads the demonstrated chunk and gives q(z | chunk, robot state); acting takes the prior's mean.
The output is the decoder's last layer's (the original reads its first, so that the others never learn).

Legend: B batch, C cameras, N tokens, K chunk, D width, Z latent, P pose dimensions, R robot state, I instructions.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from statevla.models.attention import Backbone, DecoderLayer, Queries, grid_sinusoids, sinusoids
from statevla.models.heads import ChunkOutput
from statevla.models.stems import ConvStem
from statevla.models.tokenizer import dtype_of, embedding

LOG_VARIANCE = 10.0


class Gaussian(NamedTuple):
    """Diagonal; log_variance within ±10."""

    mean: Float[Tensor, "B Z"]
    log_variance: Float[Tensor, "B Z"]

    @classmethod
    def of(cls, numbers: Float[Tensor, "B ZZ"]) -> "Gaussian":
        """The two halves of a layer's output."""
        mean, log_variance = numbers.float().chunk(2, dim=-1)
        return cls(mean, log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE))

    @classmethod
    def standard(cls, like: Float[Tensor, "B Z"]) -> "Gaussian":
        """N(0, I)."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def sample(self, noise: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
        """Reparametrized: μ + σ ε."""
        return self.mean + (0.5 * self.log_variance).exp() * noise


def divergence(q: Gaussian, p: Gaussian) -> Float[Tensor, "B Z"]:
    """KL(q ‖ p) of each dimension in nats: ½ [log(σp²/σq²) + (σq² + (μq − μp)²)/σp² − 1]."""
    ratio = (q.log_variance - p.log_variance).exp()
    distance = (q.mean - p.mean).square() * (-p.log_variance).exp()
    return 0.5 * (p.log_variance - q.log_variance + ratio + distance - 1)


class ChunkEncoder(nn.Module):
    """q(z | chunk, robot): [CLS, robot, K actions] with fixed positions through pre-norm blocks. Training only."""

    position: Tensor

    def __init__(
        self, width: int, heads: int, hidden: int, depth: int, latent: int, robot: int, action: int, chunk: int,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cls = embedding(1, width)
        self.robot, self.action = nn.Linear(robot, width), nn.Linear(action, width)
        self.register_buffer("position", sinusoids(chunk + 2, width), persistent=False)
        self.blocks = Backbone(width, heads, hidden, depth, dropout)
        self.out = nn.Linear(width, 2 * latent)

    def forward(
        self, robot: Float[Tensor, "B R"], chunk: Float[Tensor, "B K A"], is_pad: Bool[Tensor, "B K"]
    ) -> Gaussian:
        """chunk: pose standardized, gripper ±1. Padded steps are seen by no token."""
        rows = len(robot)
        tokens = torch.cat([self.cls.expand(rows, 1, -1), self.robot(robot)[:, None], self.action(chunk)], dim=1)
        ignore = torch.cat([is_pad.new_zeros(rows, 2), is_pad], dim=1)
        return Gaussian.of(self.out(self.blocks(tokens + self.position, ignore)[:, 0]))


class ActNet(nn.Module):
    """robot, language: widths. pose: continuous action dimensions. prior: ``standard`` or ``learned``."""

    position: Tensor

    def __init__(
        self, *, size: int, width: int, heads: int, hidden: int, chunk_blocks: int, blocks: int, decoder_blocks: int,
        latent: int, stages: tuple[int, ...], cameras: int, robot: int, language: int, chunk: int, pose: int,
        prior: str = "standard", dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.latent_size = latent
        self.stem = ConvStem(size, stages, width)
        self.register_buffer("position", grid_sinusoids(self.stem.side, width), persistent=False)
        self.camera = embedding(cameras, width)
        self.robot, self.language, self.latent = (
            nn.Linear(robot, width),
            nn.Linear(language, width),
            nn.Linear(latent, width),
        )
        self.kinds = embedding(3, width)
        self.encoder = Backbone(width, heads, hidden, blocks, dropout)
        self.queries = Queries(chunk, width)
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, hidden, dropout) for _ in range(decoder_blocks))
        self.norm = nn.LayerNorm(width)
        self.pose, self.gripper = nn.Linear(width, pose), nn.Linear(width, 1)
        self.chunk_encoder = ChunkEncoder(width, heads, hidden, chunk_blocks, latent, robot, pose + 1, chunk, dropout)
        self.learned = prior == "learned"
        if self.learned:
            self.prior_layers = nn.Sequential(
                nn.Linear(robot + language, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                nn.Linear(width, 2 * latent),
            )  # fmt: skip

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I L"]:
        """The instruction's vector itself: memory token and learned prior both read it."""
        return language

    def prior(self, robot: Float[Tensor, "B R"], condition: Float[Tensor, "B L"]) -> Gaussian:
        """What the latent is before any action is seen."""
        if self.learned:
            return Gaussian.of(self.prior_layers(torch.cat([robot, condition], dim=-1)))
        return Gaussian.standard(robot.new_zeros(len(robot), self.latent_size))

    def forward(
        self, images: UInt8[Tensor, "B C H W 3"], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B L"],
        latent: Float[Tensor, "B Z"],
    ) -> ChunkOutput:  # fmt: skip
        """robot: standardized. latent: q's sample in training, the prior's mean when acting."""
        small = torch.stack([self.latent(latent), self.robot(robot), self.language(condition)], dim=1) + self.kinds
        seen = [
            self.stem(images[:, number]).float() + self.position + self.camera[number]
            for number in range(images.shape[1])
        ]
        memory = self.encoder(torch.cat([small, *seen], dim=1))
        steps = self.queries(len(robot)).to(dtype_of(self.decoder))
        for layer in self.decoder:
            steps = layer(steps, memory.to(steps.dtype))
        out = self.norm(steps.float())
        return ChunkOutput(self.pose(out).float(), self.gripper(out).squeeze(-1).float())
