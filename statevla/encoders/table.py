"""The frozen text encoders by name: a new one is one file beside this one and one row here. Vision: `vision.py`.

Loading one imports what it needs, and not before: an ingest needs no torch for hashed instructions.
"""

from collections.abc import Callable
from typing import Final

from statevla.encoders.text import TextEncoder
from stores.errors import UsageError


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


TEXT: Final[dict[str, Callable[[str | None], TextEncoder]]] = {
    "clip": load_clip_encoder,
    "minilm": load_minilm_encoder,
    "hashed": load_hashed_encoder,
}
"""By the name that ``--language`` takes; of the weights' name or folder, None for the default."""


def load_text_encoder(name: str, model: str | None = None) -> TextEncoder:
    """Encoder `name`; `model` is its weights' name or folder, None for the default.

    Raises UsageError on an unknown name and where weights cannot be had, saying what to run instead.
    """
    if name not in TEXT:
        raise UsageError(f"--language {name}: expected one of {', '.join(TEXT)}")
    return TEXT[name](model)
