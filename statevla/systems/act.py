"""ACT: a chunk from learned queries, trained with a CVAE whose latent explains the demonstrator's style (2304.13705).

In training an encoder reads the demonstrated chunk and gives q(z | chunk, robot state); acting takes the prior's mean.
The output is the decoder's last layer's (the original reads its first, so that the others never learn).

Legend: B batch, C cameras, N tokens, K chunk, D width, Z latent, P pose dimensions, R robot state, I instructions.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from statevla.config import Config
from statevla.config.options import option
from statevla.config.schema import require_heads
from statevla.data.batch import Batch, ObservationBatch
from statevla.encoders.vision import CONV, VISION
from statevla.models.attention import Backbone, DecoderLayer, Queries, grid_sinusoids, sinusoids
from statevla.models.heads import ChunkOutput
from statevla.models.losses import LossParts
from statevla.models.pixels import dtype_of
from statevla.models.stems import ConvStem, stages_of
from statevla.models.tokenizer import TowerVision, embedding
from statevla.systems.acting import Acted, Scene
from statevla.systems.chunk_policy import OWN_EYES, ChunkOptions, ChunkPolicy, parameters_of, scale_language, seen_by
from statevla.systems.system import Given, Noise, Terms
from stores.errors import UsageError
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


class ActNet(nn.Module):
    """The spec's cameras and widths; chunk: steps. prior: ``standard`` or ``learned``. tower: in the stem's place."""

    position: Tensor

    def __init__(
        self, *, size: int, width: int, heads: int, hidden: int, chunk_blocks: int, blocks: int, decoder_blocks: int,
        latent: int, stages: tuple[int, ...], chunk: int, spec: ObsSpec, prior: str = "standard", dropout: float = 0.0,
        tower: TowerVision | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        robot, language = spec.robot_state_dim, spec.language_width
        self.latent_size = latent
        self.stem = ConvStem(size, stages, width, section="act") if tower is None else tower
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
        self.pose, self.gripper = nn.Linear(width, len(spec.continuous)), nn.Linear(width, len(spec.binary))
        self.chunk_encoder = ChunkEncoder(
            width, heads, hidden, chunk_blocks, latent, robot, spec.action_dim, chunk, dropout
        )
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
        self, images: tuple[UInt8[Tensor, "B _ _ 3"], ...], robot: Float[Tensor, "B R"],
        condition: Float[Tensor, "B L"], latent: Float[Tensor, "B Z"],
    ) -> ChunkOutput:  # fmt: skip
        """robot: standardized. latent: q's sample in training, the prior's mean when acting."""
        return self.told(self.read(self.see(images), robot, condition, latent))

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

    def read(
        self, seen: tuple[Float[Tensor, "B P D"], ...], robot: Float[Tensor, "B R"],
        condition: Float[Tensor, "B L"], latent: Float[Tensor, "B Z"],
    ) -> Float[Tensor, "B K D"]:  # fmt: skip
        """What each step is read from by one linear layer. seen: `see`."""
        small = torch.stack([self.latent(latent), self.robot(robot), self.language(condition)], dim=1) + self.kinds
        placed = [tokens.float() + self.position + self.camera[number] for number, tokens in enumerate(seen)]
        memory = self.encoder(torch.cat([small, *placed], dim=1))
        steps = self.queries(len(robot)).to(dtype_of(self.decoder))
        for layer in self.decoder:
            steps = layer(steps, memory.to(steps.dtype))
        out: Tensor = self.norm(steps.float())
        return out

    def told(self, read: Float[Tensor, "B K D"]) -> ChunkOutput:
        """The chunk."""
        return ChunkOutput(self.pose(read).float(), self.gripper(read).float())


@dataclass(frozen=True)
class ActOptions(ChunkOptions):
    """``act.*``."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {
            "image_size": 64, "width": 64, "heads": 4, "hidden": 256, "chunk_blocks": 1, "blocks": 1,
            "decoder_blocks": 1, "latent": 8, "stages": "16-32-64", "kl_weight": 1.0, "learning_rate": 1e-3,
        },
    }  # fmt: skip

    ACTING: ClassVar[tuple[str, ...]] = ("sample",)

    learning_rate: float = option(1e-4, "of this system; not given: training.learning_rate if that is", above=0)
    vision: str = option(
        CONV, "what sees: a stem of its own, or the frozen tower that model.vision names too", choices=(CONV, *VISION)
    )
    image_size: int = option(128, "pictures are resized to this many pixels a side", least=8, beside=OWN_EYES)
    width: int = option(256, "of the tokens", least=8)
    heads: int = option(8, "of every attention", least=1)
    hidden: int = option(1024, "of every block's MLP", least=1)
    chunk_blocks: int = option(2, "of the encoder that reads the chunk, in training", least=1)
    blocks: int = option(4, "of the memory's encoder", least=1)
    decoder_blocks: int = option(2, "of the decoder, whose last one is read", least=1)
    latent: int = option(32, "size of the latent", least=1)
    stages: str = option(
        "32-64-128-256", "channels of the stem's stages, each half as large as the one before", beside=OWN_EYES
    )
    prior: str = option(
        "standard", "of the latent: normal, or told by state and instruction", choices=("standard", "learned")
    )
    kl_weight: float = option(10.0, "weight of the divergence from the prior, summed over the latent", least=0)
    sample: bool = option(False, "act with a sample of the prior instead of its mean")
    dropout: float = option(0.0, "of every block", least=0, most=1)

    def check(self, section: str) -> None:
        """Positions on a grid are sines and cosines of rows and of columns."""
        if self.width % 4:
            raise UsageError(f"{section}.width: {self.width} is not a multiple of 4; set one that is")
        require_heads(section, self.heads, width=self.width)


class ActPolicy(ChunkPolicy):
    """The net with its loss and its decision. Acting sees no actions, so that the latent has no other way in."""

    options: ActOptions

    def __init__(self, config: Config, options: ActOptions, given: Given) -> None:
        super().__init__(config, options, given)
        self.net = ActNet(
            size=options.image_size, width=options.width, heads=options.heads, hidden=options.hidden,
            chunk_blocks=options.chunk_blocks, blocks=options.blocks, decoder_blocks=options.decoder_blocks,
            latent=options.latent, stages=stages_of("act.stages", options.stages),
            chunk=config.model.action_seq_len, spec=given.spec, prior=options.prior, dropout=options.dropout,
            tower=seen_by("act.vision", options.vision, options.width, config, given),
        )  # fmt: skip
        self.add_world(config, options.width)

    @property
    def sees_by_tower(self) -> bool:
        return isinstance(self.net.stem, TowerVision)

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """Of the latent, where it is sampled."""
        return (self.options.latent,) if self.options.sample else None

    def draw(self, rows: int, generator: torch.Generator) -> Noise:
        """``latent`` [B Z], standard normal."""
        return {"latent": torch.randn(rows, self.options.latent, generator=generator)}

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I L"]:
        return scale_language(language)

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        """``pose``, ``logits``, ``divergence`` [B Z], `ChunkPolicy.foretell`; in validation ``pose_of_prior`` too."""
        obs = batch.obs
        robot, condition = self.standardize_robot_state(obs.robot_state), self.condition(obs.language)
        wanted = self.wanted(batch)
        q, p = self.net.chunk_encoder(robot, self.shown(batch), batch.is_pad), self.net.prior(robot, condition)
        seen = self.net.see_of(obs)
        read = self.net.read(seen, robot, condition, q.sample(noise["latent"]))
        pose, logits = self.net.told(read)
        found = {"pose": pose, "logits": logits, "divergence": divergence(q, p), **wanted, **self.foretell(read, batch)}
        if not self.training:
            found["pose_of_prior"] = self.net.told(self.net.read(seen, robot, condition, p.mean)).pose
        return found

    def loss(self, terms: Terms) -> LossParts:
        """`ChunkPolicy.loss` + β KL, the KL summed over the latent and averaged over rows. Part: ``kl`` in nats."""
        chunk, kl = super().loss(terms), terms["divergence"].sum(dim=-1).mean()
        total = chunk.total + self.options.kl_weight * kl
        return LossParts(total, {**chunk.parts, "kl": kl.detach()}, chunk.weight)

    def monitors(self, terms: Terms) -> dict[str, float]:
        """``z_used``: share of the latent that carries more than 0.01 nats. ``z_gain``: how much worse the pose gets
        with the prior's mean instead of what the chunk told, in the units of the loss; near 0 the latent is unused.
        """
        of_prior = self.pose_loss({**terms, "pose": terms["pose_of_prior"]})
        used = (terms["divergence"].mean(dim=0) > 0.01).float().mean()
        return {**super().monitors(terms), "z_used": used.item(), "z_gain": (of_prior - self.pose_loss(terms)).item()}

    def decide(self, scene: Scene) -> Acted:
        robot = self.standardize_robot_state(scene.robot_state)
        prior = self.net.prior(robot, scene.condition)
        latent = prior.mean if scene.noise is None else prior.sample(scene.noise)
        return self.acted(*self.net(scene.images, robot, scene.condition, latent))

    def matrices(self) -> Iterator[Tensor]:
        return parameters_of(self.net.stem, self.net.encoder, self.net.decoder)


def build(config: Config, given: Given) -> ActPolicy:
    """Fresh weights."""
    return ActPolicy(config, config.section("act"), given)
