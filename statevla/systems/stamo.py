"""StaMo: a picture compressed to two tokens a camera, from which a diffusion transformer paints it again.

State differences are then motion, without any action in the training (2510.05057; sizes and objective where that paper
says none are ours). The compressor sees frozen features of a tower (``model.vision*``), kept with the store or made on
the spot; or those of a convolutional stem that is trained with the rest, and then nothing is frozen.

Legend: B batch, C cameras, T tokens of a camera, E numbers of a token, S side of the painted picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from statevla.config import Config
from statevla.config.options import option
from statevla.config.schema import SystemOptions
from statevla.data.batch import Batch, ObservationBatch
from statevla.data.needs import Needs
from statevla.encoders.vision import CONV
from statevla.models.attention import Backbone
from statevla.models.dit import SMALLEST, Dit
from statevla.models.losses import LossParts
from statevla.models.monitors import rank_me
from statevla.models.stems import ConvStem
from statevla.models.tokenizer import FrozenFeatures, dtype_of, embedding, prepare_pixels
from statevla.systems.chunk_policy import stages_of
from statevla.systems.system import Given, Noise, Objective, Terms
from stores.errors import UsageError
from stores.spec import ObsSpec

LEVELS = (0.25, 0.5, 0.75)
"""At which validation asks whether the decoder uses the state."""


class Compressor(nn.Module):
    """Features of a camera → its state: learned tokens that look at all patches, normalized without scale or shift."""

    def __init__(
        self, patches: int, features: int, width: int, heads: int, depth: int, tokens: int, state: int, cameras: int
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.enter, self.position = nn.Linear(features, width), embedding(patches, width)
        self.camera, self.queries = embedding(cameras, width), embedding(tokens, width)
        self.blocks = Backbone(width, heads, 4 * width, depth)
        self.out = nn.Linear(width, state)
        self.norm = nn.LayerNorm(state, elementwise_affine=False)  # differences stay comparable, their size bounded

    def forward(self, features: Float[Tensor, "B P V"], camera: int) -> Float[Tensor, "B T E"]:
        seen = self.enter(features) + self.position + self.camera[camera]
        everything = torch.cat([self.queries.expand(len(features), -1, -1), seen], dim=1)
        out: Tensor = self.norm(self.out(self.blocks(everything)[:, : self.tokens]))
        return out


@dataclass(frozen=True)
class StamoOptions(SystemOptions):
    """``stamo.*``."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {
            "image_size": 64, "state_width": 64, "width": 128, "depth": 2, "stem_width": 192, "stages": "32-64-128",
            "decoder_width": 128, "decoder_depth": 4,
        },
    }  # fmt: skip

    learning_rate: float = option(2e-4, "of this system; not given: training.learning_rate if that is", above=0)
    image_size: int = option(128, "pictures are resized to this many pixels a side, and painted so", least=8)
    patch_size: int = option(8, "pixels a side of a painted patch", least=1)
    tokens: int = option(2, "of a camera's state", least=1)
    state_width: int = option(256, "numbers of a token", least=1)
    features: str = option(
        CONV, "what the compressor sees: a stem of convolutions trained with it, or the frozen tower of model.vision, "
        "which must be the same", choices=(CONV, "dinov2", "siglip"),
    )  # fmt: skip
    stem_width: int = option(384, "width of the stem's features", least=8)
    stages: str = option("64-128-256", "channels of the stem's stages, each half as large as the one before")
    width: int = option(256, "of the compressor", least=8)
    depth: int = option(4, "blocks of the compressor", least=1)
    decoder_width: int = option(256, "of the decoder", least=8)
    decoder_depth: int = option(8, "blocks of the decoder", least=1)
    heads: int = option(4, "of every attention", least=1)
    predict: str = option("x", "what the decoder gives: the velocity, or the clean picture", choices=("x", "v"))
    state_dropout: float = option(0.1, "share of the pictures that are painted without their state", least=0, most=1)


class StamoModel(Objective):
    """Compressor and decoder with their loss. A `StateCoder`: `state` and `decode`."""

    def __init__(self, options: StamoOptions, spec: ObsSpec, tower: FrozenFeatures | None = None) -> None:
        """tower: where the features are a frozen one's."""
        super().__init__()
        if options.image_size % options.patch_size:
            raise UsageError(
                f"stamo.image_size: {options.image_size} is not a multiple of stamo.patch_size {options.patch_size}"
            )
        self.options, cameras = options, len(spec.cameras)
        self.stem: ConvStem | FrozenFeatures
        if tower is None:
            self.stem = ConvStem(options.image_size, stages_of("stamo.stages", options.stages), options.stem_width)
            patches, width = self.stem.side**2, options.stem_width
        else:
            self.stem, (patches, width) = tower, tower.expected
        self.needs = Needs(rows=2, views=("pixels",) if tower is None else ("pixels", "features"))
        self.compressor = Compressor(
            patches, width, options.width, options.heads, options.depth, options.tokens,
            options.state_width, cameras,
        )  # fmt: skip
        self.decoder = Dit(
            options.image_size, options.patch_size, options.decoder_width, options.heads, options.decoder_depth,
            options.state_width, options.tokens,
        )  # fmt: skip
        self.camera = embedding(cameras, options.decoder_width)

    @property
    def state_shape(self) -> tuple[int, int]:
        """Tokens of all cameras, numbers of a token."""
        return len(self.camera) * self.options.tokens, self.options.state_width

    def state(self, obs: ObservationBatch) -> Float[Tensor, "B N E"]:
        """Cameras one after the other; N = C T."""
        seen = [self.compressor(features, number) for number, features in enumerate(self.features(obs))]
        return torch.cat(seen, dim=1)

    def features(self, obs: ObservationBatch) -> Sequence[Float[Tensor, "B P V"]]:
        """Of each camera."""
        if isinstance(self.stem, FrozenFeatures):
            return self.stem.of(obs).to(dtype_of(self.compressor)).unbind(dim=1)
        return [self.stem(frames) for frames in obs.images]

    def draw(self, rows: int, generator: torch.Generator) -> Noise:
        """``sigma`` [B C] uniform, ``epsilon`` [B C 3 S S] normal, ``drop`` [B C] uniform."""
        cameras, side = len(self.camera), self.options.image_size
        return {
            "sigma": torch.rand(rows, cameras, generator=generator),
            "epsilon": torch.randn(rows, cameras, 3, side, side, generator=generator),
            "drop": torch.rand(rows, cameras, generator=generator),
        }

    def velocity(
        self, noisy: Float[Tensor, "B 3 S S"], sigma: Float[Tensor, " B"], state: Float[Tensor, "B T E"], camera: int,
        smallest: float = 0.0,
    ) -> Float[Tensor, "B 3 S S"]:  # fmt: skip
        """Of one camera's pictures. smallest: level that smaller ones are taken as in the quotient."""
        out: Tensor = self.decoder(noisy, sigma, state, self.camera[camera].expand(len(noisy), -1))
        if self.options.predict == "v":
            return out
        return (noisy - out) / sigma.clamp(min=smallest)[:, None, None, None]

    def error(
        self, pixels: Float[Tensor, "B 3 S S"], sigma: Float[Tensor, " B"], epsilon: Float[Tensor, "B 3 S S"],
        state: Float[Tensor, "B T E"], camera: int,
    ) -> Float[Tensor, " B"]:  # fmt: skip
        """Mean squared error of the velocity, by row."""
        level = sigma[:, None, None, None]
        told = self.velocity((1 - level) * pixels + level * epsilon, sigma, state, camera, SMALLEST)
        return (told - (epsilon - pixels)).square().mean(dim=(1, 2, 3))

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        """``error`` [B]; in validation ``own``, ``shuffled``, ``null`` [B] at fixed levels, and ``state`` [B F]."""
        state = self.state(batch.obs)
        states = state.chunk(len(self.camera), dim=1)
        found: dict[str, Tensor] = {"error": state.new_zeros(len(state))}
        if not self.training:
            found.update({name: state.new_zeros(len(state)) for name in ("own", "shuffled", "null")})
            found["state"] = state.flatten(1)
        for camera, frames in enumerate(batch.obs.images):
            pixels, mine, epsilon = (
                prepare_pixels(frames, self.options.image_size),
                states[camera],
                noise["epsilon"][:, camera],
            )
            kept = self.without(mine, noise["drop"][:, camera] < self.options.state_dropout)
            found["error"] = found["error"] + self.error(pixels, noise["sigma"][:, camera], epsilon, kept, camera)
            if self.training:
                continue
            others = {"own": mine, "shuffled": mine.roll(1, 0), "null": torch.zeros_like(mine)}
            for name, other in others.items():
                for sigma in LEVELS:
                    level = torch.full_like(noise["sigma"][:, camera], sigma)
                    found[name] = found[name] + self.error(pixels, level, epsilon, other, camera)
        return found

    @staticmethod
    def without(state: Float[Tensor, "B T E"], drop: Bool[Tensor, " B"]) -> Float[Tensor, "B T E"]:
        """Zeros, which no normalized state is, where `drop` says so."""
        return torch.where(drop[:, None, None], 0.0, state)

    def loss(self, terms: Terms) -> LossParts:
        """Mean over rows and cameras. Part: ``velocity_mse``."""
        total = terms["error"].mean() / len(self.camera)
        return LossParts(total, {"velocity_mse": total.detach()}, torch.tensor(float(len(terms["error"]))))

    def monitors(self, terms: Terms) -> dict[str, float]:
        """``shuffled_ratio``: error with another picture's state over that with one's own; near 1 the decoder ignores
        the state. ``null_ratio``: the same without a state. ``z_rank``: effective rank, ``z_std`` of the states.
        """
        own, state = terms["own"].mean(), terms["state"].float()
        return {
            "shuffled_ratio": (terms["shuffled"].mean() / own).item(),
            "null_ratio": (terms["null"].mean() / own).item(),
            "z_rank": rank_me(state),
            "z_std": state.std(dim=0).mean().item(),
        }

    @torch.no_grad()
    def decode(
        self, state: Float[Tensor, "B N E"], generator: torch.Generator, steps: int = 25
    ) -> UInt8[Tensor, "B C S S 3"]:
        """Pictures of states, by Euler's method from noise that is the same for every row."""
        side, painted = self.options.image_size, []
        for camera, mine in enumerate(state.chunk(len(self.camera), dim=1)):
            noise = torch.randn(1, 3, side, side, generator=generator).to(state.device)
            picture = noise.expand(len(state), -1, -1, -1)
            for number in range(steps, 0, -1):
                sigma = torch.full((len(state),), number / steps, device=state.device)
                picture = picture - self.velocity(picture, sigma, mine, camera) / steps
            painted.append(((picture.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1))
        return torch.stack(painted, dim=1)


def build(config: Config, given: Given) -> StamoModel:
    """Fresh weights. Raises UsageError where features and tower are not of one kind."""
    options: StamoOptions = config.section("stamo")
    if options.features == CONV:
        if config.data.features is not None:
            raise UsageError(
                f"data.features: {config.data.features} are of a frozen tower, which stamo.features=conv does not see; "
                f"leave them out, or set stamo.features={config.model.vision}"
            )
        return StamoModel(options, given.spec)
    if config.model.vision != options.features:
        raise UsageError(
            f"stamo.features: {options.features}, but model.vision is {config.model.vision}; set "
            f"model.vision={options.features}, and model.vision_model and model.vision_width of that tower"
        )
    return StamoModel(options, given.spec, FrozenFeatures(config.model, given.backbone))
