"""Acting: scenes in, chunks out, with everything prepared that does not change from one call to the next.

What depends on the policy alone (σ tokens of the sampling steps) or on the instruction alone (its token) is computed
when the `Actor` is built. On an NVIDIA GPU the rest, from pixels to actions, is captured once as a CUDA graph for each
small batch size and replayed: one launch instead of some hundred, inputs and outputs in memory that stays where it is.

Legend: B batch, C cameras, H height, W width, D width of the model, K chunk, I instructions.
"""

import threading
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

    images: UInt8[Tensor, "B C H W 3"]
    robot_state: Float[Tensor, "B 9"]
    language: Float[Tensor, "B D"]
    noise: Float[Tensor, "B K 6"]


class Actor:
    """A policy prepared for acting. Its weights must not change afterwards. Threads may share it.

    Args:
        graphs: capture CUDA graphs, where the policy is on a GPU.
    """

    def __init__(self, model: PolicyModel, *, graphs: bool = True) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self._graphs = graphs and self.device.type == "cuda"
        self._captured: dict[tuple[int, ...], Captured] = {}
        self._lock = threading.Lock()
        with torch.inference_mode():
            self._levels = model.flow.level_tokens(model.config.euler_steps)

    def language_tokens(self, vectors: Float[Tensor, "I 512"]) -> Float[Tensor, "I D"]:
        """The token of each instruction's embedding."""
        with torch.inference_mode():
            return self.model.encoder.tokenizer.language_token(vectors.to(self.device))

    def act(self, scene: Scene) -> Acted:
        """Chunks of a scene; a pure function of it. The tensors are the caller's to keep."""
        with torch.inference_mode():
            if not self._graphs or len(scene.noise) > GRAPH_ROWS:
                return self._decide(scene)
            shape = tuple(scene.images.shape)
            with self._lock:  # a recording has one place for its inputs and one for its outputs
                if shape not in self._captured:
                    self._captured[shape] = Captured(self._decide, scene)
                return self._captured[shape](scene)

    def _decide(self, scene: Scene) -> Acted:
        tokens = self.model.encoder.tokenizer.assemble(scene.language, scene.images, scene.robot_state)
        return self.model.sample(self.model.encode_tokens(tokens), scene.noise, self._levels)


def capture(run: Callable[[], Acted], device: torch.device) -> tuple[Acted, Callable[[], None]]:
    """Record what `run` launches on `device` as a CUDA graph: its outputs, and a call that computes them again in their
    place, after all that any thread asked of the call before.

    Streams belong to a device: recorded on another than the current one, nothing would be, and the first outputs would
    be returned for ever. Other threads (loaders, other actors) may allocate meanwhile; `thread_local` lets them.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):  # kernels compile and libraries allocate: neither may happen while capturing
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            acted = run()
    return acted, graph.replay


class Captured:
    """`decide` on scenes of one shape: inputs are copied to a fixed place, the recording is replayed.

    Calls must not overlap; on a GPU, threads with streams of their own are put in line by an event.
    """

    def __init__(self, decide: Callable[[Scene], Acted], example: Scene) -> None:
        self._scene = Scene(*(tensor.clone() for tensor in example))
        self._device = example.noise.device
        self._acted, self._replay = capture(lambda: decide(self._scene), self._device)
        self._done = torch.cuda.Event() if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, scene: Scene) -> Acted:
        if self._done is None:
            return self._run(scene)
        with torch.cuda.device(self._device):
            self._done.wait()
            acted = self._run(scene)
            self._done.record()
        return acted

    def _run(self, scene: Scene) -> Acted:
        for mine, new in zip(self._scene, scene, strict=True):
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
