"""Patch features of a frozen tower as a derived folder: what they are a function of, and how a model takes them.

Legend: N frames, C cameras, P patches, V feature width.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from statevla.config import ModelConfig
from statevla.encoders.preprocessing import Preprocessing
from stores.derived import Derived, find_seal, open_derived, parse_seal
from stores.errors import StaleKey, StoreMissing, UsageError
from stores.layout import FEATURES, is_seal, seal_path
from stores.reader import Store

FORMAT: Final = 1
MAKE: Final = "statevla features STORE --encoder NAME"
DTYPES: Final = ("float16", "int8")
LEVELS: Final = 127
CLASS_TOKEN: Final = "{camera}_class"
"""Array of the class tokens of a camera, float16 [N, V], of towers that have one."""
ROWS_AT_ONCE: Final = 256


def made_from(
    store: Store, kind: str, revision: str, how: Preprocessing, dtype: str, pool: int, precision: str,
    class_token: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Everything that the features are a function of. kind: row of `VISION`; precision: of the tower. class_token:
    whether that is kept too, of towers that have one.
    """
    transform = hashlib.sha256(json.dumps(asdict(how), sort_keys=True).encode()).hexdigest()
    made = {
        "format": FORMAT, "content_hash": store.content_hash, "encoder": kind, "revision": revision,
        "transform": transform, "dtype": dtype, "pool": pool, "precision": precision,
    }  # fmt: skip
    return {**made, "class_token": True} if class_token else made


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
        made = parse_seal(find_seal(store.storage, path)[1], f"{store.root}: {path}")[0]["made_from"]
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


def made_from_by_name(store: Store, names: Sequence[str | None]) -> dict[str, dict[str, Any]]:
    """What the store's features `names` are made from now; None, and what cannot be opened, is left out."""
    found = {}
    for name in names:
        if name is not None:
            with contextlib.suppress(StoreMissing, StaleKey):
                found[name] = open_named(store, name).made_from
    return found


def require_same_kept(here: dict[str, dict[str, Any]], recorded: dict[str, dict[str, Any]], where: str) -> None:
    """Raise StaleKey where features of a name are no longer those that a checkpoint was trained from.

    here, recorded: `made_from_by_name` now, and then; of what is not in both nothing is known.
    """
    for name in sorted(here.keys() & recorded.keys()):
        now, then = here[name], recorded[name]
        differs = sorted(field for field in {*now, *then} if now.get(field) != then.get(field))
        if differs:
            said = ", ".join(f"{field}: {then.get(field)} then, {now.get(field)} now" for field in differs)
            raise StaleKey(
                f"{where}: {FEATURES}/{name} are not those that it was trained from ({said}); make them again as they "
                "were, or train anew"
            )


def kept_towers(store: Store) -> list[Derived]:
    """All features of frozen towers that are kept with this content of the store; none where it cannot be listed."""
    there = store.storage.sizes() if store.storage.lists else {}
    names = [path.split("/")[1] for path in sorted(there) if is_seal(path) and path.startswith(f"{FEATURES}/")]
    found = []
    for name in names:
        try:
            each = open_named(store, name)
        except (StaleKey, StoreMissing):
            continue
        if each.made_from.get("format") == FORMAT and "encoder" in each.made_from:
            found.append(each)
    return found


def vectors(found: Derived, frames: int) -> dict[str, Float32[np.ndarray, "N F"]]:
    """Of each frame: ``mean`` of its patches, and where they are kept, its ``class`` tokens; F = C V, all cameras."""
    names = list(found.about["cameras"])
    means, tokens = [], []
    for name in names:
        array = found.sharded(name)
        scale = found.sharded(f"{name}_scale") if found.made_from["dtype"] == "int8" else None
        pieces = []
        for start in range(0, frames, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, frames)
            values = array.read(start, stop).astype(np.float32)
            if scale is not None:
                values *= scale.read(start, stop).astype(np.float32)[..., None]
            pieces.append(values.mean(axis=1))
        means.append(np.concatenate(pieces))
        if CLASS_TOKEN.format(camera=name) in found.arrays:
            tokens.append(found.sharded(CLASS_TOKEN.format(camera=name)).read(0, frames).astype(np.float32))
    mean = {"mean": np.concatenate(means, axis=1)}
    return {**mean, "class": np.concatenate(tokens, axis=1)} if tokens else mean


def tower_of(found: Derived) -> KeptVision:
    """The identity of the tower that made them."""
    return KeptVision(str(found.about["model"]), str(found.made_from["revision"]))
