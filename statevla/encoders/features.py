"""Patch features of a frozen tower as a derived folder: what they are a function of, and how a model takes them.

Legend: N frames, P patches, V feature width.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from statevla.config import ModelConfig
from statevla.encoders.preprocessing import Preprocessing
from stores.derived import Derived, open_derived, parse_seal
from stores.errors import StaleKey, StoreMissing, UsageError
from stores.layout import FEATURES, seal_path
from stores.reader import Store

FORMAT: Final = 1
MAKE: Final = "statevla features STORE --encoder NAME"
DTYPES: Final = ("float16", "int8")
LEVELS: Final = 127


def made_from(
    store: Store, kind: str, revision: str, how: Preprocessing, dtype: str, pool: int, precision: str
) -> dict[str, Any]:
    """Everything that the features are a function of. kind: row of `VISION`; precision: of the tower."""
    transform = hashlib.sha256(json.dumps(asdict(how), sort_keys=True).encode()).hexdigest()
    return {
        "format": FORMAT, "content_hash": store.content_hash, "encoder": kind, "revision": revision,
        "transform": transform, "dtype": dtype, "pool": pool, "precision": precision,
    }  # fmt: skip


def quantize(features: Float[Tensor, "B P V"]) -> tuple[Int8[Tensor, "B P V"], Float[Tensor, "B P"]]:
    """Each patch in units of its own scale, a 127th of its largest entry, float16."""
    scale = (features.float().abs().amax(dim=-1) / LEVELS).half()
    unit = torch.where(scale == 0, 1.0, scale.float()).unsqueeze(-1)
    return (features.float() / unit).round().clamp(-LEVELS, LEVELS).to(torch.int8), scale


@dataclass
class KeptVision:
    """The tower that kept features are of: its identity, and nothing that could look at a picture."""

    name: str
    revision: str

    def patch_features(self, images: Tensor) -> Tensor:
        """Raises UsageError: no weights are loaded."""
        raise UsageError(f"data.features: {self.name} itself is not loaded; leave data.features out to encode pictures")

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "KeptVision":
        """There is nothing to move."""
        return self


def open_named(store: Store, name: str, make: str = MAKE, **expected: Any) -> Derived:
    """The derived folder ``features/<name>``, of this content of the store. expected: more that it is made from.

    make: the command that makes it, for errors. Raises StoreMissing when it is not there or not finished, StaleKey
    when it was made from anything else than expected.
    """
    path = seal_path(FEATURES, name)
    try:
        made = parse_seal(store.storage.read(path), f"{store.root}: {path}")[0]["made_from"]
    except StoreMissing:
        made = {}  # `open_derived` says what is the matter
    wanted = {**made, **expected, "content_hash": store.content_hash}
    return open_derived(store.storage, FEATURES, wanted, make, name)


def open_kept(store: Store, name: str, model: ModelConfig) -> Derived:
    """The store's features `name`, which `model` can take.

    Raises StoreMissing when they are not there or not finished; StaleKey when they are of another content of the store
    or of an earlier format; UsageError when they are of another kind of tower, pooling or size than `model` is for.
    """
    where = f"{store.root}: {FEATURES}/{name}"
    found = open_named(store, name, format=FORMAT)
    made = found.made_from
    if made["encoder"] != model.vision:
        raise UsageError(f"{where}: features of {made['encoder']}, but model.vision is {model.vision}; set either")
    for key, mine, theirs in (
        ("model.vision_pool", model.vision_pool, made["pool"]),
        ("model.vision_width", model.vision_width, found.about["width"]),
        ("patches (model.image_size, model.patch_size, model.vision_pool)", model.patches, found.about["patches"]),
    ):
        if mine != theirs:
            raise UsageError(f"{where}: {key}: {mine} in the configuration, {theirs} in the features; set them alike")
    if found.about["cameras"] != list(store.spec.camera_names):
        raise StaleKey(f"{where}: of cameras {found.about['cameras']}, the store has {store.spec.camera_names}")
    return found


def tower_of(found: Derived) -> KeptVision:
    """The identity of the tower that made them."""
    return KeptVision(str(found.about["model"]), str(found.made_from["revision"]))
