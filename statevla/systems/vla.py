"""A vision-language-action transformer with its own readout (the chapter's, contradictions resolved).

Patches of every camera, the instruction and the robot's state become tokens; after fusion a backbone lets a readout
token (head ``chunked``: one query a step) look at all of them, so that the action can depend on the instruction.

Legend: B batch, C cameras, P patches, D width, N tokens, K chunk, A pose dimensions, I instructions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from statevla.config import Config
from statevla.config.options import option
from statevla.config.schema import require_heads
from statevla.data.batch import Batch, ObservationBatch
from statevla.encoders.vision import CONV, VISION
from statevla.models.attention import Backbone, CrossLayer, Queries
from statevla.models.gripper import logit_layer
from statevla.models.heads import Bins, ChunkOutput, split_output
from statevla.models.pixels import dtype_of, prepare_pixels
from statevla.models.stems import PATCH_STEMS
from statevla.models.tokenizer import TowerVision, embedding
from statevla.systems.acting import Acted, Scene
from statevla.systems.chunk_policy import OWN_EYES, ChunkOptions, ChunkPolicy, parameters_of, scale_language, seen_by
from statevla.systems.system import Given, Noise, Terms
from stores.errors import UsageError
from stores.spec import ObsSpec

FUSIONS = ("concat", "cross_attention", "perceiver")
HEADS = ("continuous", "discrete", "chunked")
TOKEN, READOUT = "token", "readout"
CROSS_LAYERS = 2
BINNED = ("head", ("discrete",))


class VisionTokens(nn.Module):
    """Patches of each camera through blocks whose weights the cameras share.

    tower: what makes features of patches, and tokens of these; None: each camera has a stem of its own.
    """

    def __init__(
        self, size: int, patch: int, width: int, heads: int, hidden: int, blocks: int, cameras: int, dropout: float,
        stem: str, tower: TowerVision | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.size, self.tower = size, tower
        own = 0 if tower is not None else cameras
        self.stems = nn.ModuleList(PATCH_STEMS[stem](size, patch, width, section="vla") for _ in range(own))
        places = (size // patch) ** 2 if tower is None else tower.expected[0]
        self.position = embedding(cameras, places, width)
        self.camera = embedding(cameras, width)
        self.blocks = Backbone(width, heads, hidden, blocks, dropout)

    def forward(self, images: tuple[UInt8[Tensor, "B _ _ 3"], ...]) -> Float[Tensor, "B N D"]:
        """All cameras' tokens, one camera after the other."""
        if self.tower is not None:
            return self._placed(self.tower(images).unbind(dim=1))
        seen = zip(self.stems, images, strict=True)
        return self._placed([stem(prepare_pixels(frames, self.size)) for stem, frames in seen])

    def of(self, obs: ObservationBatch) -> Float[Tensor, "B N D"]:
        """`forward` of an observation."""
        if self.tower is not None:
            return self._placed(self.tower.tokens_of(obs).unbind(dim=1))
        out: Tensor = self(obs.images)
        return out

    def _placed(self, cameras: Sequence[Float[Tensor, "B P D"]]) -> Float[Tensor, "B N D"]:
        tokens = [
            self.blocks(patches.float() + self.position[number] + self.camera[number])
            for number, patches in enumerate(cameras)
        ]
        return torch.cat(tokens, dim=1)


class VlaNet(nn.Module):
    """The spec's cameras and widths; chunk: steps. bins: of head ``discrete``. tower: sees in the place of stems.
    ask: the instruction is added to the readouts, beside its token.
    """

    def __init__(
        self, *, size: int, patch: int, width: int, heads: int, vision_blocks: int, blocks: int, chunk: int,
        spec: ObsSpec, fusion: str, head: str, queries: int = 16, bins: int = 256, dropout: float = 0.0,
        stem: str = "patch", tower: TowerVision | None = None, ask: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ask = ask
        hidden, pose, binary = 4 * width, len(spec.continuous), len(spec.binary)
        cameras, robot, language = len(spec.cameras), spec.robot_state_dim, spec.language_width
        self.chunk, self.pose, self.binary, self.bins, self.kind, self.fusion = chunk, pose, binary, bins, head, fusion
        self.vision = VisionTokens(size, patch, width, heads, hidden, vision_blocks, cameras, dropout, stem, tower)
        self.language, self.language_embedding = nn.Linear(language, width), embedding(1, width)
        self.robot = nn.Sequential(nn.Linear(robot, width), nn.GELU(), nn.Linear(width, width))
        self.robot_embedding, self.readout = embedding(1, width), embedding(1, width)
        self.cross = nn.ModuleList()
        if fusion == "cross_attention":
            self.cross.extend(CrossLayer(width, heads, hidden) for _ in range(CROSS_LAYERS))
        if fusion == "perceiver":
            self.cross.append(CrossLayer(width, heads, hidden))
            self.latents = Queries(queries, width)
        self.backbone = Backbone(width, heads, hidden, blocks, dropout)
        if head == "chunked":
            self.steps = Queries(chunk, width)
        outputs = {"continuous": chunk * (pose + binary), "discrete": chunk * pose * bins, "chunked": pose + binary}[
            head
        ]
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.out = nn.Linear(width, outputs)
        if head == "discrete":
            nn.init.zeros_(self.out.weight)  # all bins alike at the start: the first loss is ln N
            nn.init.zeros_(self.out.bias)
            self.gripper = logit_layer(width, chunk * binary)

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I D"]:
        """The token of each instruction."""
        out: Tensor = self.language(language) + self.language_embedding[0]
        return out

    def tokens(
        self, vision: Float[Tensor, "B N D"], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B M D"]:
        """What the backbone reads, readouts first."""
        rows = len(robot)
        text = torch.stack([condition, self.robot(robot) + self.robot_embedding[0]], dim=1)
        readout = self.steps(rows) if self.kind == "chunked" else self.readout.expand(rows, 1, -1)
        if self.kind == "chunked":
            readout = readout + self.readout  # the one readout token tells the steps from everything else
        if self.ask:
            readout = readout + condition.unsqueeze(1)
        if self.fusion == "cross_attention":
            query = torch.cat([readout, text], dim=1).to(dtype_of(self.cross))
            for layer in self.cross:
                query = layer(query, vision.to(query.dtype))
            return torch.cat([query, vision.to(query.dtype)], dim=1)
        everything = torch.cat([text, vision.to(text.dtype)], dim=1)
        if self.fusion == "perceiver":
            latents = self.latents(rows).to(dtype_of(self.cross))
            everything = self.cross[0](latents, everything.to(latents.dtype))
        return torch.cat([readout.to(everything.dtype), everything], dim=1)

    def read(
        self, vision: Float[Tensor, "B N D"], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B Q D"]:
        """The readouts after the backbone; Q is K with head ``chunked``, else 1. vision: `VisionTokens`. robot:
        standardized.
        """
        readouts = self.chunk if self.kind == "chunked" else 1
        out: Tensor = self.hidden(self.backbone(self.tokens(vision, robot, condition))[:, :readouts].float())
        return out

    def forward(
        self, images: tuple[UInt8[Tensor, "B _ _ 3"], ...], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B D"]
    ) -> ChunkOutput:
        """Pose and gripper logits of a head that regresses."""
        return self.told(self.read(self.vision(images), robot, condition))

    def told(self, read: Float[Tensor, "B Q D"]) -> ChunkOutput:
        """`forward` of the readouts."""
        return split_output(self.out(read).float().flatten(1), self.chunk, self.pose)

    def bin_logits(self, read: Float[Tensor, "B 1 D"]) -> tuple[Float[Tensor, "B K A N"], Float[Tensor, "B K G"]]:
        """Head ``discrete``: logits of the bins, and of the gripper."""
        read = read[:, 0]
        logits = self.gripper(read).float().view(len(read), self.chunk, self.binary)
        return self.out(read).float().view(len(read), self.chunk, self.pose, self.bins), logits


@dataclass(frozen=True)
class VlaOptions(ChunkOptions):
    """``vla.*``."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {
            "image_size": 64, "patch_size": 8, "width": 64, "heads": 4, "vision_blocks": 1, "blocks": 2,
            "learning_rate": 1e-3,
        },
        "base": {
            "image_size": 224, "patch_size": 14, "width": 768, "heads": 12, "vision_blocks": 12, "blocks": 6,
            "queries": 32, "dropout": 0.1, "learning_rate": 1e-4,
        },
    }  # fmt: skip

    ACTING: ClassVar[tuple[str, ...]] = ("expectation",)

    learning_rate: float = option(3e-4, "of this system; not given: training.learning_rate if that is", above=0)
    vision: str = option(
        CONV, "what sees: stems of its own, or the frozen tower that model.vision names too", choices=(CONV, *VISION)
    )
    image_size: int = option(128, "pictures are resized to this many pixels a side", least=8, beside=OWN_EYES)
    patch_size: int = option(16, "pixels a side of a patch", least=1, beside=OWN_EYES)
    stem: str = option(
        "patch", "what makes a patch a token: one convolution, or some that halve", choices=tuple(PATCH_STEMS)
    )
    width: int = option(192, "of the tokens", least=8)
    heads: int = option(6, "of every attention", least=1)
    vision_blocks: int = option(4, "blocks over each camera's patches", least=0)
    blocks: int = option(4, "blocks over all tokens", least=1)
    fusion: str = option("concat", "how vision meets instruction and robot", choices=FUSIONS)
    instruction: str = option(
        TOKEN, "where it stands: a token beside the others, or in every readout too", choices=(TOKEN, READOUT)
    )
    head: str = option("chunked", "what the actions are read from", choices=HEADS)
    queries: int = option(16, "learned queries of the perceiver", least=1, beside=("fusion", ("perceiver",)))
    bins: int = option(256, "of each pose dimension, head discrete", least=2, beside=BINNED)
    expectation: bool = option(
        False, "head discrete: act with the bins' mean instead of the most likely one", beside=BINNED
    )
    dropout: float = option(0.0, "of every block", least=0, most=1)

    def check(self, section: str) -> None:
        super().check(section)
        require_heads(section, self.heads, width=self.width)
        if self.stem != "patch" and self.vision != CONV:
            raise UsageError(
                f"{section}.stem: {self.stem} is for {section}.vision={CONV}, not for a frozen tower; set "
                f"{section}.stem=patch"
            )


class VlaPolicy(ChunkPolicy):
    """The net with its loss and its decision."""

    options: VlaOptions

    def __init__(self, config: Config, options: VlaOptions, given: Given) -> None:
        super().__init__(config, options, given)
        self.net = VlaNet(
            size=options.image_size, patch=options.patch_size, width=options.width, heads=options.heads,
            vision_blocks=options.vision_blocks, blocks=options.blocks, chunk=config.model.action_seq_len,
            spec=given.spec, fusion=options.fusion, head=options.head, queries=options.queries, bins=options.bins,
            dropout=options.dropout, stem=options.stem,
            tower=seen_by("vla.vision", options.vision, options.width, config, given),
            ask=options.instruction == READOUT,
        )  # fmt: skip
        self.bins = self._make_bins(given) if options.head == "discrete" else None
        self.add_world(config, options.width)

    @property
    def sees_by_tower(self) -> bool:
        return self.net.vision.tower is not None

    def _make_bins(self, given: Given) -> Bins:
        """Between the train split's 1% and 99% quantiles, standardized; without statistics, still to be loaded."""
        names = tuple(given.spec.action_names[dim] for dim in given.spec.continuous)
        if given.statistics is None:
            # Counting builds on the meta device, whose numbers nobody can read.
            ends = torch.ones(len(names), device="cpu")
            return Bins(-ends, ends, names, self.options.bins)
        action = given.statistics.action
        low, high = self.standardize_action(torch.tensor([action.q01, action.q99])).index_select(-1, self.continuous)
        return Bins(low, high, names, self.options.bins)

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I D"]:
        return self.net.condition(scale_language(language))

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        """``pose`` [B K P] (head discrete: ``bins`` [B K P N]) and ``logits`` [B K] beside `ChunkPolicy.wanted` and
        `ChunkPolicy.foretell`.
        """
        obs = batch.obs
        robot, condition = self.standardize_robot_state(obs.robot_state), self.condition(obs.language)
        read = self.net.read(self.net.vision.of(obs), robot, condition)
        beside = {**self.wanted(batch), **self.foretell(read, batch)}
        if self.bins is None:
            pose, logits = self.net.told(read)
            return {"pose": pose, "logits": logits, **beside}
        bins, logits = self.net.bin_logits(read)
        return {"bins": bins, "logits": logits, **beside}

    def pose_loss(self, terms: Terms) -> Float[Tensor, ""]:
        """Head discrete: cross entropy of the bins; others: `ChunkPolicy.pose_loss`."""
        if self.bins is None:
            return super().pose_loss(terms)
        return self.bins.loss(terms["bins"], terms["wanted"], terms["keep"])

    def decide(self, scene: Scene) -> Acted:
        robot = self.standardize_robot_state(scene.robot_state)
        read = self.net.read(self.net.vision(scene.images), robot, scene.condition)
        if self.bins is None:
            return self.acted(*self.net.told(read))
        bins, logits = self.net.bin_logits(read)
        if self.options.expectation:
            values = self.bins.value(torch.arange(self.options.bins, device=bins.device).unsqueeze(-1))  # [N P]
            return self.acted((bins.softmax(dim=-1) * values.T).sum(dim=-1), logits)
        return self.acted(self.bins.value(bins.argmax(dim=-1)), logits)

    def matrices(self) -> Iterator[Tensor]:
        vision = self.net.vision
        seeing = vision.stems if vision.tower is None else vision.tower.cameras
        return parameters_of(seeing, vision.blocks, self.net.cross, self.net.backbone)


def build(config: Config, given: Given) -> VlaPolicy:
    """Fresh weights. Raises UsageError where head discrete has a pose dimension that never moves."""
    return VlaPolicy(config, config.section("vla"), given)
