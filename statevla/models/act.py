"""ACT's networks: a chunk from learned queries, and a CVAE whose latent explains the demonstrator's style.

In training an encoder reads the demonstrated chunk and gives q(z | chunk, observation); acting takes the prior's mean.
The output is the decoder's last layer's (the original reads its first, so that the others never learn).

Legend: B batch, C cameras, N tokens, K chunk, D width, Z latent, P places in a picture, R robot state, L numbers of an
instruction, A of an action, M tokens of a memory, V numbers of an observation that is one vector.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from statevla.data.batch import ObservationBatch
from statevla.models.attention import Backbone, DecoderLayer, Queries, grid_sinusoids, sinusoids
from statevla.models.gripper import logit_layer
from statevla.models.heads import ChunkOutput
from statevla.models.pixels import dtype_of
from statevla.models.stems import ConvStem, ResNetStem
from statevla.models.tokenizer import TowerVision, embedding
from stores.spec import ObsSpec

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
        """chunk: continuous dimensions standardized, binary ones ±1. Padded steps are seen by no token."""
        rows = len(robot)
        tokens = torch.cat([self.cls.expand(rows, 1, -1), self.robot(robot)[:, None], self.action(chunk)], dim=1)
        ignore = torch.cat([is_pad.new_zeros(rows, 2), is_pad], dim=1)
        return Gaussian.of(self.out(self.blocks(tokens + self.position, ignore)[:, 0]))


class Seen(NamedTuple):
    """An observation in pictures. places: what each camera shows, place by place. robot: standardized."""

    places: tuple[Float[Tensor, "B P D"], ...]
    robot: Float[Tensor, "B R"]
    condition: Float[Tensor, "B L"]


class Queried(nn.Module):
    """What both nets share: queries that look at a memory, and the layers that tell the chunk from the last of them.

    known: an observation, as the net takes it.
    """

    queries: Queries
    decoder: nn.ModuleList
    norm: nn.Module
    pose: nn.Linear
    gripper: nn.Linear
    latent_size: int

    def posterior(self, known: Any, chunk: Float[Tensor, "B K A"], is_pad: Bool[Tensor, "B K"]) -> Gaussian:
        """What the chunk says of the latent. chunk: as `ChunkEncoder` takes it."""
        raise NotImplementedError

    def prior(self, known: Any) -> Gaussian:
        """What the latent is before any action is seen."""
        raise NotImplementedError

    def read(self, known: Any, latent: Float[Tensor, "B Z"]) -> Float[Tensor, "B K D"]:
        """What each step is read from by one linear layer. latent: q's sample, or in acting the prior's mean."""
        raise NotImplementedError

    def standard(self, like: Float[Tensor, "B _"]) -> Gaussian:
        """The prior that nobody tells, of as many rows."""
        return Gaussian.standard(like.new_zeros(len(like), self.latent_size))

    def looked_up(
        self, memory: Float[Tensor, "B M D"], told: Float[Tensor, "B D"] | None = None
    ) -> Float[Tensor, "B K D"]:
        """What each step is read from by one linear layer. told: what every query is told, beside its number."""
        asked = self.queries(len(memory))
        steps = (asked if told is None else asked + told.unsqueeze(1)).to(dtype_of(self.decoder))
        for layer in self.decoder:
            steps = layer(steps, memory.to(steps.dtype))
        out: Tensor = self.norm(steps.float())
        return out

    def told(self, read: Float[Tensor, "B K D"]) -> ChunkOutput:
        """The chunk."""
        return ChunkOutput(self.pose(read).float(), self.gripper(read).float())


def prior_layers(inputs: int, width: int, latent: int) -> nn.Sequential:
    """What a learned prior is told by."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2 * latent)
    )


class ActNet(Queried):
    """Of pictures. The spec's cameras and widths; chunk: steps. prior: ``standard`` or ``learned``. eyes: in the
    place of a stem of `stages`. ask: the instruction is added to the decoder's queries, beside its token in the memory.
    """

    position: Tensor

    def __init__(
        self, *, size: int, width: int, heads: int, hidden: int, chunk_blocks: int, blocks: int, decoder_blocks: int,
        latent: int, stages: tuple[int, ...], chunk: int, spec: ObsSpec, prior: str = "standard", dropout: float = 0.0,
        eyes: TowerVision | ResNetStem | None = None, ask: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        robot, language = spec.robot_state_dim, spec.language_width
        self.latent_size, self.ask = latent, ask
        self.stem = ConvStem(size, stages, width, section="act") if eyes is None else eyes
        side = math.isqrt(self.stem.expected[0]) if isinstance(self.stem, TowerVision) else self.stem.side
        self.register_buffer("position", grid_sinusoids(side, width), persistent=False)
        self.camera = embedding(len(spec.cameras), width)
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
        self.pose, self.gripper = nn.Linear(width, len(spec.continuous)), logit_layer(width, len(spec.binary))
        self.chunk_encoder = ChunkEncoder(
            width, heads, hidden, chunk_blocks, latent, robot, spec.action_dim, chunk, dropout
        )
        self.learned = prior == "learned"
        if self.learned:
            self.prior_layers = prior_layers(robot + language, width, latent)

    def posterior(self, known: Seen, chunk: Float[Tensor, "B K A"], is_pad: Bool[Tensor, "B K"]) -> Gaussian:
        """Of the observation the robot state alone is read."""
        found: Gaussian = self.chunk_encoder(known.robot, chunk, is_pad)
        return found

    def prior(self, known: Seen) -> Gaussian:
        """Of pictures nothing is read."""
        if self.learned:
            return Gaussian.of(self.prior_layers(torch.cat([known.robot, known.condition], dim=-1)))
        return self.standard(known.robot)

    def forward(
        self, images: tuple[UInt8[Tensor, "B _ _ 3"], ...], robot: Float[Tensor, "B R"],
        condition: Float[Tensor, "B L"], latent: Float[Tensor, "B Z"],
    ) -> ChunkOutput:  # fmt: skip
        """robot: standardized."""
        return self.told(self.read(Seen(self.see(images), robot, condition), latent))

    def see(self, images: tuple[UInt8[Tensor, "B _ _ 3"], ...]) -> tuple[Float[Tensor, "B P D"], ...]:
        """What each camera's picture shows, place by place."""
        if isinstance(self.stem, TowerVision):
            return tuple(self.stem(images).unbind(dim=1))
        return tuple(self.stem(frames) for frames in images)

    def see_of(self, obs: ObservationBatch) -> tuple[Float[Tensor, "B P D"], ...]:
        """`see` of an observation."""
        if isinstance(self.stem, TowerVision):
            return tuple(self.stem.tokens_of(obs).unbind(dim=1))
        return self.see(obs.images)

    def read(self, known: Seen, latent: Float[Tensor, "B Z"]) -> Float[Tensor, "B K D"]:
        instruction = self.language(known.condition)
        small = torch.stack([self.latent(latent), self.robot(known.robot), instruction], dim=1) + self.kinds
        placed = [tokens.float() + self.position + self.camera[number] for number, tokens in enumerate(known.places)]
        return self.looked_up(self.encoder(torch.cat([small, *placed], dim=1)), instruction if self.ask else None)


class VectorChunkEncoder(nn.Module):
    """q(z | chunk, observation): [observation, K actions] with fixed positions through post-norm blocks, read at the
    observation's place. Training only.
    """

    position: Tensor

    def __init__(
        self, numbers: int, width: int, heads: int, hidden: int, depth: int, latent: int, action: int, chunk: int,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.observation, self.action = nn.Linear(numbers, width), nn.Linear(action, width)
        self.register_buffer("position", sinusoids(chunk + 1, width), persistent=False)
        self.blocks = Backbone(width, heads, hidden, depth, dropout, norm_first=False)
        self.out = nn.Linear(width, 2 * latent)

    def forward(
        self, vector: Float[Tensor, "B V"], chunk: Float[Tensor, "B K A"], is_pad: Bool[Tensor, "B K"]
    ) -> Gaussian:
        """As `ChunkEncoder`."""
        tokens = torch.cat([self.observation(vector)[:, None], self.action(chunk)], dim=1)
        ignore = torch.cat([is_pad.new_zeros(len(vector), 1), is_pad], dim=1)
        return Gaussian.of(self.out(self.blocks(tokens + self.position, ignore)[:, 0]))


class VectorActNet(Queried):
    """The chapter's: the observation is one vector of `numbers`, and the memory two tokens, of the vector and of the
    latent; layers normalize last, as its own do. With 9 numbers, 7 of an action, a chunk of 10, width 512 and a learned
    prior 29,799,047 parameters.
    """

    def __init__(
        self, numbers: int, *, width: int, heads: int, hidden: int, chunk_blocks: int, decoder_blocks: int, latent: int,
        chunk: int, spec: ObsSpec, prior: str = "learned", dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.latent_size, self.learned = latent, prior == "learned"
        self.observation, self.latent = nn.Linear(numbers, width), nn.Linear(latent, width)
        self.queries = Queries(chunk, width)
        self.decoder = nn.ModuleList(
            DecoderLayer(width, heads, hidden, dropout, norm_first=False) for _ in range(decoder_blocks)
        )
        self.norm = nn.Identity()
        self.pose, self.gripper = nn.Linear(width, len(spec.continuous)), logit_layer(width, len(spec.binary))
        self.chunk_encoder = VectorChunkEncoder(
            numbers, width, heads, hidden, chunk_blocks, latent, spec.action_dim, chunk, dropout
        )
        if self.learned:
            self.prior_layers = prior_layers(numbers, width, latent)

    def posterior(
        self, known: Float[Tensor, "B V"], chunk: Float[Tensor, "B K A"], is_pad: Bool[Tensor, "B K"]
    ) -> Gaussian:
        found: Gaussian = self.chunk_encoder(known, chunk, is_pad)
        return found

    def prior(self, known: Float[Tensor, "B V"]) -> Gaussian:
        return Gaussian.of(self.prior_layers(known)) if self.learned else self.standard(known)

    def read(self, known: Float[Tensor, "B V"], latent: Float[Tensor, "B Z"]) -> Float[Tensor, "B K D"]:
        return self.looked_up(torch.stack([self.latent(latent), self.observation(known)], dim=1))
