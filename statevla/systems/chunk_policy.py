"""What the policies that read pixels and regress a chunk share: loss, decision, statistics. Not a system by itself.

Legend: B batch, C cameras, K chunk, P continuous dimensions, G binary ones, R rows of a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from statevla.config.options import option
from statevla.config.schema import SystemOptions
from statevla.data.batch import Batch
from statevla.models.gripper import command, is_closing
from statevla.models.heads import gripper_terms, pose_error
from statevla.models.losses import LossParts
from statevla.models.monitors import change_monitor
from statevla.models.standardize import Standardize
from statevla.models.stems import GROUPS
from statevla.systems.acting import Acted, Scene
from statevla.systems.system import Given, Noise, Objective, Terms
from stores.errors import UsageError


@dataclass(frozen=True)
class ChunkOptions(SystemOptions):
    """Of every policy that regresses a chunk."""

    learning_rate: float = option(1e-3, "of this system; not given: training.learning_rate if that is", above=0)
    loss: str = option("l1", "of the pose", choices=("l1", "mse"))
    gripper_weight: float = option(1.0, "weight of the gripper's cross entropy", least=0)


class ChunkPolicy(Objective):
    """`predict` gives a chunk in training and in acting alike; subclasses add what their training has beside it."""

    options: ChunkOptions

    continuous: Tensor
    binary: Tensor
    places: Tensor

    def __init__(self, options: ChunkOptions, given: Given) -> None:
        super().__init__()
        self.options, spec = options, given.spec
        self.standardize_action = Standardize("action", given.statistics, spec)
        self.standardize_robot_state = Standardize("robot_state", given.statistics, spec)
        order = [*spec.continuous, *spec.binary]
        for name, dims in (("continuous", spec.continuous), ("binary", spec.binary)):
            self.register_buffer(name, torch.tensor(dims, dtype=torch.long), persistent=False)
        self.register_buffer("places", torch.tensor(order, dtype=torch.long).argsort(), persistent=False)

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """Deterministic."""
        return None

    def wanted(self, batch: Batch) -> dict[str, Tensor]:
        """``wanted`` [B K P] standardized, ``closing`` [B K G], ``keep`` [B K] (no padding)."""
        return {
            "wanted": self.standardize_action(batch.chunk).index_select(-1, self.continuous),
            "closing": is_closing(batch.chunk.index_select(-1, self.binary)),
            "keep": ~batch.is_pad,
        }

    def pose_loss(self, terms: Terms) -> Float[Tensor, ""]:
        """Error of the pose over the steps that are not padding."""
        return pose_error(self.options.loss, terms["pose"], terms["wanted"], terms["keep"])

    def loss(self, terms: Terms) -> LossParts:
        """Pose error + weighted gripper cross entropy over the steps that are not padding.

        Parts: ``pos_rot_loss``, ``gripper_loss`` (unweighted), ``action_loss``; monitor ``gripper_accuracy``.
        """
        pose = self.pose_loss(terms)
        gripper, right = gripper_terms(terms["logits"], terms["closing"], terms["keep"])
        total = pose + self.options.gripper_weight * gripper
        parts = {"pos_rot_loss": pose, "gripper_loss": gripper, "action_loss": total, "gripper_accuracy": right}
        steps = terms["keep"].sum().float()
        return LossParts(total, {name: part.detach() for name, part in parts.items()}, steps)

    def monitors(self, terms: Terms) -> dict[str, float]:
        """``gripper_change_f1``, where the gripper changes at all."""
        return change_monitor(terms)

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


def parameters_of(*modules: nn.Module) -> Iterator[Tensor]:
    """All parameters of modules that compute in the dtype of their weights."""
    for module in modules:
        yield from module.parameters()


def scale_language(language: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Entries of about 1, whatever encoder made the vector."""
    scaled: Tensor = nn.functional.normalize(language, dim=-1) * language.shape[-1] ** 0.5
    return scaled


def stages_of(key: str, text: str) -> tuple[int, ...]:
    """``16-32-64`` -> (16, 32, 64). Raises UsageError naming `key` when it is not widths of 8, 16, … channels."""
    parts = text.split("-")
    if not all(part.isdigit() and int(part) > 0 and int(part) % GROUPS == 0 for part in parts):
        raise UsageError(f"{key}: expected widths that are multiples of {GROUPS}, such as 16-32-64, got {text!r}")
    return tuple(int(part) for part in parts)
