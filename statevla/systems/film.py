"""FiLM: the instruction scales and shifts what a convolutional trunk sees (Perez et al. 2018; BAKU, 2406.07539).

Each stage is Conv 3 × 3 with stride 2 → GroupNorm → (1 + γ) x + β → ReLU, with γ and β from the instruction. The
generators' last layers start at zero, so that an untrained net sees every picture unchanged, and they never decay: with
decay their output stays at zero.

Legend: B batch, C cameras, F hidden width, K chunk, P pose dimensions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from statevla.config import Config
from statevla.config.options import option
from statevla.data.batch import Batch
from statevla.encoders.vision import CONV, VISION
from statevla.models.heads import ChunkOutput, split_output
from statevla.models.pixels import dtype_of, prepare_pixels
from statevla.models.stems import Stage, stages_of
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
from statevla.systems.system import Given, Noise, Terms
from stores.spec import ObsSpec

POOL = 4


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that gives zeros until it has learned."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Conditioned(nn.Module):
    """What both nets share: the instruction's layers, and the policy whose last layer tells the chunk."""

    language: nn.Sequential
    policy: nn.Sequential
    chunk: int
    pose: int

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I F"]:
        """Once an instruction."""
        out: Tensor = self.language(language)
        return out

    def fused(self, parts: Sequence[Float[Tensor, "B _"]]) -> Float[Tensor, "B E"]:
        """What the chunk is read from by one linear layer, of `parts` side by side."""
        x = torch.cat(list(parts), dim=-1).to(dtype_of(self.policy))
        out: Tensor = self.policy[:-1](x)
        return out

    def told(self, read: Float[Tensor, "B E"]) -> ChunkOutput:
        """The chunk."""
        return split_output(self.policy[-1](read).float(), self.chunk, self.pose)


class FilmNet(Conditioned):
    """The spec's cameras and widths; chunk: steps."""

    def __init__(self, size: int, hidden: int, stages: tuple[int, ...], chunk: int, spec: ObsSpec) -> None:
        super().__init__()
        cameras, robot, language = len(spec.cameras), spec.robot_state_dim, spec.language_width
        self.size, self.chunk, self.pose = size, chunk, len(spec.continuous)
        self.language = nn.Sequential(nn.Linear(language, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.stages = nn.ModuleList(Stage(a, b) for a, b in zip((3, *stages), stages, strict=False))
        self.generators = nn.ModuleList(zero_linear(hidden, 2 * width) for width in stages)
        self.pool = nn.AdaptiveAvgPool2d(POOL)
        self.camera = nn.Linear(stages[-1] * POOL**2, hidden)
        self.camera_embedding = embedding(cameras, hidden)
        self.robot = nn.Sequential(nn.Linear(robot, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.policy = nn.Sequential(
            nn.Linear((cameras + 2) * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, chunk * spec.action_dim),
        )  # fmt: skip

    def see(self, images: UInt8[Tensor, "B H W 3"], condition: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        """One camera's features under an instruction, before its embedding."""
        x = prepare_pixels(images, self.size).to(dtype_of(self.stages))
        for stage, generator in zip(self.stages, self.generators, strict=True):
            gamma, beta = generator(condition.to(dtype_of(generator)))[..., None, None].chunk(2, dim=1)
            x = ((1 + gamma) * stage(x) + beta).relu()
        out: Tensor = self.camera(self.pool(x).flatten(1))
        return out

    def forward(
        self, images: tuple[UInt8[Tensor, "B _ _ 3"], ...], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B F"]
    ) -> ChunkOutput:
        """robot: standardized."""
        return self.told(self.read(images, robot, condition))

    def read(
        self, images: tuple[UInt8[Tensor, "B _ _ 3"], ...], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B F"]
    ) -> Float[Tensor, "B F"]:
        """What the chunk is read from by one linear layer."""
        seen = [self.see(frames, condition) + self.camera_embedding[c] for c, frames in enumerate(images)]
        return self.fused([*seen, condition, self.robot(robot)])


class PooledFilmNet(Conditioned):
    """The chapter's: one vector of the pooled features of a frozen tower, scaled and shifted by the instruction; with
    the chapter's sizes (hidden 512, two cameras of 768) 4,220,230 parameters for a chunk of 10.

    Pooled is the mean over a camera's patches; the cameras stand beside one another.
    """

    def __init__(self, tower: FrozenFeatures, hidden: int, chunk: int, spec: ObsSpec) -> None:
        super().__init__()
        seen, robot, language = len(spec.cameras) * tower.expected[1], spec.robot_state_dim, spec.language_width
        self.tower, self.chunk, self.pose = tower, chunk, len(spec.continuous)
        self.language = nn.Sequential(nn.Linear(language, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.visual = nn.Sequential(nn.Linear(seen, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.robot = nn.Sequential(nn.Linear(robot, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, hidden))
        self.generator = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), zero_linear(2 * hidden, 2 * hidden))
        self.policy = nn.Sequential(
            nn.Linear(3 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden // 2), nn.ReLU(),
            nn.Linear(hidden // 2, chunk * spec.action_dim),
        )  # fmt: skip

    def see(self, features: Float[Tensor, "B C P V"], condition: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        """All cameras under an instruction."""
        gamma, beta = self.generator(condition.to(dtype_of(self.generator))).chunk(2, dim=-1)
        pooled = features.float().mean(dim=2).flatten(1).to(dtype_of(self.visual))
        out: Tensor = ((1 + gamma) * self.visual(pooled) + beta).relu()
        return out

    def forward(
        self, images: tuple[UInt8[Tensor, "B _ _ 3"], ...], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B F"]
    ) -> ChunkOutput:
        """robot: standardized."""
        return self.told(self.read(self.tower.features(images), robot, condition))

    def read(
        self, features: Float[Tensor, "B C P V"], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B F"]
    ) -> Float[Tensor, "B E"]:
        """As `FilmNet.read`, of the tower's features; E is half of F."""
        return self.fused([self.see(features, condition), condition, self.robot(robot)])


@dataclass(frozen=True)
class FilmOptions(ChunkOptions):
    """``film.*``."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"image_size": 64, "hidden": 64, "stages": "16-32-64"},
        "small": {"image_size": 128, "hidden": 256, "stages": "32-64-128-256", "learning_rate": 3e-4},
    }

    vision: str = option(
        CONV, "what sees: a trunk of its own, or the frozen tower that model.vision names too", choices=(CONV, *VISION)
    )
    image_size: int = option(128, "pictures are resized to this many pixels a side", least=8, beside=OWN_EYES)
    hidden: int = option(256, "width of the fused features", least=8)
    stages: str = option(
        "32-64-128-256", "channels of the trunk's stages, each half as large as the one before", beside=OWN_EYES
    )


class FilmPolicy(ChunkPolicy):
    """The net with its loss and its decision."""

    net: FilmNet | PooledFilmNet

    def __init__(self, config: Config, options: FilmOptions, given: Given) -> None:
        super().__init__(config, options, given)
        chunk = config.model.action_seq_len
        tower = features_of("film.vision", options.vision, config, given)
        if tower is None:
            stages = stages_of("film.stages", options.stages)
            self.net = FilmNet(options.image_size, options.hidden, stages, chunk, given.spec)
        else:
            self.net = PooledFilmNet(tower, options.hidden, chunk, given.spec)
        self.add_world(config, options.hidden if options.vision == CONV else options.hidden // 2)

    @property
    def sees_by_tower(self) -> bool:
        return isinstance(self.net, PooledFilmNet)

    @property
    def undecayed(self) -> frozenset[str]:
        """The generators too: with decay their output would stay at zero."""
        names = {name for name, _ in self.named_parameters() if name.startswith("net.generator")}
        return super().undecayed | names

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I F"]:
        return self.net.condition(scale_language(language))

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        """``pose`` [B K P] and ``logits`` [B K] beside `ChunkPolicy.wanted` and `ChunkPolicy.foretell`."""
        obs, net = batch.obs, self.net
        robot, condition = self.standardize_robot_state(obs.robot_state), self.condition(obs.language)
        if isinstance(net, PooledFilmNet):
            read = net.read(net.tower.of(obs), robot, condition)
        else:
            read = net.read(obs.images, robot, condition)
        pose, logits = net.told(read)
        return {"pose": pose, "logits": logits, **self.wanted(batch), **self.foretell(read, batch)}

    def decide(self, scene: Scene) -> Acted:
        return self.acted(*self.net(scene.images, self.standardize_robot_state(scene.robot_state), scene.condition))

    def matrices(self) -> Iterator[Tensor]:
        if isinstance(self.net, PooledFilmNet):
            return parameters_of(self.net.visual, self.net.generator, self.net.policy)
        return parameters_of(self.net.stages, self.net.generators, self.net.camera, self.net.policy)


def build(config: Config, given: Given) -> FilmPolicy:
    """Fresh weights."""
    return FilmPolicy(config, config.section("film"), given)
