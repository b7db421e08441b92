"""What a system offers to act: one scene in, one decision out, and nothing remembered in between.

Legend: B batch, K chunk, R numbers of a robot state, A of an action, of them G binary, L of an embedding, I
instructions.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from statevla.models.standardize import Standardize

NOTHING: Final[Mapping[str, Tensor]] = MappingProxyType({})


class Scene(NamedTuple):
    """What one call decides on, all on the policy's device.

    images: RGB [B, H, W, 3] a camera, in the spec's order. condition: `PolicyNet.condition` of each row's instruction.
    noise: normal, ``[B, *noise_shape]``; None for a policy that draws none. goal: pictures of what is to be reached,
    uint8 [B, C, H, W, 3], where the system takes them; None: the instruction says it. prefix and given: actions that
    are already committed, and which. memory: what the system handed out before, where it remembers.
    """

    images: tuple[UInt8[Tensor, "B _ _ 3"], ...]
    robot_state: Float[Tensor, "B R"]
    condition: Float[Tensor, "B ..."]
    noise: Float[Tensor, "B ..."] | None
    goal: Tensor | None = None
    prefix: Float[Tensor, "B K A"] | None = None
    given: Bool[Tensor, "B K"] | None = None
    memory: Tensor | None = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of them, pictures first."""
        return (*self.images, *self[1:])

    @classmethod
    def of_tensors(cls, tensors: Sequence[Tensor | None], cameras: int) -> "Scene":
        """Inverse of `tensors`."""
        images = tuple(frames for frames in tensors[:cameras] if frames is not None)
        return cls(images, *tensors[cameras:])  # type: ignore[arg-type]


class Acted(NamedTuple):
    """What a policy wants to do.

    chunk: action units, continuous dimensions not clipped, binary ones -1 or +1. closing: probability of +1 (to close)
    of each binary dimension, where the policy tells one. extras: whatever else it has to show (a predicted state, its
    memory), by name.
    """

    chunk: Float[Tensor, "B K A"]
    closing: Float[Tensor, "B K G"] | None
    extras: Mapping[str, Tensor] = NOTHING


@runtime_checkable
class PolicyNet(Protocol):
    """A network that acts. Pure: equal scenes give equal decisions, and memory goes in and comes out."""

    if TYPE_CHECKING:  # from Python 3.12 on, isinstance does not see what a module keeps among its submodules

        @property
        def standardize_action(self) -> Standardize:
            """Between action units and the space that the policy was trained in."""
            ...

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """Of one row's noise; None for a deterministic policy."""
        ...

    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I ..."]:
        """What of `decide` depends on the instruction alone; called once an instruction."""
        ...

    def decide(self, scene: Scene) -> Acted:
        """Chunks of a scene. Shapes follow from the scene's: it can be recorded as a CUDA graph."""
        ...

    def matrices(self) -> Iterator[Tensor]:
        """The weights of large matrix products, which may be stored in bfloat16."""
        ...
