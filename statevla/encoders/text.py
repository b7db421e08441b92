"""The instruction encoders by name. Loading one imports what it needs, and not before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stores.errors import UsageError

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class TextEncoder:
    """A frozen map from text to a vector.

    id and revision: recorded with every vector, and how it was made; two stores with equal ones, and for a `fit` with
    equal instructions, have comparable vectors.
    width: numbers of a vector.
    encode: texts -> float32 [len(texts), width]; the vector of a text does not depend on the other texts.
    fit: for encoders whose vectors are taken relative to a store's instructions: these -> `encode` for that store. None
    for those whose vectors are the same in every store.
    """

    id: str
    revision: str
    width: int
    encode: Encode
    fit: Callable[[Sequence[str]], Encode] | None = None

    def for_store(self, instructions: Sequence[str]) -> Encode:
        """`encode` as a store with these instructions uses it. Their order and repetitions do not matter."""
        return self.encode if self.fit is None else self.fit(sorted(set(instructions)))


def load_clip_encoder(model: str | None) -> TextEncoder:
    """CLIP's text tower (see `statevla/encoders/clip.py`)."""
    from statevla.encoders.clip import DEFAULT_MODEL, load_clip

    return load_clip(model or DEFAULT_MODEL)


def load_minilm_encoder(model: str | None) -> TextEncoder:
    """The sentence encoder all-MiniLM-L6-v2 (see `statevla/encoders/minilm.py`)."""
    from statevla.encoders.minilm import load_minilm

    if model is not None:
        raise UsageError(f"--language-model {model}: minilm's weights are those of its package; leave it out")
    return load_minilm()


def load_hashed_encoder(model: str | None) -> TextEncoder:
    """Hashed word n-grams (see `statevla/encoders/hashed.py`)."""
    from statevla.encoders.hashed import load_hashed

    if model is not None:
        raise UsageError(f"--language-model {model}: the hashed encoder has no weights; leave it out")
    return load_hashed()


TEXT_ENCODERS: Final[dict[str, Callable[[str | None], TextEncoder]]] = {
    "clip": load_clip_encoder,
    "minilm": load_minilm_encoder,
    "hashed": load_hashed_encoder,
}


def load_text_encoder(name: str, model: str | None = None) -> TextEncoder:
    """Encoder `name`; `model` is its weights' name or folder, None for the default.

    Raises UsageError on an unknown name and where weights cannot be had, saying what to run instead.
    """
    if name not in TEXT_ENCODERS:
        raise UsageError(f"--language {name}: expected one of {', '.join(TEXT_ENCODERS)}")
    return TEXT_ENCODERS[name](model)
