"""Which policy this is: one hash of everything that its decisions depend on."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stores.disk.durable import json_bytes


def identity_of(parts: Mapping[str, Any]) -> str:
    """sha256 of JSON-ready `parts`, whatever their order."""
    return hashlib.sha256(json_bytes(dict(parts))).hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes; for weights that no file holds."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {list(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
