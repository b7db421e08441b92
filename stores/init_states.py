"""From where demonstrations start: which of the benchmark's initial states a store was made of, so that an evaluation
can begin past them. A state that is trained on and then evaluated on measures memory.

The manifest's sources name it for every episode (``init_states``: by demonstration, a number as text, or a hash of the
simulator's first state where the file has no number).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

HASH: Final = "sha256:"


def init_state_hash(state: NDArray[Any]) -> str:
    """Of a simulator's flat state [S], whatever its float type."""
    return HASH + hashlib.sha256(np.ascontiguousarray(state, "<f8").tobytes()).hexdigest()[:32]


def init_states_by_task(sources: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Task name -> initial states that its demonstrations start from, sorted, each once. sources: of a manifest."""
    found: dict[str, set[str]] = {}
    for source in sources:
        for task, states in source.get("init_states", {}).items():
            found.setdefault(task, set()).update(state for state in states.values() if state)
    return {task: sorted(states, key=_order) for task, states in sorted(found.items()) if states}


def _order(state: str) -> tuple[bool, int, str]:
    return (not state.isdecimal(), int(state) if state.isdecimal() else 0, state)


def numbers_of(states: Iterable[str], hashes: Sequence[str] = ()) -> set[int]:
    """Which of the benchmark's states those are: the numbered ones, and the hashed ones by where `hashes` has them.

    hashes: of all of a task's benchmark states, in order; states that are equal count as used together.
    """
    known = set(states)
    return {int(state) for state in known if state.isdecimal()} | {n for n, h in enumerate(hashes) if h in known}


def first_free(states: Iterable[str], hashes: Sequence[str] = ()) -> int:
    """The first number past all that `numbers_of` finds; 0 where it finds none."""
    return max(numbers_of(states, hashes), default=-1) + 1
