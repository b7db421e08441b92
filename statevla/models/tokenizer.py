"""One canonical observation -> tokens ``[language][robot][first camera P][second camera P]…[CLS]``, CLS last.

Resizing and normalization of pixels (`pixels`) and of the robot state happen here, on the training device, and nowhere
else: a policy carries this module into evaluation.

Legend: B batch, C cameras, H height, W width, P patches a camera, V vision feature width, N tokens, D width, L numbers
of an instruction's embedding, R of a robot state.
"""

import math
from typing import Final, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from statevla.config import ModelConfig
from statevla.data.batch import ObservationBatch
from statevla.models.pixels import dtype_of, prepare_pixels
from statevla.models.standardize import Standardize
from statevla.models.stems import ConvPatchStem
from stores.errors import ObsSpecMismatch, UsageError
from stores.spec import LIBERO, ObsSpec
from stores.statistics import Normalization

Images = tuple[UInt8[Tensor, "B _ _ 3"], ...]
"""Frames by camera, in the spec's order; their sizes may differ."""

MODALITIES: Final = ("language", "robot_state")
"""And then every camera."""
EMBEDDING_STD: Final = 0.02


@runtime_checkable
class Backbone(Protocol):
    """A frozen vision backbone: not counted, not trained, not in a checkpoint (its name and revision are)."""

    def patch_features(self, images: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B P V"]: ...


def embedding(*shape: int) -> nn.Parameter:
    """A learned embedding, normal(0, 0.02) truncated at two deviations."""
    values = torch.empty(*shape)
    nn.init.trunc_normal_(values, std=EMBEDDING_STD, a=-2 * EMBEDDING_STD, b=2 * EMBEDDING_STD)
    return nn.Parameter(values)


class PatchConvolution(nn.Conv2d):
    """One convolution whose stride is its kernel."""

    def forward(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B P D"]:
        return super().forward(pixels).flatten(2).transpose(1, 2)


class ConvVision(nn.Module):
    """Patches of each camera by convolutions of its own, trained with the rest: one (`PatchConvolution`), or stages
    (`ConvPatchStem`).
    """

    def __init__(self, config: ModelConfig, spec: ObsSpec = LIBERO) -> None:
        super().__init__()
        self.image_size = config.image_size
        width, patch = config.embed_dim, config.patch_size
        self.cameras = nn.ModuleList(
            ConvPatchStem(config.image_size, patch, width)
            if config.stem == "conv"
            else PatchConvolution(3, width, patch, stride=patch)
            for _ in spec.cameras
        )

    def forward(self, images: Images) -> Float[Tensor, "B C P D"]:
        dtype = dtype_of(self.cameras)
        patches = [
            stem(prepare_pixels(frames, self.image_size).to(dtype))
            for frames, stem in zip(images, self.cameras, strict=True)
        ]
        return torch.stack(patches, dim=1)


def pool_patches(features: Float[Tensor, "*B P V"], pool: int) -> Float[Tensor, "*B Q V"]:
    """Means over squares of `pool` × `pool` of a square grid of patches; those at its end are of what is there."""
    if pool == 1:
        return features
    *batch, patches, width = features.shape
    side = math.isqrt(patches)
    grid = features.reshape(-1, side, side, width).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(grid, pool, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2).reshape(*batch, -1, width)


class FrozenFeatures(nn.Module):
    """Patch features of a frozen backbone: those kept with an observation, else made of its pictures on the spot.

    The backbone hangs outside the module tree: it is no parameter, moves nowhere by itself and is shared by all that
    see through it.
    """

    def __init__(self, config: ModelConfig, backbone: Backbone | None) -> None:
        super().__init__()
        self.expected, self.pool = (config.patches, config.vision_width), config.vision_pool
        self.model = config.vision_model
        self._outside = (backbone,)

    def features(self, images: Images) -> Float[Tensor, "B C P V"]:
        """Frozen features of every camera image. Raises UsageError where the backbone is absent or another one."""
        backbone = self._outside[0]
        if backbone is None:
            raise UsageError(f"model.vision: this model was built without its backbone {self.model}")
        with torch.no_grad():
            if len({frames.shape for frames in images}) == 1:  # one pass for all cameras
                flat = backbone.patch_features(torch.stack(images, dim=1).flatten(0, 1))
                found = flat.reshape(len(images[0]), len(images), *flat.shape[1:])
            else:
                found = torch.stack([backbone.patch_features(frames) for frames in images], dim=1)
            found = pool_patches(found, self.pool)
        if tuple(found.shape[2:]) != self.expected:
            raise UsageError(
                f"model.vision_model {self.model}: its features are {tuple(found.shape[2:])} (patches, width), the "
                f"configuration expects {self.expected}; set model.image_size, model.patch_size, model.vision_width"
            )
        return found

    def kept(self, obs: ObservationBatch) -> Float[Tensor, "B C P V"]:
        """Features of every camera that came with the observation, float32: autocast to bfloat16 takes no float16.

        Raises UsageError for those of another tower.
        """
        values = torch.stack([kept.float() for kept in obs.features], dim=1)
        if tuple(values.shape[2:]) != self.expected:
            raise UsageError(
                f"data.features: they are {tuple(values.shape[2:])} (patches, width), the configuration expects "
                f"{self.expected}; set model.vision_pool, model.image_size, model.patch_size, model.vision_width"
            )
        if not obs.scales:
            return values
        return values * torch.stack([scale.float() for scale in obs.scales], dim=1).unsqueeze(-1)

    def of(self, obs: ObservationBatch) -> Float[Tensor, "B C P V"]:
        """`kept` where there are some, else `features`."""
        return self.kept(obs) if obs.features else self.features(obs.images)


class TowerVision(FrozenFeatures):
    """A linear projection for each camera of a frozen backbone's patch features; kept ones enter through `project`.

    width: D; None: that of the documents' model.
    """

    def __init__(
        self, config: ModelConfig, backbone: Backbone | None, spec: ObsSpec = LIBERO, width: int | None = None
    ) -> None:
        super().__init__(config, backbone)
        width = config.embed_dim if width is None else width
        self.cameras = nn.ModuleList(nn.Linear(config.vision_width, width) for _ in spec.cameras)

    def project(self, features: Float[Tensor, "B C P V"]) -> Float[Tensor, "B C P D"]:
        """Features (float16 caches too) -> patch tokens."""
        values = features.to(dtype_of(self.cameras))
        return torch.stack([linear(values[:, camera]) for camera, linear in enumerate(self.cameras)], dim=1)

    def forward(self, images: Images) -> Float[Tensor, "B C P D"]:
        return self.project(self.features(images))

    def tokens_of(self, obs: ObservationBatch) -> Float[Tensor, "B C P D"]:
        """`forward` of an observation: of the features that were kept of it, where it has some."""
        return self.project(self.of(obs))


class Tokenizer(nn.Module):
    """Every modality at width D, with a learned position and modality embedding; CLS is one learned vector."""

    def __init__(
        self,
        config: ModelConfig,
        statistics: Normalization | None = None,
        backbone: Backbone | None = None,
        spec: ObsSpec = LIBERO,
    ) -> None:
        super().__init__()
        self.spec = spec
        width, patches = config.embed_dim, config.patches
        self.vision = ConvVision(config, spec) if config.vision == "conv" else TowerVision(config, backbone, spec)
        self.language = nn.Linear(spec.language_width, width)
        self.standardize_robot_state = Standardize("robot_state", statistics, spec)
        self.robot = nn.Sequential(nn.Linear(spec.robot_state_dim, width), nn.GELU(), nn.Linear(width, width))
        self.position_language = embedding(1, width)
        self.position_robot = embedding(1, width)
        self.position_cameras = embedding(len(spec.cameras), patches, width)
        self.modality = embedding(len(MODALITIES) + len(spec.cameras), width)
        self.cls = embedding(1, width)

    def forward(self, obs: ObservationBatch) -> Float[Tensor, "B N D"]:
        """Tokens, N = C P + 3; from the features where the observation has some."""
        token = self.language_token(obs.language)
        if not obs.features:
            return self.assemble(token, obs.images, obs.robot_state)
        if not isinstance(self.vision, TowerVision):
            raise UsageError("data.features: this model has patch convolutions, which take pictures")
        return self._join(token, self.vision.tokens_of(obs), obs.robot_state)

    def language_token(self, language: Float[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """The token of an instruction's embedding; it needs to be made once only."""
        text = F.normalize(language, dim=-1) * language.shape[-1] ** 0.5  # entries of about 1, whatever encoder made it
        out: Tensor = self.language(text) + self.position_language + self.modality[0]
        return out

    def assemble(
        self,
        language_token: Float[Tensor, "B D"],
        images: Images,
        robot_state: Float[Tensor, "B R"],
    ) -> Float[Tensor, "B N D"]:
        """All tokens, from the instruction's and the rest of the observation."""
        if len(images) != len(self.spec.cameras):
            raise ObsSpecMismatch(
                f"images: expected {len(self.spec.cameras)} cameras {self.spec.camera_names}, got {len(images)}"
            )
        return self._join(language_token, self.vision(images), robot_state)

    def _join(
        self,
        language_token: Float[Tensor, "B D"],
        patches: Float[Tensor, "B C P D"],
        robot_state: Float[Tensor, "B R"],
    ) -> Float[Tensor, "B N D"]:
        state = self.robot(self.standardize_robot_state(robot_state)).unsqueeze(1)
        robot = state + self.position_robot + self.modality[1]
        cameras = patches + self.position_cameras + self.modality[len(MODALITIES) :, None]
        cls = self.cls.expand(len(robot_state), 1, -1)
        return torch.cat([language_token.unsqueeze(1), robot, cameras.flatten(1, 2), cls], dim=1)
