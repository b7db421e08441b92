"""An instruction that a policy was not trained on, put into words that it was: by the encoder that made its others."""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statevla.encoders.table import load_text_encoder
from statevla.encoders.text import TextEncoder
from stores.errors import StaleKey, UsageError

log = logging.getLogger(__name__)

SAME_COSINE = 0.999
"""The encoder at hand must give a trained instruction its stored vector again, but for rounding on another machine."""


@dataclass(frozen=True)
class Nearest:
    """The embedding of a new instruction, float32 [L], and the trained instruction nearest to it by cosine."""

    vector: NDArray[np.float32]
    instruction: str
    cosine: float


def encoder_of(recorded: Mapping[str, str]) -> TextEncoder:
    """The text encoder that a store or checkpoint records as id and revision.

    Raises UsageError where its weights cannot be had, StaleKey where those at hand are others.
    """
    name, _, model = recorded["encoder"].partition(":")
    kind = {"clip": "clip", "minilm": "minilm", "hashed-word-ngrams": "hashed"}.get(name)
    if kind is None:
        raise UsageError(f"text encoder {recorded['encoder']!r}: not one that is here")
    encoder = _load(kind, model if kind == "clip" else None)
    if encoder.revision != recorded["revision"]:
        raise StaleKey(f"text encoder {encoder.id}: trained with {recorded['revision']}, here is {encoder.revision}")
    return encoder


@functools.lru_cache(maxsize=2)
def _load(kind: str, model: str | None) -> TextEncoder:
    return load_text_encoder(kind, model)


def embed(instruction: str, known: Mapping[str, NDArray[np.float32]], encoder: TextEncoder) -> Nearest:
    """`instruction` as the policy that knows `known` (vectors by instruction) would have been given it.

    Raises StaleKey where the encoder no longer gives a known instruction its vector.
    """
    names = sorted(known)
    encode = encoder.for_store(names)
    vector = encode([instruction])[0]
    cosines = [_cosine(vector, known[name]) for name in names]
    best = int(np.argmax(cosines))
    again = encode([names[best]])[0]
    if again.shape != known[names[best]].shape or _cosine(again, known[names[best]]) < SAME_COSINE:
        raise StaleKey(f"text encoder {encoder.id}: it no longer gives {names[best]!r} the vector that was trained on")
    return Nearest(vector, names[best], cosines[best])


def warn(instruction: str, nearest: Nearest, encoder: TextEncoder) -> None:
    """Say on the log that a policy is asked for something that it was not trained on."""
    log.warning(
        "warning: instruction %r was not trained on; embedded by %s, the nearest trained one is %r (cosine %.2f)",
        instruction, encoder.id, nearest.instruction, nearest.cosine,
    )  # fmt: skip


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    if a.shape != b.shape:
        return -1.0
    return float(a.astype(np.float64) @ b / max(float(np.linalg.norm(a)) * float(np.linalg.norm(b)), 1e-12))
