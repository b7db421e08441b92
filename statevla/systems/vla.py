"""A vision-language-action transformer with its own readout (the chapter's, contradictions resolved).

Patches of every camera, the instruction and the robot's state become tokens; after fusion a backbone lets a readout
token (head ``chunked``: one query a step) look at all of them, so that the action can depend on the instruction.

Legend: B batch, C cameras, P patches, D width, N tokens, K chunk, A pose dimensions, I instructions.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from statevla.models.attention import Backbone, CrossLayer, Queries
from statevla.models.heads import ChunkOutput, split_output
from statevla.models.stems import PatchStem
from statevla.models.tokenizer import dtype_of, embedding, prepare_pixels

FUSIONS = ("concat", "cross_attention", "perceiver")
HEADS = ("continuous", "discrete", "chunked")
CROSS_LAYERS = 2


class VisionTokens(nn.Module):
    """Patches of each camera through blocks whose weights the cameras share."""

    def __init__(
        self, size: int, patch: int, width: int, heads: int, hidden: int, blocks: int, cameras: int, dropout: float
    ) -> None:
        super().__init__()
        self.size = size
        self.stems = nn.ModuleList(PatchStem(size, patch, width) for _ in range(cameras))
        self.position = embedding(cameras, (size // patch) ** 2, width)
        self.camera = embedding(cameras, width)
        self.blocks = Backbone(width, heads, hidden, blocks, dropout)

    def forward(self, images: UInt8[Tensor, "B C H W 3"]) -> Float[Tensor, "B N D"]:
        """All cameras' tokens, one camera after the other."""
        tokens = []
        for number, stem in enumerate(self.stems):
            patches = stem(prepare_pixels(images[:, number], self.size)).float()
            tokens.append(self.blocks(patches + self.position[number] + self.camera[number]))
        return torch.cat(tokens, dim=1)


class VlaNet(nn.Module):
    """robot, language: widths. pose: continuous action dimensions. bins: of head ``discrete``."""

    def __init__(
        self, *, size: int, patch: int, width: int, heads: int, vision_blocks: int, blocks: int, cameras: int,
        robot: int, language: int, chunk: int, pose: int, fusion: str, head: str, queries: int = 16, bins: int = 256,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        hidden = 4 * width
        self.chunk, self.pose, self.bins, self.kind, self.fusion = chunk, pose, bins, head, fusion
        self.vision = VisionTokens(size, patch, width, heads, hidden, vision_blocks, cameras, dropout)
        self.language, self.language_embedding = nn.Linear(language, width), embedding(1, width)
        self.robot = nn.Sequential(nn.Linear(robot, width), nn.GELU(), nn.Linear(width, width))
        self.robot_embedding, self.readout = embedding(1, width), embedding(1, width)
        self.cross = nn.ModuleList()
        if fusion == "cross_attention":
            self.cross.extend(CrossLayer(width, heads, hidden) for _ in range(CROSS_LAYERS))
        if fusion == "perceiver":
            self.cross.append(CrossLayer(width, heads, hidden))
            self.latents = Queries(queries, width)
        self.backbone = Backbone(width, heads, hidden, blocks, dropout)
        if head == "chunked":
            self.steps = Queries(chunk, width)
        outputs = {"continuous": chunk * (pose + 1), "discrete": chunk * pose * bins, "chunked": pose + 1}[head]
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.out = nn.Linear(width, outputs)
        if head == "discrete":
            nn.init.zeros_(self.out.weight)  # all bins alike at the start: the first loss is ln N
            nn.init.zeros_(self.out.bias)
            self.gripper = nn.Linear(width, chunk)

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I D"]:
        """The token of each instruction."""
        out: Tensor = self.language(language) + self.language_embedding[0]
        return out

    def tokens(
        self, images: UInt8[Tensor, "B C H W 3"], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B N D"]:
        """What the backbone reads, readouts first."""
        rows = len(robot)
        vision = self.vision(images)
        text = torch.stack([condition, self.robot(robot) + self.robot_embedding[0]], dim=1)
        readout = self.steps(rows) if self.kind == "chunked" else self.readout.expand(rows, 1, -1)
        if self.kind == "chunked":
            readout = readout + self.readout  # the one readout token tells the steps from everything else
        if self.fusion == "cross_attention":
            query = torch.cat([readout, text], dim=1).to(dtype_of(self.cross))
            for layer in self.cross:
                query = layer(query, vision.to(query.dtype))
            return torch.cat([query, vision.to(query.dtype)], dim=1)
        everything = torch.cat([text, vision.to(text.dtype)], dim=1)
        if self.fusion == "perceiver":
            latents = self.latents(rows).to(dtype_of(self.cross))
            everything = self.cross[0](latents, everything.to(latents.dtype))
        return torch.cat([readout.to(everything.dtype), everything], dim=1)

    def read(
        self, images: UInt8[Tensor, "B C H W 3"], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B Q D"]:
        """The readouts after the backbone; Q is K with head ``chunked``, else 1. robot: standardized."""
        readouts = self.chunk if self.kind == "chunked" else 1
        out: Tensor = self.hidden(self.backbone(self.tokens(images, robot, condition))[:, :readouts])
        return out

    def forward(
        self, images: UInt8[Tensor, "B C H W 3"], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B D"]
    ) -> ChunkOutput:
        """Pose and gripper logits of a head that regresses."""
        out = self.out(self.read(images, robot, condition)).float()
        return split_output(out.flatten(1), self.chunk)

    def bin_logits(
        self, images: UInt8[Tensor, "B C H W 3"], robot: Float[Tensor, "B R"], condition: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B K A N"], Float[Tensor, "B K"]]:
        """Head ``discrete``: logits of the bins, and of the gripper."""
        read = self.read(images, robot, condition)[:, 0]
        return self.out(read).float().view(len(read), self.chunk, self.pose, self.bins), self.gripper(read).float()
