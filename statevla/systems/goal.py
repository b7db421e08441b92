"""A policy that is told what to reach by language or by a picture, row by row.

Fusion ``early`` puts the goal's picture beside the current one, channel by channel, so that the first layer can compare
pixels (black where the row is told by language); ``late`` adds the goal's patches as tokens. A learned embedding says
which kind a row is. Rows that are told by language do not see the goal's pixels at all.

Legend: B batch, C cameras, D width, N tokens, P patches, K chunk, I instructions.
"""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from statevla.models.attention import Backbone
from statevla.models.heads import ChunkOutput, split_output
from statevla.models.stems import PatchStem
from statevla.models.tokenizer import embedding, prepare_pixels

FUSIONS = ("early", "late", "state")


class GoalNet(nn.Module):
    """robot, language: widths. outputs: numbers a step. state: flat width of a goal state, with fusion ``state``."""

    def __init__(
        self, *, size: int, patch: int, width: int, heads: int, blocks: int, cameras: int, robot: int, language: int,
        chunk: int, outputs: int, fusion: str = "early", state: int = 0, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.size, self.chunk, self.fusion = size, chunk, fusion
        channels = 6 if fusion == "early" else 3
        self.stems = nn.ModuleList(PatchStem(size, patch, width, channels) for _ in range(cameras))
        self.position = embedding(cameras, (size // patch) ** 2, width)
        self.camera = embedding(cameras, width)
        self.kind = embedding(2, width)
        """Told by language, told by a picture."""
        self.language = nn.Linear(language, width)
        self.robot = nn.Sequential(nn.Linear(robot, width), nn.GELU(), nn.Linear(width, width))
        self.robot_embedding, self.readout = embedding(1, width), embedding(1, width)
        if fusion == "state":
            self.goal_state = nn.Linear(state, width)
        self.backbone = Backbone(width, heads, 4 * width, blocks, dropout)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, chunk * outputs))

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I D"]:
        """The token of each instruction."""
        out: Tensor = self.language(language) + self.kind[0]
        return out

    def goal_pixels(
        self, goal: UInt8[Tensor, "B C H W 3"], by_image: Bool[Tensor, " B"], camera: int
    ) -> Float[Tensor, "B 3 S S"]:
        """The goal's pixels, zero in rows that are told by language."""
        pixels = prepare_pixels(goal[:, camera], self.size)
        return torch.where(by_image[:, None, None, None], pixels, 0.0)

    def forward(
        self, images: UInt8[Tensor, "B C H W 3"], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B D"],
        goal: UInt8[Tensor, "B C H W 3"] | Float[Tensor, "B S"], by_image: Bool[Tensor, " B"],
    ) -> ChunkOutput:  # fmt: skip
        """robot: standardized. goal: pictures, or with fusion ``state`` a flat state. by_image: rows that it is for."""
        picture = by_image.unsqueeze(1)
        told = torch.where(picture, self.kind[1], condition)
        tokens = [self.readout.expand(len(robot), 1, -1), (self.robot(robot) + self.robot_embedding[0]).unsqueeze(1)]
        if self.fusion == "state":
            told = told + torch.where(picture, self.goal_state(goal), 0.0)
        for number, stem in enumerate(self.stems):
            now = prepare_pixels(images[:, number], self.size)
            place = self.position[number] + self.camera[number]
            if self.fusion == "early":
                now = torch.cat([now, self.goal_pixels(goal, by_image, number)], dim=1)
            tokens.append(stem(now).float() + place)
            if self.fusion == "late":
                there = stem(self.goal_pixels(goal, by_image, number)).float() + place + self.kind[1]
                tokens.append(torch.where(by_image[:, None, None], there, self.kind[0]))
        tokens.append(told.unsqueeze(1))
        out: Tensor = self.head(self.backbone(torch.cat(tokens, dim=1))[:, 0])
        return split_output(out.float(), self.chunk)
