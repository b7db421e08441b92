"""A policy that is told what to reach by language or by a picture, row by row.

Fusion ``early`` puts the goal's picture beside the current one, channel by channel, so that the first layer can compare
pixels (0, the middle of their range, where the row is told by language; the specification has black ones); ``late``
adds the goal's patches as tokens; ``state`` adds what a frozen state encoder makes of the goal's pictures, and beside
it what it makes of the current ones, so that the two can be compared. A learned embedding says which kind a row is.
Rows that are told by language do not see the goal's pixels at all, and rows that are told by a picture do not see the
instruction.

Legend: B batch, C cameras, D width, N tokens, P patches, V numbers of a feature, K chunk, S side of a resized picture,
I instructions, M tokens of a state, E numbers of one.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from statevla.config import Config
from statevla.config.options import option
from statevla.config.schema import require_heads
from statevla.data.batch import Batch, ObservationBatch
from statevla.encoders.vision import CONV, VISION
from statevla.models.attention import Backbone
from statevla.models.heads import ChunkOutput, split_output
from statevla.models.pixels import dtype_of, prepare_pixels
from statevla.models.stems import PATCH_STEMS
from statevla.models.tokenizer import FrozenFeatures, embedding
from statevla.systems.acting import Acted, Scene
from statevla.systems.chunk_policy import (
    OWN_EYES,
    ChunkOptions,
    ChunkPolicy,
    features_of,
    parameters_of,
    scale_language,
)
from statevla.systems.frozen import FrozenEncoder
from statevla.systems.system import Given, Noise, Terms
from stores.errors import UsageError
from stores.spec import ObsSpec

FUSIONS = ("early", "late", "state")
RELABEL = ("mixed", "final", "future", "near")
LANGUAGE, IMAGE = "language", "image"

Pictures = tuple[UInt8[Tensor, "B _ _ 3"], ...]
"""A camera each."""
Look = Pictures | Float[Tensor, "B C P V"]
"""Pictures, or a frozen tower's features of them."""


def camera_of(look: Look, number: int) -> Tensor:
    """What camera `number` shows."""
    return look[:, number] if isinstance(look, Tensor) else look[number]


class States(nn.Module):
    """A frozen encoder's states of pictures as tokens, those of the goal after the current ones."""

    def __init__(self, encoder: FrozenEncoder, width: int) -> None:
        super().__init__()
        self._outside = (encoder,)
        """The policy holds it."""
        tokens, numbers = encoder.state_shape
        self.enter, self.position, self.time = nn.Linear(numbers, width), embedding(tokens, width), embedding(2, width)

    def forward(
        self, images: Pictures, goal: Pictures, by_image: Bool[Tensor, " B"], kind: Float[Tensor, "2 D"]
    ) -> Float[Tensor, "B N D"]:
        """In rows that are told by language the goal's tokens are kind[0], whatever the goal; in others kind[1] is
        added to them.
        """
        now, there = (self._outside[0].state_of_pictures(seen) for seen in (images, goal))
        return torch.cat([self.tokens(now, 0), self.told(there, by_image, kind)], dim=1)

    def tokens(self, state: Float[Tensor, "B M E"], time: int) -> Float[Tensor, "B M D"]:
        """time: 0 for now, 1 for the goal."""
        out: Tensor = self.enter(state).float() + self.position + self.time[time]
        return out

    def told(
        self, state: Float[Tensor, "B M E"], by_image: Bool[Tensor, " B"], kind: Float[Tensor, "2 D"]
    ) -> Float[Tensor, "B M D"]:
        """The goal's tokens."""
        return torch.where(by_image[:, None, None], self.tokens(state, 1) + kind[1], kind[0])


class GoalNet(nn.Module):
    """The spec's cameras and widths; chunk: steps. encoder: of fusion ``state``; no part of the net. tower: sees in
    the place of stems, so that what is seen comes as features [B C P V] and not as pictures.
    """

    def __init__(
        self, *, size: int, patch: int, width: int, heads: int, blocks: int, chunk: int, spec: ObsSpec,
        fusion: str = "early", dropout: float = 0.0, stem: str = "patch", encoder: FrozenEncoder | None = None,
        tower: FrozenFeatures | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if (fusion == "state") != (encoder is not None):
            raise UsageError(f"goal.fusion={fusion}: expected a frozen state encoder with state, and with no other")
        cameras = len(spec.cameras)
        self.size, self.chunk, self.pose, self.fusion = size, chunk, len(spec.continuous), fusion
        self.tower, pictures = tower, 2 if fusion == "early" else 1
        if tower is None:
            self.stems = nn.ModuleList(
                PATCH_STEMS[stem](size, patch, width, 3 * pictures, "goal") for _ in range(cameras)
            )
        else:
            self.stems = nn.ModuleList(nn.Linear(pictures * tower.expected[1], width) for _ in range(cameras))
        self.position = embedding(cameras, (size // patch) ** 2 if tower is None else tower.expected[0], width)
        self.camera = embedding(cameras, width)
        self.states = None if encoder is None else States(encoder, width)
        self.kind = embedding(2, width)
        """Told by language, told by a picture."""
        self.language = nn.Linear(spec.language_width, width)
        self.robot = nn.Sequential(nn.Linear(spec.robot_state_dim, width), nn.GELU(), nn.Linear(width, width))
        self.robot_embedding, self.readout = embedding(1, width), embedding(1, width)
        self.backbone = Backbone(width, heads, 4 * width, blocks, dropout)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, chunk * spec.action_dim))

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I D"]:
        """The token of each instruction."""
        out: Tensor = self.language(language) + self.kind[0]
        return out

    def prepared(self, seen: Tensor) -> Float[Tensor, "B ..."]:
        """One camera's pictures as its stem takes them, [B 3 S S]; features are so already."""
        return prepare_pixels(seen, self.size) if self.tower is None else seen.float()

    def shown_goal(self, goal: Tensor, by_image: Bool[Tensor, " B"]) -> Float[Tensor, "B ..."]:
        """One camera's goal, `prepared`; zero in rows that are told by language."""
        there = self.prepared(goal)
        return torch.where(by_image.view(-1, *[1] * (there.ndim - 1)), there, 0.0)

    def stemmed(self, number: int, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B P D"]:
        """Tokens of camera `number`."""
        stem = self.stems[number]
        out: Tensor = stem(x if self.tower is None else x.to(dtype_of(stem)))
        return out.float()

    def forward(
        self, images: Look, robot: Float[Tensor, "B R"], condition: Float[Tensor, "B D"], goal: Look,
        by_image: Bool[Tensor, " B"],
    ) -> ChunkOutput:  # fmt: skip
        """robot: standardized. by_image: rows that `goal` is for; of the others its pixels are not used."""
        return self.told(self.read(images, robot, condition, goal, by_image))

    def told(self, read: Float[Tensor, "B D"]) -> ChunkOutput:
        """The chunk."""
        out: Tensor = self.head(read)
        return split_output(out, self.chunk, self.pose)

    def read(
        self, images: Look, robot: Float[Tensor, "B R"], condition: Float[Tensor, "B D"], goal: Look,
        by_image: Bool[Tensor, " B"],
    ) -> Float[Tensor, "B D"]:  # fmt: skip
        """The readout after the backbone."""
        told = torch.where(by_image.unsqueeze(1), self.kind[1], condition)
        tokens = [self.readout.expand(len(robot), 1, -1), (self.robot(robot) + self.robot_embedding[0]).unsqueeze(1)]
        for number in range(len(self.stems)):
            now, place = self.prepared(camera_of(images, number)), self.position[number] + self.camera[number]
            if self.fusion == "state":
                tokens.append(self.stemmed(number, now) + place)
                continue
            there = self.shown_goal(camera_of(goal, number), by_image)
            if self.fusion == "early":
                side_by_side = torch.cat([now, there], dim=1 if self.tower is None else -1)
                tokens.append(self.stemmed(number, side_by_side) + place)
            else:
                seen = self.stemmed(number, there) + place + self.kind[1]
                goal_tokens = torch.where(by_image[:, None, None], seen, self.kind[0])
                tokens += [self.stemmed(number, now) + place, goal_tokens]
        if self.states is not None:
            tokens.append(self.states(images, goal, by_image, self.kind))
        tokens.append(told.unsqueeze(1))
        out: Tensor = self.backbone(torch.cat(tokens, dim=1))[:, 0].float()
        return out


@dataclass(frozen=True)
class GoalOptions(ChunkOptions):
    """``goal.*``."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"image_size": 64, "patch_size": 8, "width": 64, "heads": 4, "blocks": 2, "learning_rate": 1e-3},
        "base": {"width": 512, "heads": 8, "blocks": 4, "dropout": 0.1, "learning_rate": 1e-4},
    }

    learning_rate: float = option(3e-4, "of this system; not given: training.learning_rate if that is", above=0)
    vision: str = option(
        CONV, "what sees: stems of its own, or the frozen tower that model.vision names too", choices=(CONV, *VISION)
    )
    image_size: int = option(128, "pictures are resized to this many pixels a side", least=8, beside=OWN_EYES)
    patch_size: int = option(16, "pixels a side of a patch", least=1, beside=OWN_EYES)
    stem: str = option(
        "patch", "what makes a patch a token: one convolution, or some that halve", choices=tuple(PATCH_STEMS),
        beside=OWN_EYES,
    )  # fmt: skip
    width: int = option(192, "of the tokens", least=8)
    heads: int = option(6, "of every attention", least=1)
    blocks: int = option(6, "over all tokens", least=1)
    fusion: str = option(
        "early",
        "the goal's picture as channels beside the current one (of a tower as features beside features), as "
        "tokens, or as a frozen encoder's state",
        choices=FUSIONS,
    )
    relabel: str = option(
        "mixed", "which later observation is a row's goal", choices=RELABEL, beside=("image_share", ())
    )
    image_share: float = option(0.5, "share of the rows that are told by a picture; 0: language alone", least=0, most=1)
    dropout: float = option(0.0, "of every block", least=0, most=1)

    PARENT_FOR: ClassVar[str] = f"fusion=state or goal.{ChunkOptions.PARENT_FOR}"

    def check(self, section: str) -> None:
        super().check(section)
        require_heads(section, self.heads, width=self.width)
        if self.vision != CONV and self.fusion == "state":
            raise UsageError(
                f"{section}.fusion: state is read from pictures, {section}.vision={self.vision} sees features alone; "
                "set one of the two otherwise"
            )
        if self.vision != CONV and self.stem != "patch":
            raise UsageError(
                f"{section}.stem: {self.stem} is for {section}.vision={CONV}, not for a frozen tower; set "
                f"{section}.stem=patch"
            )

    @property
    def sees_states(self) -> bool:
        """The goal's."""
        return self.fusion == "state"


class GoalPolicy(ChunkPolicy):
    """The net with its loss and its decision; a scene without a goal is told by its instruction."""

    options: GoalOptions

    def __init__(self, config: Config, options: GoalOptions, given: Given) -> None:
        super().__init__(config, options, given)
        states = self.encoder if options.sees_states and isinstance(self.encoder, FrozenEncoder) else None
        self.net = GoalNet(
            size=options.image_size, patch=options.patch_size, width=options.width, heads=options.heads,
            blocks=options.blocks, chunk=config.model.action_seq_len, spec=given.spec, fusion=options.fusion,
            dropout=options.dropout, stem=options.stem, encoder=states,
            tower=features_of("goal.vision", options.vision, config, given),
        )  # fmt: skip
        self.add_world(config, options.width)
        if IMAGE in self.told_by:
            self.needs = dataclasses.replace(self.needs, goal=options.relabel)

    @property
    def told_by(self) -> tuple[str, ...]:
        """The kinds of goal that it was trained on."""
        share = self.options.image_share
        return tuple(kind for kind, there in ((LANGUAGE, share < 1), (IMAGE, share > 0)) if there)

    @property
    def sees_by_tower(self) -> bool:
        return self.net.tower is not None

    def look(self, obs: ObservationBatch) -> Look:
        """An observation as the net takes it."""
        return obs.images if self.net.tower is None else self.net.tower.of(obs)

    def draw(self, rows: int, generator: torch.Generator) -> Noise:
        """``kind`` [B], uniform on [0, 1): below the share of pictures, a row is told by one."""
        return {"kind": torch.rand(rows, generator=generator)}

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I D"]:
        return self.net.condition(scale_language(language))

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        """``pose`` [B K P] and ``logits`` beside `ChunkPolicy.wanted`, each row told by its kind; in validation
        ``by_language`` and ``by_image`` [B K P] too, where it was trained on both.
        """
        obs = batch.obs
        now = self.look(obs)
        goal = now if batch.goal is None else self.look(batch.goal)
        inputs = now, self.standardize_robot_state(obs.robot_state), self.condition(obs.language), goal
        by_image = noise["kind"] < (self.options.image_share if batch.goal is not None else 0.0)
        read = self.net.read(*inputs, by_image)
        pose, logits = self.net.told(read)
        found = {"pose": pose, "logits": logits, **self.wanted(batch), **self.foretell(read, batch)}
        if not self.training and batch.goal is not None and len(self.told_by) == 2:
            found["by_language"] = self.net(*inputs, torch.zeros_like(by_image)).pose
            found["by_image"] = self.net(*inputs, torch.ones_like(by_image)).pose
        return found

    def monitors(self, terms: Terms) -> dict[str, float]:
        """`ChunkPolicy.monitors`; where it was trained on both, the pose loss of all rows told by language and by
        pictures, and ``disagreement``, the mean distance of the two.
        """
        if "by_image" not in terms:
            return super().monitors(terms)
        losses = {name: self.pose_loss({**terms, "pose": terms[name]}).item() for name in ("by_language", "by_image")}
        apart = (terms["by_language"] - terms["by_image"]).abs().mean(dim=-1)
        keep = terms["keep"]
        return {
            **super().monitors(terms),
            **losses,
            "disagreement": (torch.where(keep, apart, 0.0).sum() / keep.sum().clamp(min=1)).item(),
        }

    def decide(self, scene: Scene) -> Acted:
        """Raises UsageError without a goal where it was trained on pictures alone, and with one where on none."""
        kind = LANGUAGE if scene.goal is None else IMAGE
        if kind not in self.told_by:
            raise UsageError(
                f"goal policy: it was trained to be told by {' or '.join(self.told_by)} alone, and is told by {kind}"
            )
        robot = self.standardize_robot_state(scene.robot_state)
        tower, pictures = self.net.tower, (scene.images, None if scene.goal is None else scene.goal.unbind(1))
        now, there = (seen if tower is None or seen is None else tower.features(seen) for seen in pictures)
        by_image = torch.full((len(robot),), there is not None, device=robot.device)
        return self.acted(*self.net(now, robot, scene.condition, now if there is None else there, by_image))

    def matrices(self) -> Iterator[Tensor]:
        return parameters_of(self.net.stems, self.net.backbone)


def build(config: Config, given: Given) -> GoalPolicy:
    """Fresh weights. Raises UsageError where the cameras' pictures differ in size: a goal is one tensor of them."""
    if len(set(given.spec.image_sizes)) > 1:
        raise UsageError(
            f"goal: expected cameras of one picture size, the store has {given.spec.image_sizes}; ingest cameras of "
            "one size (statevla ingest --spec FILE names them), or train another system"
        )
    return GoalPolicy(config, config.section("goal"), given)
