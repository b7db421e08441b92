"""Features of an encoder that was trained before, for those that are trained on them.

Legend: B batch, C cameras, P patches, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from statevla.data.batch import ObservationBatch
from statevla.models.encoder import StateEncoder
from statevla.models.tokenizer import MODALITIES


class FrozenTokens(nn.Module):
    """What a frozen state encoder's blocks give at the places of the patches: features of one that was trained before.

    A causal encoder: those of a camera have seen the instruction, the robot state and the cameras before it.
    """

    def __init__(self, encoder: StateEncoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        cameras, patches, width = encoder.tokenizer.position_cameras.shape
        self.cameras, self.expected = cameras, (patches, width)

    @torch.no_grad()
    def of(self, obs: ObservationBatch) -> Float[Tensor, "B C P D"]:
        """Of whole observations."""
        first, (patches, width) = len(MODALITIES), self.expected
        tokens: Tensor = self.encoder(obs).tokens
        return tokens[:, first : first + self.cameras * patches].reshape(len(tokens), self.cameras, patches, width)

    def train(self, mode: bool = True) -> "FrozenTokens":
        """It stays as it acts."""
        return super().train(False)
