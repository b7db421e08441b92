"""StaMo: a picture compressed to two tokens a camera, from which a diffusion transformer paints it again.

State differences are then motion, without any action in the training (2510.05057; sizes and objective where that paper
says none are ours). The compressor sees frozen features of a tower (``model.vision*``), kept with the store or made on
the spot; the tokens of a frozen Temporal JEPA; or those of a convolutional stem that is trained with the rest, and
then nothing is frozen.

The diffusion transformer paints a picture's pixels, or the latents of an autoencoder (`statevla.models.canvas`).

Legend: B batch, C cameras, T tokens of a camera, E numbers of a token, S side of the picture, L side and V channels of
what is painted.
"""

import dataclasses
from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from statevla.config import Config
from statevla.config.schema import require_vision
from statevla.data.batch import Batch, ObservationBatch
from statevla.data.needs import Needs
from statevla.encoders.sd3 import ADAPTER, add_adapters, load_sd3
from statevla.encoders.vision import CONV
from statevla.models.attention import Backbone
from statevla.models.canvas import Canvas, OwnLatents
from statevla.models.dit import SMALLEST, Dit
from statevla.models.encoder import StateEncoder
from statevla.models.frozen_tokens import FrozenTokens
from statevla.models.kl_vae import KL_WEIGHT
from statevla.models.left_out import leave_out
from statevla.models.losses import LossParts
from statevla.models.monitors import rank_me
from statevla.models.pixels import dtype_of, prepare_pixels
from statevla.models.sd3 import PretrainedLatents, Sd3Painter
from statevla.models.stems import ConvStem, stages_of
from statevla.models.tokenizer import FrozenFeatures, embedding
from statevla.runs.files import MODEL, below, load_strict
from statevla.systems.stamo_options import LOGIT_NORMAL, ONLY_NOISE, PARENT, PIXEL, StamoOptions
from statevla.systems.system import Given, Noise, Objective, Terms
from stores.errors import UsageError
from stores.spec import ObsSpec

LEVELS: Final = (0.25, 0.5, 0.75)
"""At which validation asks whether the decoder uses the state; one that was trained on noise alone is asked there."""


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


class StamoModel(Objective):
    """Compressor and decoder with their loss. A `StateCoder`: `state` and `decode`."""

    def __init__(
        self, options: StamoOptions, spec: ObsSpec, tower: FrozenFeatures | FrozenTokens | None = None,
        canvas: Canvas | None = None, painter: Sd3Painter | None = None,
    ) -> None:  # fmt: skip
        """tower: where the features are something frozen's. canvas: of latents. painter: a pretrained one."""
        super().__init__()
        self.options, self.seen = options, seen_cameras(options.cameras, spec)
        cameras = len(self.seen)
        side, patch = options.image_size if canvas is None else canvas.side, options.patch_size
        if painter is None and side % patch:
            what = "" if canvas is None else f", of which latents have {side} a side,"
            raise UsageError(
                f"stamo.image_size: {options.image_size}{what} is not a multiple of stamo.patch_size {patch}"
            )
        self.stem: ConvStem | FrozenFeatures | FrozenTokens
        if tower is None:
            self.stem = ConvStem(
                options.image_size, stages_of("stamo.stages", options.stages), options.stem_width, section="stamo"
            )
            patches, width = self.stem.side**2, options.stem_width
        else:
            self.stem, (patches, width) = tower, tower.expected
        offsets = (0, options.motion_steps) if options.motion_weight > 0 else (0,)
        views = ("pixels", "features") if isinstance(tower, FrozenFeatures) else ("pixels",)
        self.needs = Needs(offsets=offsets, rows=2, views=views)
        self.compressor = Compressor(
            patches, width, options.width, options.heads, options.depth, options.tokens,
            options.state_width, cameras,
        )  # fmt: skip
        self.canvas = Canvas(side) if canvas is None else canvas
        self.decoder: Dit | Sd3Painter = painter or Dit(
            side, patch, options.decoder_width, options.heads, options.decoder_depth, options.state_width,
            options.tokens, self.canvas.channels,
        )  # fmt: skip
        self.cameras = cameras
        self.camera = None if painter is not None else embedding(cameras, options.decoder_width)

    @property
    def state_shape(self) -> tuple[int, int]:
        """Tokens of all that are seen, numbers of a token."""
        return self.cameras * self.options.tokens, self.options.state_width

    def state(self, obs: ObservationBatch) -> Float[Tensor, "B N E"]:
        """Cameras one after the other; N = C T."""
        seen = [self.compressor(features, number) for number, features in enumerate(self.features(obs))]
        return torch.cat(seen, dim=1)

    def features(self, obs: ObservationBatch) -> Sequence[Float[Tensor, "B P V"]]:
        """Of each camera that is seen."""
        if isinstance(self.stem, ConvStem):
            return [self.stem(obs.images[camera]) for camera in self.seen]
        features = self.stem.of(obs).to(dtype_of(self.compressor)).unbind(dim=1)
        return [features[camera] for camera in self.seen]

    def draw(self, rows: int, generator: torch.Generator) -> Noise:
        """``sigma`` [B C] as ``levels`` says, ``epsilon`` [B C V L L] normal, ``drop`` [B C] uniform."""
        cameras, side = self.cameras, self.canvas.side
        return {
            "sigma": _levels(self.options.levels, (rows, cameras), generator),
            "epsilon": torch.randn(rows, cameras, self.canvas.channels, side, side, generator=generator),
            "drop": torch.rand(rows, cameras, generator=generator),
        }

    def velocity(
        self, noisy: Float[Tensor, "B V L L"], sigma: Float[Tensor, " B"], state: Float[Tensor, "B T E"], camera: int,
        smallest: float = 0.0,
    ) -> Float[Tensor, "B V L L"]:  # fmt: skip
        """Of one camera's pictures. smallest: level that smaller ones are taken as in the quotient."""
        if self.camera is None:
            pretrained: Tensor = self.decoder(noisy, sigma, state)
            return pretrained
        out: Tensor = self.decoder(noisy, sigma, state, self.camera[camera].expand(len(noisy), -1))
        if self.options.predict == "v":
            return out
        return (noisy - out) / sigma.clamp(min=smallest)[:, None, None, None]

    def error(
        self, painted: Float[Tensor, "B V L L"], sigma: Float[Tensor, " B"], epsilon: Float[Tensor, "B V L L"],
        state: Float[Tensor, "B T E"], camera: int, weight: Float[Tensor, "B 1 L L"] | None = None,
    ) -> Float[Tensor, " B"]:  # fmt: skip
        """Mean squared error of the velocity, by row."""
        level = sigma[:, None, None, None]
        told = self.velocity((1 - level) * painted + level * epsilon, sigma, state, camera, SMALLEST)
        square = (told - (epsilon - painted)).square()
        return (square if weight is None else weight * square).mean(dim=(1, 2, 3))

    def motion(self, now: Float[Tensor, "B 3 S S"], then: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 1 L L"]:
        """Weights of mean 1: patches in which some colour changes by more than the threshold have 1 + motion_weight
        times that of the others. Pictures in [-1, 1].
        """
        options, patch = self.options, self.decoder.patch
        change = (then - now).abs().amax(dim=1, keepdim=True) / 2
        moved = nn.functional.max_pool2d(change, options.image_size // (self.canvas.side // patch))
        weight = 1 + options.motion_weight * (moved > options.motion_threshold).float()
        weight = weight / weight.mean(dim=(1, 2, 3), keepdim=True)
        return weight.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        """``error`` [B]; in validation ``own``, ``shuffled``, ``null`` [B] at fixed levels, and ``state`` [B F].

        While its own autoencoder is trained, ``absolute`` and ``divergence`` [B] (`KlVae.errors`), and ``mean`` and
        ``square`` [B V] of its latents; in validation ``absolute`` beside the others.
        """
        pixels = [prepare_pixels(batch.obs.images[camera], self.options.image_size) for camera in self.seen]
        found: dict[str, Tensor] = {}
        if isinstance(self.canvas, OwnLatents) and (self.canvas.learning or not self.training):
            found = self._autoencode(self.canvas, pixels, noise["epsilon"])
            if self.training:
                return found
            found = {"absolute": found["absolute"]}
        state = self.state(batch.obs)
        states = state.chunk(self.cameras, dim=1)
        found["error"] = state.new_zeros(len(state))
        if not self.training:
            found.update({name: state.new_zeros(len(state)) for name in ("own", "shuffled", "null")})
            found["state"] = state.flatten(1)
        for camera, mine in enumerate(states):
            painted, epsilon = self.canvas.encode(pixels[camera]), noise["epsilon"][:, camera]
            weight = None
            if self.options.motion_weight > 0:
                then = prepare_pixels(batch.next_obs.images[self.seen[camera]], self.options.image_size)
                weight = self.motion(pixels[camera], then)
            kept = self.without(mine, noise["drop"][:, camera] < self.options.state_dropout)
            error = self.error(painted, noise["sigma"][:, camera], epsilon, kept, camera, weight)
            found["error"] = found["error"] + error
            if self.training:
                continue
            others = {"own": mine, "shuffled": mine.roll(1, 0), "null": torch.zeros_like(mine)}
            for name, other in others.items():
                for sigma in LEVELS if self.options.levels != ONLY_NOISE else (1.0,):
                    level = torch.full_like(noise["sigma"][:, camera], sigma)
                    found[name] = found[name] + self.error(painted, level, epsilon, other, camera)
        return found

    @staticmethod
    def _autoencode(canvas: OwnLatents, pixels: list[Tensor], epsilon: Tensor) -> dict[str, Tensor]:
        parts = [canvas.vae.errors(picture, epsilon[:, camera]) for camera, picture in enumerate(pixels)]
        absolute, divergence, mean = (torch.stack(column).float() for column in zip(*parts, strict=True))
        latents = mean.detach().mean(dim=(-2, -1)), mean.detach().square().mean(dim=(-2, -1))
        return {"absolute": absolute.mean(dim=0), "divergence": divergence.mean(dim=0),
                "mean": latents[0].mean(dim=0), "square": latents[1].mean(dim=0)}  # fmt: skip

    @staticmethod
    def without(state: Float[Tensor, "B T E"], drop: Bool[Tensor, " B"]) -> Float[Tensor, "B T E"]:
        """Zeros, which no normalized state is, where `drop` says so."""
        return torch.where(drop[:, None, None], 0.0, state)

    def loss(self, terms: Terms) -> LossParts:
        """Mean over rows and cameras. Part: ``velocity_mse``.

        While its own autoencoder is trained, the mean absolute error of its pictures + 1e-6 · the divergence of its
        latents. Parts: ``absolute``, ``divergence``.
        """
        if "error" not in terms:
            absolute, divergence = terms["absolute"].mean(), terms["divergence"].mean()
            if isinstance(self.canvas, OwnLatents):
                self.canvas.follow(terms["mean"].detach(), terms["square"].detach())
            parts = {"absolute": absolute.detach(), "divergence": divergence.detach()}
            return LossParts(absolute + KL_WEIGHT * divergence, parts, torch.tensor(float(len(terms["absolute"]))))
        total = terms["error"].mean() / self.cameras
        return LossParts(total, {"velocity_mse": total.detach()}, torch.tensor(float(len(terms["error"]))))

    def after_step(self, step: int, total: int) -> None:
        """Count the steps. Raises UsageError for a run that is no longer than its own autoencoder's training."""
        if not isinstance(self.canvas, OwnLatents):
            return
        if total <= self.canvas.steps:
            raise UsageError(
                f"stamo.vae_steps: {self.canvas.steps} of a run of {total} steps, which leaves none to what paints the "
                "latents; use a longer run, or fewer of them"
            )
        self.canvas.trained += 1

    @property
    def idle(self) -> frozenset[str]:
        """While its own autoencoder is trained: all else."""
        if not isinstance(self.canvas, OwnLatents) or not self.canvas.alone:
            return frozenset()
        return frozenset(name for name, _ in self.named_parameters() if not name.startswith("canvas."))

    def monitors(self, terms: Terms) -> dict[str, float]:
        """``shuffled_ratio``: error with another picture's state over that with one's own; near 1 the decoder ignores
        the state. ``null_ratio``: the same without a state. ``z_rank``: effective rank, ``z_std`` of the states. With
        its own autoencoder also ``absolute``, that one's error.
        """
        own, state = terms["own"].mean(), terms["state"].float()
        return {
            "shuffled_ratio": (terms["shuffled"].mean() / own).item(),
            "null_ratio": (terms["null"].mean() / own).item(),
            "z_rank": rank_me(state),
            "z_std": state.std(dim=0).mean().item(),
            **({"absolute": terms["absolute"].mean().item()} if "absolute" in terms else {}),
        }

    @torch.no_grad()
    def decode(
        self, state: Float[Tensor, "B N E"], generator: torch.Generator, steps: int = 25, guidance: float = 1.0
    ) -> UInt8[Tensor, "B C S S 3"]:
        """Pictures of states, by Euler's method from noise that is the same for every row.

        One that was trained on noise alone paints in one step, whatever `steps`. guidance: how far the velocity goes
        from the one without a state to the one with it (Ho & Salimans 2022); 1: to it, more: past it.
        """
        canvas, painted = self.canvas, []
        steps = 1 if self.options.levels == ONLY_NOISE else steps
        for camera, mine in enumerate(state.chunk(self.cameras, dim=1)):
            noise = torch.randn(1, canvas.channels, canvas.side, canvas.side, generator=generator).to(state.device)
            picture = noise.expand(len(state), -1, -1, -1)
            for number in range(steps, 0, -1):
                sigma = torch.full((len(state),), number / steps, device=state.device)
                velocity = self.velocity(picture, sigma, mine, camera)
                if guidance != 1:
                    velocity = torch.lerp(
                        self.velocity(picture, sigma, torch.zeros_like(mine), camera), velocity, guidance
                    )
                picture = picture - velocity / steps
            pixels = canvas.decode(picture).clamp(-1, 1)
            painted.append(((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1))
        return torch.stack(painted, dim=1)


def seen_cameras(names: str | None, spec: ObsSpec) -> tuple[int, ...]:
    """Numbers of the cameras named, in the store's order; None: of all. Raises UsageError for others' names."""
    if names is None:
        return tuple(range(len(spec.cameras)))
    wanted = [name.strip() for name in names.split(",")]
    if strange := [name for name in wanted if name not in spec.camera_names]:
        raise UsageError(f"stamo.cameras: {', '.join(strange)}; the store has {', '.join(spec.camera_names)}")
    return tuple(number for number, name in enumerate(spec.camera_names) if name in wanted)


def _levels(drawn: str, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    if drawn == ONLY_NOISE:
        return torch.ones(shape)
    if drawn == LOGIT_NORMAL:
        return torch.sigmoid(torch.randn(shape, generator=generator))
    return torch.rand(shape, generator=generator)


def build(config: Config, given: Given) -> StamoModel:
    """Fresh weights. Raises UsageError where features and tower are not of one kind."""
    return _painted(config.section("stamo"), given.spec, _tower(config, given))


def build_states(config: Config, given: Given) -> StamoModel:
    """As `build`, for who wants states alone: whatever has painted them, nothing pretrained is loaded for that."""
    options: StamoOptions = config.section("stamo")
    if options.decoder_width % options.heads:  # of sd3, which has none of its own
        options = dataclasses.replace(options, decoder_width=8 * options.heads)
    if options.decoder != PIXEL:
        options = dataclasses.replace(options, decoder=PIXEL, patch_size=options.image_size // 8)
    return StamoModel(options, given.spec, _tower(config, given))


def _tower(config: Config, given: Given) -> FrozenFeatures | FrozenTokens | None:
    """Where the features are of a frozen tower, or of a frozen encoder: the checkpoint's of ``given.parent``, or one
    that is still to be loaded with the rest.
    """
    options: StamoOptions = config.section("stamo")
    if options.features in (CONV, PARENT) and config.data.features is not None:
        raise UsageError(
            f"data.features: {config.data.features} are of a frozen tower, which stamo.features={options.features} "
            f"does not see; leave them out, or set stamo.features={config.model.vision}"
        )
    if options.features == CONV:
        return None
    if options.features == PARENT:
        encoder = StateEncoder(config.model, given.statistics, given.backbone, given.spec)
        if given.parent is not None:
            load_strict(encoder, below(given.parent.tensors, "encoder."), f"{given.parent.folder / MODEL} (encoder.)")
        return FrozenTokens(encoder)
    require_vision("stamo.features", options.features, config.model.vision)
    return FrozenFeatures(config.model, given.backbone)


def _painted(options: StamoOptions, spec: ObsSpec, tower: FrozenFeatures | FrozenTokens | None) -> StamoModel:
    """With the canvas and the painter of ``stamo.decoder``."""
    if options.sd3_lora and options.decoder != "sd3":
        raise UsageError(
            f"stamo.sd3_lora: {options.sd3_lora} is of stamo.decoder=sd3, got {options.decoder}; set one of the two"
        )
    if options.decoder == PIXEL:
        return StamoModel(options, spec, tower)
    if options.decoder == "vae":
        return StamoModel(options, spec, tower, OwnLatents(options.image_size, options.vae_steps))
    if options.predict != "v":
        raise UsageError(f"stamo.predict: {options.predict}, but what decoder sd3 gives is the velocity; set it to v")
    vae, transformer = load_sd3(options.sd3_model, options.sd3_revision)
    if options.sd3_lora:
        add_adapters(transformer, options.sd3_lora)
        leave_out(transformer, lambda key: ADAPTER in key, "stamo.sd3_model")
        leave_out(vae, lambda key: False, "stamo.sd3_model")
    canvas = PretrainedLatents(options.image_size, vae)
    return StamoModel(options, spec, tower, canvas, Sd3Painter(transformer, canvas, options.state_width))
