"""ACT: a chunk from learned queries, trained with a CVAE (2304.13705; its networks: `statevla.models.act`).

Legend: B batch, K chunk, Z latent, I instructions, L numbers of an instruction, V numbers of an observation that is one
vector.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from statevla.config import Config
from statevla.config.options import option
from statevla.config.schema import require_heads
from statevla.data.batch import Batch, ObservationBatch
from statevla.encoders.resnet import CHANNELS, load_resnet18, make_resnet18
from statevla.encoders.vision import CONV, VISION
from statevla.models.act import ActNet, Seen, VectorActNet, divergence
from statevla.models.losses import LossParts
from statevla.models.stems import ResNetStem, stages_of
from statevla.models.tokenizer import FrozenFeatures, TowerVision
from statevla.systems.acting import Acted, Scene
from statevla.systems.chunk_policy import (
    OWN_EYES,
    ChunkOptions,
    ChunkPolicy,
    features_of,
    parameters_of,
    scale_language,
    seen_by,
)
from statevla.systems.stamo_options import PARENT
from statevla.systems.system import Given, Noise, Terms
from stores.errors import UsageError
from stores.spec import ObsSpec

RESNET: Final = "resnet18"
IMAGES, VECTOR = "images", "vector"
MEMORY, QUERIES = "memory", "queries"
TRAINED_EYES: Final = ("vision", (CONV, RESNET))
IN_PLACES: Final = ("observation", (IMAGES,))
"""What some options are seen beside."""


@dataclass(frozen=True)
class ActOptions(ChunkOptions):
    """``act.*``."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {
            "image_size": 64, "width": 64, "heads": 4, "hidden": 256, "chunk_blocks": 1, "blocks": 1,
            "decoder_blocks": 1, "latent": 8, "stages": "16-32-64", "kl_weight": 1.0, "learning_rate": 1e-3,
        },
        "base": {
            "width": 512, "hidden": 2048, "chunk_blocks": 4, "blocks": 4, "decoder_blocks": 4, "prior": "learned",
            "dropout": 0.1,
        },
        "original": {
            "vision": RESNET, "image_size": 224, "width": 512, "hidden": 3200, "chunk_blocks": 4, "blocks": 4,
            "decoder_blocks": 7, "dropout": 0.1, "learning_rate": 1e-5,
        },
    }  # fmt: skip

    ACTING: ClassVar[tuple[str, ...]] = ("sample",)

    learning_rate: float = option(1e-4, "of this system; not given: training.learning_rate if that is", above=0)
    observation: str = option(
        IMAGES, "the pictures place by place, or, as in the chapter, one vector of what is seen, robot state and "
        "instruction", choices=(IMAGES, VECTOR),
    )  # fmt: skip
    vision: str = option(
        CONV, "what sees: a stem of its own, ResNet-18's trunk, the frozen tower that model.vision names too (of a "
        "vector its mean over each camera), or, for a vector, a frozen encoder's state (parent)",
        choices=(CONV, RESNET, *VISION, PARENT),
    )  # fmt: skip
    resnet_model: str | None = option(
        None, "hub name or folder of the weights that the trunk begins with; nothing: fresh ones",
        beside=("vision", (RESNET,)),
    )  # fmt: skip
    image_size: int = option(128, "pictures are resized to this many pixels a side", least=8, beside=TRAINED_EYES)
    width: int = option(256, "of the tokens", least=8)
    heads: int = option(8, "of every attention", least=1)
    hidden: int = option(1024, "of every block's MLP", least=1)
    chunk_blocks: int = option(2, "of the encoder that reads the chunk, in training", least=1)
    blocks: int = option(4, "of the memory's encoder", least=1, beside=IN_PLACES)
    decoder_blocks: int = option(2, "of the decoder, whose last one is read", least=1)
    instruction: str = option(
        MEMORY, "where it stands: a token of the memory, or in every query of the decoder too",
        choices=(MEMORY, QUERIES), beside=IN_PLACES,
    )  # fmt: skip
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

    PARENT_FOR: ClassVar[str] = f"vision={PARENT} or act.{ChunkOptions.PARENT_FOR}"

    def check(self, section: str) -> None:
        """Positions on a grid are sines and cosines of rows and of columns."""
        super().check(section)
        if self.width % 4:
            raise UsageError(f"{section}.width: {self.width} is not a multiple of 4; set one that is")
        require_heads(section, self.heads, width=self.width)
        wanted = (PARENT, *VISION) if self.observation == VECTOR else (CONV, RESNET, *VISION)
        if self.vision not in wanted:
            raise UsageError(
                f"{section}.vision: {self.vision} gives no {section}.observation={self.observation}; expected one of "
                f"{', '.join(wanted)}"
            )

    @property
    def sees_states(self) -> bool:
        """In the vector."""
        return self.vision == PARENT


class ActPolicy(ChunkPolicy):
    """The net with its loss and its decision. Acting sees no actions, so that the latent has no other way in.

    tower: of a vector, where a frozen one sees.
    """

    options: ActOptions
    net: ActNet | VectorActNet

    def __init__(self, config: Config, options: ActOptions, given: Given) -> None:
        super().__init__(config, options, given)
        sizes: dict[str, Any] = {
            "width": options.width, "heads": options.heads, "hidden": options.hidden,
            "chunk_blocks": options.chunk_blocks, "decoder_blocks": options.decoder_blocks, "latent": options.latent,
            "chunk": config.model.action_seq_len, "spec": given.spec, "prior": options.prior,
            "dropout": options.dropout,
        }  # fmt: skip
        self.tower = None
        if options.observation == VECTOR:
            if options.vision != PARENT:
                self.tower = features_of("act.vision", options.vision, config, given)
            self.net = VectorActNet(
                self.seen_numbers(given.spec) + given.spec.robot_state_dim + given.spec.language_width, **sizes
            )
        else:
            self.net = ActNet(
                size=options.image_size, stages=stages_of("act.stages", options.stages), blocks=options.blocks,
                eyes=eyes(options, config, given), ask=options.instruction == QUERIES, **sizes,
            )  # fmt: skip
        self.add_world(config, options.width)

    def seen_numbers(self, spec: ObsSpec) -> int:
        """Of the vector, beside robot state and instruction."""
        if self.tower is not None:
            return len(spec.cameras) * self.tower.expected[1]
        return 0 if self.encoder is None else math.prod(self.encoder.state_shape)

    @property
    def sees_by_tower(self) -> bool:
        eyes = self.encoder if self.options.vision == PARENT else self.tower or self.net
        return eyes is not None and any(isinstance(part, FrozenFeatures) for part in eyes.modules())

    @property
    def frozen_encoder(self) -> nn.Module | None:
        """Where its states are all that is seen."""
        return self.state_encoder if self.options.vision == PARENT else None

    def known(self, obs: ObservationBatch) -> Any:
        """An observation as the net takes it."""
        robot, condition = self.standardize_robot_state(obs.robot_state), scale_language(obs.language)
        if isinstance(self.net, ActNet):
            return Seen(self.net.see_of(obs), robot, condition)
        seen = self.state_of(obs) if self.tower is None else self.tower.of(obs).float().mean(dim=2).flatten(1)
        return torch.cat([seen, robot, condition], dim=-1)

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """Of the latent, where it is sampled."""
        return (self.options.latent,) if self.options.sample else None

    def draw(self, rows: int, generator: torch.Generator) -> Noise:
        """``latent`` [B Z], standard normal."""
        return {"latent": torch.randn(rows, self.options.latent, generator=generator)}

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I L"]:
        """Itself: a frozen encoder takes it as it is, all else its direction."""
        return language

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        """``pose``, ``logits``, ``divergence`` [B Z], `ChunkPolicy.foretell`; in validation ``pose_of_prior`` too.

        A row that is all padding (an unlabelled episode) has no chunk that could tell of a latent: it gets the prior's,
        as where the policy acts.
        """
        known = self.known(batch.obs)
        q, p = self.net.posterior(known, self.shown(batch), batch.is_pad), self.net.prior(known)
        hidden = batch.is_pad.all(dim=1, keepdim=True)
        read = self.net.read(known, torch.where(hidden, p.sample(noise["latent"]), q.sample(noise["latent"])))
        pose, logits = self.net.told(read)
        found = {"pose": pose, "logits": logits, "divergence": divergence(q, p)}
        found |= {**self.wanted(batch), **self.foretell(read, batch)}
        if not self.training:
            found["pose_of_prior"] = self.net.told(self.net.read(known, p.mean)).pose
        return found

    def loss(self, terms: Terms) -> LossParts:
        """`ChunkPolicy.loss` + β KL, the KL summed over the latent and averaged over the rows whose actions are seen.
        Part: ``kl`` in nats.
        """
        seen = terms["keep"].any(dim=1)
        kl = torch.where(seen, terms["divergence"].sum(dim=-1), 0.0).sum() / seen.sum().clamp(min=1)
        rows = seen.sum().float()
        return super().loss(terms).beside(LossParts(self.options.kl_weight * kl, {"kl": kl.detach()}, rows))

    def monitors(self, terms: Terms) -> dict[str, float]:
        """``z_used``: share of the latent that carries more than 0.01 nats. ``z_gain``: how much worse the pose gets
        with the prior's mean instead of what the chunk told, in the units of the loss; near 0 the latent is unused.
        """
        of_prior = self.pose_loss({**terms, "pose": terms["pose_of_prior"]})
        used = (terms["divergence"].mean(dim=0) > 0.01).float().mean()
        return {**super().monitors(terms), "z_used": used.item(), "z_gain": (of_prior - self.pose_loss(terms)).item()}

    def decide(self, scene: Scene) -> Acted:
        known = self.known(ObservationBatch(scene.images, scene.robot_state, scene.condition))
        prior = self.net.prior(known)
        latent = prior.mean if scene.noise is None else prior.sample(scene.noise)
        return self.acted(*self.net.told(self.net.read(known, latent)))

    def matrices(self) -> Iterator[Tensor]:
        if isinstance(self.net, VectorActNet):
            return parameters_of(self.net.decoder)
        return parameters_of(*convolved(self.net.stem), self.net.encoder, self.net.decoder)


def eyes(options: ActOptions, config: Config, given: Given) -> TowerVision | ResNetStem | None:
    """What sees pictures place by place, None for a stem of the policy's own. Released weights are read where a
    training begins or goes on: a whole policy brings its own.
    """
    if options.vision != RESNET:
        return seen_by("act.vision", options.vision, options.width, config, given)
    if options.resnet_model is None or given.statistics is None:
        trunk = make_resnet18(grouped=options.resnet_model is None)
    else:
        trunk = load_resnet18("act.resnet_model", options.resnet_model)
    return ResNetStem(trunk, options.image_size, CHANNELS, options.width, "act")


def convolved(stem: nn.Module) -> list[nn.Module]:
    """The parts of a stem that may compute in bfloat16: of a ResNet all but its batch norms. Group norms go along:
    CUDA's take no float32 weights beside bfloat16.
    """
    if not isinstance(stem, ResNetStem):
        return [stem]
    return [part for part in stem.modules() if isinstance(part, nn.Conv2d | nn.GroupNorm)]


def build(config: Config, given: Given) -> ActPolicy:
    """Fresh weights."""
    return ActPolicy(config, config.section("act"), given)
