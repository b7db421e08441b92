"""The instruction encoders by name. Loading one imports what it needs, and not before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stores.errors import UsageError


@dataclass(frozen=True)
class TextEncoder:
    """A frozen map from text to a vector.

    id and revision: recorded with every vector; two stores with equal ones have comparable vectors.
    width: numbers of a vector.
    encode: texts -> float32 [len(texts), width]; the vector of a text does not depend on the other texts.
    """

    id: str
    revision: str
    width: int
    encode: Callable[[Sequence[str]], NDArray[np.float32]]


def load_clip_encoder(model: str | None) -> TextEncoder:
    """CLIP's text tower (see `statevla/encoders/clip.py`)."""
    from statevla.encoders.clip import DEFAULT_MODEL, load_clip

    return load_clip(model or DEFAULT_MODEL)


def load_hashed_encoder(model: str | None) -> TextEncoder:
    """Hashed word n-grams (see `statevla/encoders/hashed.py`)."""
    from statevla.encoders.hashed import load_hashed

    if model is not None:
        raise UsageError(f"--language-model {model}: the hashed encoder has no weights; leave it out")
    return load_hashed()


TEXT_ENCODERS: Final[dict[str, Callable[[str | None], TextEncoder]]] = {
    "clip": load_clip_encoder,
    "hashed": load_hashed_encoder,
}


def load_text_encoder(name: str, model: str | None = None) -> TextEncoder:
    """Encoder `name`; `model` is its weights' name or folder, None for the default.

    Raises UsageError on an unknown name and where weights cannot be had, saying what to run instead.
    """
    if name not in TEXT_ENCODERS:
        raise UsageError(f"--language {name}: expected one of {', '.join(TEXT_ENCODERS)}")
    return TEXT_ENCODERS[name](model)
