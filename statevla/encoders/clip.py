"""CLIP's text tower as instruction encoder: the projected text embedding as the model gives it (ViT-B/32: 512 numbers).

Legend: L numbers of an embedding.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from statevla.encoders.hub import require_weights, usable
from statevla.encoders.text import TextEncoder
from stores.errors import UsageError

DEFAULT_MODEL: Final = "openai/clip-vit-base-patch32"


def load_clip(model: str) -> TextEncoder:
    """Load text tower and tokenizer by `from_pretrained` of a hub name or a local folder.

    Only safetensors weights are read. Raises UsageError, naming ``--language hashed``, when they cannot be had or
    weights are missing from the checkpoint.
    """
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    def unusable(reason: str) -> str:
        return (
            f"--language clip: no usable CLIP text weights at {model!r} ({reason}). Connect to the network once, or "
            "pass --language-model FOLDER with a downloaded copy (safetensors), or use --language minilm (weights from "
            "the package index) or --language hashed (word n-grams, no weights, no semantics)"
        )

    with usable(unusable):
        local = require_weights(model)
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=local)
        tower, info = CLIPTextModelWithProjection.from_pretrained(
            model, dtype=torch.float32, use_safetensors=True, output_loading_info=True, local_files_only=local
        )
    if info["missing_keys"]:
        raise UsageError(f"{model}: the checkpoint lacks text weights {sorted(info['missing_keys'])[:4]}")
    size = int(tower.config.projection_dim)
    tower.eval().requires_grad_(False)

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        # One text at a time: padding to the batch's longest would change the last bits with the company.
        rows = [encode_text(tower, tokenizer, text) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, size), np.float32)

    folder = Path(model)
    name = folder.name if folder.is_dir() else model
    return TextEncoder(f"clip:{name}", revision_of(model, tower), size, encode)


@torch.no_grad()
def encode_text(tower: Any, tokenizer: Any, text: str) -> NDArray[np.float32]:
    """One text -> float32 [512]. Raises UsageError when it is longer than the model reads."""
    tokens = tokenizer(text, return_tensors="pt")
    length, limit = int(tokens["input_ids"].shape[1]), int(tower.config.max_position_embeddings)
    if length > limit:
        raise UsageError(f"instruction of {length} tokens, CLIP reads at most {limit}: {text!r:.120}")
    embedding = tower(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).text_embeds
    return np.asarray(embedding[0].to(torch.float32).numpy())


def revision_of(model: str, tower: Any) -> str:
    """The hub's commit hash; for a folder the sha256 of its safetensors files."""
    folder = Path(model)
    if folder.is_dir():
        return folder_revision(folder)
    commit = getattr(tower.config, "_commit_hash", None)
    if not commit:
        raise UsageError(f"{model}: the hub gave no commit hash, so its vectors could not be told from another's")
    return str(commit)


def folder_revision(folder: Path) -> str:
    """sha256 over names and bytes of the safetensors files of `folder`."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
