"""Options of the head that foretells a frozen encoder's later states, which policies of several kinds share."""

from dataclasses import dataclass
from typing import Final

from statevla.config.options import option

NO_TARGET: Final = "none"
MOTIONS: Final = "motions"
LATENT: Final = "latent"
FORETOLD: Final = ("state", "motion", MOTIONS, LATENT)
TARGETS: Final = (NO_TARGET, *FORETOLD)
TARGET: Final = "world_target"
HEAD: Final = (TARGET, FORETOLD)
"""What an option of the head is seen beside."""


@dataclass(frozen=True)
class WorldOptions:
    """Beside `SystemOptions`, of every policy that may have the head."""

    world_target: str = option(
        NO_TARGET, "what a further head foretells in training: a frozen encoder's later state, how far it moves until "
        "then, every motion on the way, frame by frame, or a latent action learned from both; the last two from kept "
        "states", choices=TARGETS,
    )  # fmt: skip
    world_weight: float = option(0.1, "weight of that head's error", least=0, beside=HEAD)
    world_horizon: int | None = option(
        None, "steps that it looks ahead; nothing: model.action_seq_len", least=1, beside=HEAD
    )
    world_components: int = option(
        0,
        "principal components that each of world_target=motions is reduced to; 0: its numbers as they are",
        least=0,
        beside=(TARGET, (MOTIONS,)),
    )
    world_code: int = option(
        16, "numbers of the latent action of world_target=latent", least=1, beside=(TARGET, (LATENT,))
    )
    world_shuffled: bool = option(
        False, "a control: in training each row has the target of another episode's", beside=HEAD
    )

    @property
    def has_world(self) -> bool:
        """Whether there is such a head."""
        return self.world_target != NO_TARGET
