"""Acting: scenes in, chunks out, with everything prepared that does not change from one call to the next.

What depends on the policy alone (σ tokens of the sampling steps) or on the instruction alone (its token) is computed
when the `Actor` is built. On an NVIDIA GPU the rest, from pixels to actions, is captured once as a CUDA graph for each
small batch size and replayed: one launch instead of some hundred, inputs and outputs in memory that stays where it is.

Legend: B batch, H height, W width, D width of the model, K chunk, A numbers of an action, of them C continuous, R of a
robot state, L of an embedding, I instructions.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from statevla.models.encoder import MambaBlock
from statevla.models.flow import GatedMlp
from statevla.systems.flow_matching import Acted, PolicyModel
from stores.errors import UsageError

GRAPH_ROWS: Final = 8
"""Largest batch that is captured. Larger ones keep a GPU busy without."""
WARM_UPS: Final = 3
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Scene(NamedTuple):
    """What one call decides on, all on the policy's device. language: `Actor.language_tokens`. noise: normal."""

    images: tuple[UInt8[Tensor, "B _ _ 3"], ...]
    robot_state: Float[Tensor, "B R"]
    language: Float[Tensor, "B D"]
    noise: Float[Tensor, "B K C"]

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        return [*self.images, self.robot_state, self.language, self.noise]


class Actor:
    """A policy prepared for acting. Its weights must not change afterwards.

    Args:
        graphs: capture CUDA graphs, where the policy is on a GPU.
    """

    def __init__(self, model: PolicyModel, *, graphs: bool = True) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self._graphs = graphs and self.device.type == "cuda"
        self._captured: dict[tuple[int, ...], Captured] = {}
        with torch.inference_mode():
            self._levels = model.flow.level_tokens(model.config.euler_steps)

    def language_tokens(self, vectors: Float[Tensor, "I L"]) -> Float[Tensor, "I D"]:
        """The token of each instruction's embedding."""
        with torch.inference_mode():
            return self.model.encoder.tokenizer.language_token(vectors.to(self.device))

    def act(self, scene: Scene) -> Acted:
        """Chunks of a scene; a pure function of it. The tensors are the caller's to keep."""
        with torch.inference_mode():
            if not self._graphs or len(scene.noise) > GRAPH_ROWS:
                return self._decide(scene)
            shape = tuple(size for frames in scene.images for size in frames.shape)
            if shape not in self._captured:
                self._captured[shape] = Captured(self._decide, scene)
            return self._captured[shape](scene)

    def _decide(self, scene: Scene) -> Acted:
        tokens = self.model.encoder.tokenizer.assemble(scene.language, scene.images, scene.robot_state)
        return self.model.sample(self.model.encode_tokens(tokens), scene.noise, self._levels)


def capture(run: Callable[[], Acted]) -> tuple[Acted, Callable[[], None]]:
    """Record what `run` launches as a CUDA graph: its outputs, and a call that computes them again in their place."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):  # kernels compile and libraries allocate: neither may happen while capturing
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        acted = run()
    return acted, graph.replay


class Captured:
    """`decide` on scenes of one shape: inputs are copied to a fixed place, the recording is replayed."""

    def __init__(self, decide: Callable[[Scene], Acted], example: Scene) -> None:
        images = tuple(frames.clone() for frames in example.images)
        self._scene = Scene(images, example.robot_state.clone(), example.language.clone(), example.noise.clone())
        self._acted, self._replay = capture(lambda: decide(self._scene))

    def __call__(self, scene: Scene) -> Acted:
        for mine, new in zip(self._scene.tensors(), scene.tensors(), strict=True):
            mine.copy_(new, non_blocking=True)
        self._replay()
        chunk, closing = self._acted  # overwritten by the next call
        return Acted(chunk.clone(), None if closing is None else closing.clone())


def torch_dtype(name: str) -> torch.dtype:
    """float32 or bfloat16 by name. Raises UsageError for another."""
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def convert(model: PolicyModel, dtype: torch.dtype) -> None:
    """Let the model compute its large matrix products in `dtype`; in place, once, before an `Actor` is made of it.

    With bfloat16 the large matrices are stored so. Norms, the residual stream, the scan's parameters and sums,
    embeddings and the small outer layers stay float32. Converting here, and not in every call by autocast, is what
    makes it faster on a CPU.
    """
    for module in model.modules():
        if isinstance(module, MambaBlock):
            layer = module.mamba
            for matrix in (layer.in_proj, layer.x_proj, layer.out_proj):
                matrix.to(dtype)
            layer.dt_proj.weight = nn.Parameter(layer.dt_proj.weight.to(dtype), requires_grad=False)
        elif isinstance(module, GatedMlp):
            for matrix in (module.gate, module.up, module.down):
                matrix.to(dtype)
    model.encoder.tokenizer.vision.cameras.to(dtype)
    if model.flow.context is not None:
        model.flow.context.to(dtype)
