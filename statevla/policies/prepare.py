"""Acting: scenes in, chunks out, with everything prepared that does not change from one call to the next.

What depends on the instruction alone is computed once an instruction (`Actor.condition`). On an NVIDIA GPU the rest,
from pixels to actions, is captured once as a CUDA graph for each small batch size and replayed: one launch instead of
some hundred, inputs and outputs in memory that stays where it is.

Legend: B batch, I instructions.
"""

import threading
from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from statevla.systems.acting import Acted, PolicyNet, Scene
from stores.errors import UsageError

GRAPH_ROWS: Final = 8
"""Largest batch that is captured. Larger ones keep a GPU busy without."""
WARM_UPS: Final = 3
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Actor:
    """A policy prepared for acting. Its weights must not change afterwards. Threads may share it.

    Args:
        graphs: capture CUDA graphs, where the policy is on a GPU.
    """

    def __init__(self, net: PolicyNet, *, graphs: bool = True) -> None:
        self.net = net
        weights = list(net.parameters()) if isinstance(net, nn.Module) else []
        self.device = weights[0].device if weights else torch.device("cpu")
        self.parameters = sum(weight.numel() for weight in weights)
        self._graphs = graphs and self.device.type == "cuda"
        self._captured: dict[tuple[tuple[int, ...] | None, ...], Captured] = {}
        self._lock = threading.Lock()

    def condition(self, vectors: Float[Tensor, "I L"]) -> Float[Tensor, "I ..."]:
        """`PolicyNet.condition` of each instruction's embedding, on the policy's device."""
        with torch.inference_mode():
            return self.net.condition(vectors.to(self.device))

    def act(self, scene: Scene) -> Acted:
        """Chunks of a scene; a pure function of it. The tensors are the caller's to keep."""
        with torch.inference_mode():
            if not self._graphs or len(scene.robot_state) > GRAPH_ROWS:
                return self.net.decide(scene)
            shapes = tuple(None if tensor is None else tuple(tensor.shape) for tensor in scene.tensors())
            with self._lock:  # a recording has one place for its inputs and one for its outputs
                if shapes not in self._captured:
                    self._captured[shapes] = Captured(self.net.decide, scene)
                return self._captured[shapes](scene)


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
        copies = [None if tensor is None else tensor.clone() for tensor in example.tensors()]
        self._scene = Scene.of_tensors(copies, len(example.images))
        self._device = example.robot_state.device
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
        for mine, new in zip(self._scene.tensors(), scene.tensors(), strict=True):
            if mine is not None and new is not None:
                mine.copy_(new, non_blocking=True)
        self._replay()
        chunk, closing, extras = self._acted  # overwritten by the next call
        copies = {name: tensor.clone() for name, tensor in extras.items()}
        return Acted(chunk.clone(), None if closing is None else closing.clone(), copies)


def torch_dtype(name: str) -> torch.dtype:
    """float32 or bfloat16 by name. Raises UsageError for another."""
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def choose_device(name: str, local: int = 0) -> torch.device:
    """``auto``: CUDA where there is one. local: a process's number on its machine, which chooses among its GPUs.

    Raises UsageError on a device that torch does not have here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is no torch device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: this torch finds no CUDA device; use auto or cpu")
    if device.type == "cuda" and device.index is None:
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"this machine has {torch.cuda.device_count()} CUDA device(s), but rank {local} of it wants its own; "
                "start fewer ranks, or --set training.device=cpu"
            )
        device = torch.device("cuda", local)
    return device


def convert(net: PolicyNet, dtype: torch.dtype) -> None:
    """Let a policy compute its large matrix products in `dtype`; in place, once, before an `Actor` is made of it.

    With bfloat16 the large matrices (`PolicyNet.matrices`) are stored so. Converting here, and not in every call by
    autocast, is what makes it faster on a CPU.
    """
    for weight in net.matrices():
        weight.data = weight.data.to(dtype)
