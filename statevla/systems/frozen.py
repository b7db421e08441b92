"""The frozen state encoder that a policy may hold: one of the table, without what only its training needs.

Legend: B batch, N tokens of a state, E numbers of a token.
"""

import dataclasses
from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from statevla.config import Config
from statevla.data.batch import ObservationBatch
from statevla.models.encoder import StateEncoder
from statevla.models.standardize import Standardize
from statevla.models.tokenizer import FrozenFeatures
from statevla.runs.files import MODEL, load_strict
from statevla.systems import stamo, temporal_jepa
from statevla.systems.system import Given

ENCODERS: Final[dict[str, Callable[[Config, Given], temporal_jepa.JepaModel | stamo.StamoModel]]] = {
    "temporal_jepa": temporal_jepa.build,
    "stamo": stamo.build_states,
}
FOR_TRAINING: Final = {
    "temporal_jepa": ("target", "predictor", "inverse", "standardize_action"),
    "stamo": ("decoder", "canvas", "camera"),
}
"""Parts of an encoder's model that its states do not need."""


class FrozenEncoder(nn.Module):
    """States of an encoder that is never trained. Its weights are the checkpoint's of ``given.parent``; without one
    they are still to be loaded, with those of the whole policy that holds it.
    """

    robot_state: Tensor

    def __init__(self, name: str, config: Config, given: Given) -> None:
        super().__init__()
        model = ENCODERS[name](config, dataclasses.replace(given, parent=None))
        for part in FOR_TRAINING[name]:
            delattr(model, part)
        if given.parent is not None:
            kept = {key: value for key, value in given.parent.tensors.items() if key in model.state_dict()}
            load_strict(model, kept, str(given.parent.folder / MODEL))
        self.model = model.requires_grad_(False)
        self.language_width = given.spec.language_width
        self.register_buffer("robot_state", Standardize("robot_state", given.statistics, given.spec).shift.clone())

    @property
    def state_shape(self) -> tuple[int, int]:
        """Tokens, numbers of a token."""
        return self.model.state_shape

    @property
    def coder(self) -> StateEncoder | stamo.StamoModel:
        """What makes the states, as whoever else keeps states of the same encoder has it."""
        return self.model.encoder if isinstance(self.model, temporal_jepa.JepaModel) else self.model

    @torch.no_grad()
    def state(self, obs: ObservationBatch) -> Float[Tensor, "B N E"]:
        """Of whole observations."""
        return self.model.state(obs).float()

    def state_of_pictures(self, images: tuple[UInt8[Tensor, "B _ _ 3"], ...]) -> Float[Tensor, "B N E"]:
        """Of pictures by themselves: an encoder that reads more sees the mean robot state of the training data, and no
        instruction.
        """
        rows = len(images[0])
        language = self.robot_state.new_zeros(rows, self.language_width)
        return self.state(ObservationBatch(images, self.robot_state.expand(rows, -1), language))

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """It stays as it acts."""
        return super().train(False)


class PooledTower(nn.Module):
    """What a world head may foretell in place of an encoder's states: a frozen tower's features, the mean of each
    camera's patches.
    """

    def __init__(self, tower: FrozenFeatures, cameras: int) -> None:
        super().__init__()
        self.tower, self.state_shape = tower, (cameras, tower.expected[1])

    @torch.no_grad()
    def state(self, obs: ObservationBatch) -> Float[Tensor, "B N E"]:
        """Of whole observations; N cameras, features E wide."""
        return self.tower.of(obs).float().mean(dim=2)
