"""What the policies that read pixels and regress a chunk share: loss, decision, statistics. Not a system by itself.

Legend: B batch, C cameras, K chunk, P continuous dimensions, G binary ones, R rows of a step.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from statevla.config import Config
from statevla.config.options import option
from statevla.config.schema import SystemOptions, require_vision
from statevla.config.world import FORETOLD, LATENT, MOTIONS, WorldOptions
from statevla.data.batch import Batch, ObservationBatch
from statevla.encoders.vision import CONV, VISION
from statevla.models.gripper import command, is_closing
from statevla.models.heads import gripper_terms, pose_error
from statevla.models.losses import LossParts
from statevla.models.monitors import change_monitor
from statevla.models.standardize import Standardize
from statevla.models.tokenizer import FrozenFeatures, TowerVision
from statevla.systems.acting import Acted, Scene
from statevla.systems.frozen import ENCODERS, FrozenEncoder, PooledTower
from statevla.systems.system import Given, Noise, Terms
from statevla.systems.world import Foretelling
from stores.errors import UsageError

OWN_EYES: Final = ("vision", (CONV,))
"""What an option of a policy's own stem or trunk is seen beside: no frozen tower."""


@dataclass(frozen=True)
class ChunkOptions(WorldOptions, SystemOptions):
    """Of every policy that regresses a chunk."""

    learning_rate: float = option(1e-3, "of this system; not given: training.learning_rate if that is", above=0)
    loss: str = option("l1", "of the pose", choices=("l1", "mse"))
    gripper_weight: float = option(1.0, "weight of the gripper's cross entropy", least=0)
    encoder: str = option(
        "temporal_jepa", "system of the frozen state encoder, where one is taken, not given: that of the checkpoint; "
        "or, of a world head alone, the frozen tower of model.vision: the mean of each camera's patches is foretold",
        choices=(*ENCODERS, *VISION),
    )  # fmt: skip

    PARENT_FOR: ClassVar[str] = f"world_target={' or '.join(FORETOLD)}"

    def check(self, section: str) -> None:
        """A tower has features, no states that are kept with the store."""
        reads = self.world_target in (MOTIONS, LATENT)
        if self.encoder in VISION and (self.sees_states or reads):
            wants = f"{section}.world_target={self.world_target}" if reads else "what this policy sees"
            raise UsageError(
                f"{section}.encoder: {self.encoder} is a frozen tower, but {wants} is made of a trained encoder's "
                f"states; set it to {' or '.join(ENCODERS)}"
            )

    @property
    def sees_states(self) -> bool:
        """Whether the policy itself sees a frozen encoder's states."""
        return False

    @property
    def takes_encoder(self) -> bool:
        """Whether some option needs a frozen encoder, or a tower in its place."""
        return self.sees_states or self.has_world

    @property
    def foretells_features(self) -> bool:
        """Whether the world head foretells a tower's features in place of an encoder's states."""
        return self.has_world and self.encoder in VISION

    @property
    def acts_by_tower(self) -> bool:
        """Not where it is what the world head foretells alone."""
        return not self.foretells_features or getattr(self, "vision", CONV) in VISION

    def parents(self, may: tuple[str, ...]) -> tuple[str, ...]:
        """The one that ``encoder`` names, where one is needed; a tower is no checkpoint's."""
        return (self.encoder,) if self.takes_encoder and self.encoder in ENCODERS else ()


class ChunkPolicy(Foretelling):
    """Gives a chunk in training and in acting alike; subclasses add what their training has beside it.

    encoder: the frozen one, where the options take one, whose states the world head foretells; or the tower, likewise.
    """

    options: ChunkOptions

    continuous: Tensor
    binary: Tensor
    places: Tensor

    def __init__(self, config: Config, options: ChunkOptions, given: Given) -> None:
        super().__init__()
        self.options, spec = options, given.spec
        self.encoder: FrozenEncoder | PooledTower | None = None
        if options.foretells_features:
            tower = features_of("encoder", options.encoder, config, given)
            self.encoder = None if tower is None else PooledTower(tower, len(spec.cameras))
        elif options.takes_encoder:
            self.encoder = FrozenEncoder(options.encoder, config, given)
        self.standardize_action = Standardize("action", given.statistics, spec)
        self.standardize_robot_state = Standardize("robot_state", given.statistics, spec)
        order = [*spec.continuous, *spec.binary]
        for name, dims in (("continuous", spec.continuous), ("binary", spec.binary)):
            self.register_buffer(name, torch.tensor(dims, dtype=torch.long), persistent=False)
        self.register_buffer("places", torch.tensor(order, dtype=torch.long).argsort(), persistent=False)

    def add_world(self, config: Config, width: int) -> None:
        """`make_world` of the encoder's states, where there is one; called last."""
        if self.encoder is None:
            return
        tokens, numbers = self.encoder.state_shape
        self.make_world(self.options, config, width, tokens * numbers)
        if self.options.foretells_features and not self.sees_by_tower:  # kept features stand beside the pictures then
            self.needs = dataclasses.replace(self.needs, views=("pixels", "features"))

    @property
    def state_encoder(self) -> nn.Module | None:
        return self.encoder.coder if isinstance(self.encoder, FrozenEncoder) else None

    def state_of(self, obs: ObservationBatch) -> Float[Tensor, "B F"]:
        """The encoder's state: the one that came with the observation, where states are kept."""
        if obs.latent is not None:
            return obs.latent.float()
        if self.encoder is None:
            raise ValueError("a state is asked for, but the policy holds no encoder")
        return self.encoder.state(obs).flatten(1)

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """Deterministic."""
        return None

    def wanted(self, batch: Batch) -> dict[str, Tensor]:
        """``wanted`` [B K P] standardized, ``closing`` [B K G], ``keep`` [B K] (no padding)."""
        return {
            "wanted": self.shown(batch).index_select(-1, self.continuous),
            "closing": is_closing(batch.chunk.index_select(-1, self.binary)),
            "keep": ~batch.is_pad,
        }

    def shown(self, batch: Batch) -> Float[Tensor, "B K A"]:
        """Standardized actions, 0 where there is padding: what is hidden there is NaN, and so would its gradient be
        where a mask comes later.
        """
        return torch.where(batch.is_pad.unsqueeze(-1), 0.0, self.standardize_action(batch.chunk))

    def pose_loss(self, terms: Terms) -> Float[Tensor, ""]:
        """Error of the pose over the steps that are not padding."""
        return pose_error(self.options.loss, terms["pose"], terms["wanted"], terms["keep"])

    def loss(self, terms: Terms) -> LossParts:
        """Pose error + weighted gripper cross entropy over the steps that are not padding; with a world head + its
        weighted error.

        Parts: ``pos_rot_loss``, ``gripper_loss`` (unweighted), ``action_loss`` (both); monitor ``gripper_accuracy``,
        where there is a gripper; those of `WorldHead.loss`.
        """
        pose = self.pose_loss(terms)
        gripper, right = gripper_terms(terms["logits"], terms["closing"], terms["keep"])
        total = pose + self.options.gripper_weight * gripper
        parts = {"pos_rot_loss": pose, "gripper_loss": gripper, "action_loss": total}
        if len(self.binary):
            parts["gripper_accuracy"] = right
        parts = {name: part.detach() for name, part in parts.items()}
        return self.world_loss(LossParts(total, parts, terms["keep"].sum().float()), self.options, terms)

    def monitors(self, terms: Terms) -> dict[str, float]:
        """``gripper_change_f1``, where the gripper changes at all; those of the world head."""
        return {**change_monitor(terms), **self.world_monitors(terms)}

    def acted(self, pose: Float[Tensor, "B K P"], logits: Float[Tensor, "B K G"]) -> Acted:
        """A decision in action units, its dimensions in the spec's order."""
        standardized = torch.cat([pose.float(), command(logits.float())], dim=-1).index_select(-1, self.places)
        return Acted(self.standardize_action.inverse(standardized), torch.sigmoid(logits.float()))

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I ..."]:
        """What depends on the instruction alone."""
        raise NotImplementedError

    def decide(self, scene: Scene) -> Acted:
        """Chunks of a scene."""
        raise NotImplementedError

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        """Of every row by itself."""
        raise NotImplementedError

    def matrices(self) -> Iterator[Tensor]:
        """The weights of large matrix products, which may be stored in bfloat16."""
        raise NotImplementedError


def seen_by(key: str, vision: str, width: int, config: Config, given: Given) -> TowerVision | None:
    """Tokens of the frozen tower that the option `key` names, of `width`; None for a stem of the policy's own.

    Raises UsageError where ``model.vision`` is another one.
    """
    if vision == CONV:
        return None
    require_vision(key, vision, config.model.vision)
    return TowerVision(config.model, given.backbone, given.spec, width)


def features_of(key: str, vision: str, config: Config, given: Given) -> FrozenFeatures | None:
    """As `seen_by`, the features themselves."""
    if vision == CONV:
        return None
    require_vision(key, vision, config.model.vision)
    return FrozenFeatures(config.model, given.backbone)


def parameters_of(*modules: nn.Module) -> Iterator[Tensor]:
    """All parameters of modules that compute in the dtype of their weights."""
    for module in modules:
        yield from module.parameters()


def scale_language(language: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Entries of about 1, whatever encoder made the vector."""
    scaled: Tensor = nn.functional.normalize(language, dim=-1) * language.shape[-1] ** 0.5
    return scaled
