"""An instruction encoder that needs no weights: signed feature hashing of word n-grams.

It has no semantics. Equal texts get equal vectors, texts that share words get similar ones, "cup" and "mug" are as far
apart as "cup" and "left". Enough to tell the tasks of a suite apart, and for tests without a network; use CLIP to
carry over to instructions that were never seen.

Features of a text of words w_1 ... w_n (lower case; letters and digits): every word, every pair of neighbours, and
the start and end pairs ``^ w_1`` and ``w_n $``, so that word order shows. Each feature adds +-1 to one of 512
components (Weinberger et al., "Feature hashing for large scale multitask learning", 2009), index and sign from its
BLAKE2b digest; the sum is scaled to unit norm.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from statevla.encoders.text import TextEncoder
from stores.errors import UsageError

ENCODER: Final = "hashed-word-ngrams"
REVISION: Final = "1"
WIDTH: Final = 512


def load_hashed() -> TextEncoder:
    """The encoder; nothing is loaded."""
    return TextEncoder(ENCODER, REVISION, WIDTH, encode_hashed)


def encode_hashed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Texts -> float32 [len(texts), 512], unit norm. Raises UsageError on a text without words."""
    return np.stack([embed_text(text) for text in texts]) if texts else np.zeros((0, WIDTH), np.float32)


def embed_text(text: str) -> NDArray[np.float32]:
    """One text -> float32 [512], unit norm, the same on every machine."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        raise UsageError(f"instruction {text!r}: expected at least one word")
    padded = ["^", *words, "$"]
    features = words + [f"{left} {right}" for left, right in itertools.pairwise(padded)]
    vector = np.zeros(WIDTH, np.float64)
    for feature in features:
        value = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
        vector[(value >> 1) % WIDTH] += 1.0 if value & 1 else -1.0
    norm = float(np.sqrt(np.sum(vector * vector)))
    if norm == 0.0:  # every feature cancelled: possible only where all collide in pairs
        raise UsageError(f"instruction {text!r}: its hashed features cancel out; reword it")
    return (vector / norm).astype(np.float32)
