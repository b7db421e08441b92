"""Normalization statistics: mergeable moments, exact quantiles, normalize and denormalize.

Legend: n rows, D dimensions.

Moments are float64. One `Moments` is made per episode and all are merged in episode order (`merge`), so the result has
the same bits for any number of workers: floating-point sums depend on order, and the order is fixed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.cloud.storage import Storage, open_storage
from stores.disk import durable
from stores.errors import StaleKey, StoreCorrupt, StoreMissing, UsageError
from stores.manifest import read_sealed, seal
from stores.schema import POSE_DIMS

TRANSFORM_VERSION: Final = 2
"""Raised when what is computed, or how it is applied, changes: statistics of before are then refused."""

CONSTANT_STD: Final = 1e-4
"""A dimension whose spread is below this (0.1 mrad, 0.1 mm, 0.01 % of a controller unit) counts as constant.

It is centred but not scaled. Dividing by a tiny spread would turn rounding noise, or a small change at test time, into
huge inputs; with scale 1 the normalized value stays small and `denormalize` still inverts `normalize`.
"""

MODES: Final = ("mean_std", "quantile")
FIELDS: Final = ("action", "robot_state")


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations (m2), min and max per dimension; float64 [D]."""

    count: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[Any], name: str = "values") -> "Moments":
        """Of rows [n, D], n >= 1. Raises StoreCorrupt naming `name` on NaN or infinity, UsageError on another shape."""
        if values.ndim != 2 or len(values) == 0:
            raise UsageError(f"{name}: expected at least one row [n, D], got shape {list(values.shape)}")
        rows = values.astype(np.float64)
        if not np.isfinite(rows).all():
            raise StoreCorrupt(f"{name}: expected finite numbers, got NaN or infinity")
        mean = rows.mean(axis=0)
        return cls(len(rows), mean, ((rows - mean) ** 2).sum(axis=0), rows.min(axis=0), rows.max(axis=0))

    def __add__(self, other: "Moments") -> "Moments":
        """Of both together. Chan, Golub & LeVeque (1979), eq. 2.1."""
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.m2 + other.m2 + delta**2 * (self.count * other.count / count),
            np.minimum(self.min, other.min),
            np.maximum(self.max, other.max),
        )


def merge(parts: Sequence[Moments]) -> Moments:
    """Sum of `parts` from left to right. Give them in episode order. Raises UsageError when there is none."""
    if not parts:
        raise UsageError("statistics of no episodes: the train split is empty")
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def quantiles(values: NDArray[Any], levels: Sequence[float] = (0.01, 0.99)) -> NDArray[np.float64]:
    """Exact quantiles per dimension of rows [n, D] -> float64 [levels, D].

    All rows are sorted, no sketch: linear interpolation at rank level * (n - 1), NumPy's
    default. The order of rows does not matter.
    """
    if values.ndim != 2 or len(values) == 0:
        raise UsageError(f"quantiles: expected at least one row [n, D], got shape {list(values.shape)}")
    columns = [np.quantile(column.astype(np.float64), levels, method="linear") for column in values.T]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Statistics:
    """Of one field, per dimension.

    std: of the population (divided by n); 0 where that is below `CONSTANT_STD`: the dimension is constant.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    count: int

    @classmethod
    def of(cls, moments: Moments, q01_q99: NDArray[np.float64]) -> "Statistics":
        """From merged moments and `quantiles` [2, D]."""
        std = np.sqrt(moments.m2 / moments.count)
        std[std < CONSTANT_STD] = 0.0
        columns = (moments.mean, std, moments.min, moments.max, q01_q99[0], q01_q99[1])
        mean, spread, low, high, q01, q99 = (tuple(float(x) for x in column) for column in columns)
        return cls(mean, spread, low, high, q01, q99, moments.count)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Statistics":
        """Inverse of `to_dict`. Raises StoreCorrupt on other fields or uneven lengths."""
        wanted = set(cls.__dataclass_fields__)
        if set(data) != wanted or len({len(data[name]) for name in wanted - {"count"}}) != 1:
            raise StoreCorrupt(f"statistics: expected equally long {sorted(wanted)}, got {data}")
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**fields)

    @property
    def constant(self) -> NDArray[np.bool_]:
        """[D], which dimensions never move."""
        return np.asarray(np.array(self.std) == 0.0, np.bool_)

    def affine(self, mode: str = "mean_std") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(shift, scale) [D] with normalized = (x - shift) / scale; scale is 1 where a dimension is constant.

        "mean_std": mean and std. "quantile": q01 and q99 become -1 and +1.
        """
        if mode == "mean_std":
            shift, scale = np.array(self.mean), np.array(self.std)
        elif mode == "quantile":
            low, high = np.array(self.q01), np.array(self.q99)
            shift, scale = (low + high) / 2, (high - low) / 2
        else:
            raise UsageError(f"normalization mode: expected one of {MODES}, got {mode!r}")
        return shift, _scale(scale)


def _scale(spread: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(spread < CONSTANT_STD, 1.0, spread)


@dataclass(frozen=True)
class Normalization:
    """Train-split statistics of both fields. Robot state: all 9 dimensions; action: the 6 pose ones, gripper never."""

    action: Statistics
    robot_state: Statistics

    def affine(self, field: str, mode: str = "mean_std") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(shift, scale) of "action" ([7], gripper 0 and 1: untouched) or "robot_state" ([9]).

        The scale of an action's constant dimension is 0: whatever a model says of it, the action is its constant.
        """
        if field not in FIELDS:
            raise UsageError(f"normalized field: expected one of {FIELDS}, got {field!r}")
        shift, scale = getattr(self, field).affine(mode)
        if field == "action":
            still = self.action.constant
            low, mean = np.array(self.action.min), np.array(self.action.mean)
            exact = low == np.array(self.action.max)
            shift[still], scale[still] = np.where(exact, low, mean)[still], 0.0
            shift[POSE_DIMS:], scale[POSE_DIMS:] = 0.0, 1.0
        return shift, scale

    def normalize(self, field: str, values: NDArray[Any], mode: str = "mean_std") -> NDArray[np.float32]:
        """Raw units [..., D] -> float32 normalized."""
        shift, scale = self.affine(field, mode)
        return ((values - shift) / np.where(scale == 0.0, 1.0, scale)).astype(np.float32)

    def denormalize(self, field: str, values: NDArray[Any], mode: str = "mean_std") -> NDArray[np.float32]:
        """Inverse of `normalize`."""
        shift, scale = self.affine(field, mode)
        return (values * scale + shift).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form: {"action": …, "robot_state": …}."""
        return {"action": self.action.to_dict(), "robot_state": self.robot_state.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Normalization":
        """Inverse of `to_dict`. Raises StoreCorrupt."""
        if set(data) != set(FIELDS):
            raise StoreCorrupt(f"normalization: expected {sorted(FIELDS)}, got {sorted(data)}")
        return cls(Statistics.from_dict(data["action"]), Statistics.from_dict(data["robot_state"]))


def stats_key(manifest_hash: str, split: str = "train", transform_version: int = TRANSFORM_VERSION) -> str:
    """File name (16 hex digits) of the statistics of one store content, split and transform."""
    return hashlib.sha256(f"{manifest_hash}\n{split}\n{transform_version}\n".encode()).hexdigest()[:16]


def stats_path(key: str) -> str:
    """Path below the store."""
    return f"stats/{key}.json"


def is_statistics(name: str) -> bool:
    """Whether an object of a store is a file of statistics; what an interrupted writer left is none."""
    folder, _, file = name.partition("/")
    return folder == "stats" and file.endswith(".json") and not file.startswith(durable.TEMP_PREFIX)


def save_stats(root: Path | str, manifest_hash: str, normalization: Normalization, split: str = "train") -> str:
    """Write ``stats/<key>.json``, sealed; returns the key."""
    path, data = stats_file(manifest_hash, normalization, split)
    durable.write_bytes(Path(root, path), data)
    return stats_key(manifest_hash, split)


def stats_file(manifest_hash: str, normalization: Normalization, split: str = "train") -> tuple[str, bytes]:
    """(path below the store, content) of the file that holds them."""
    key = stats_key(manifest_hash, split)
    fields = {"key": key, "manifest": manifest_hash, "split": split, "transform_version": TRANSFORM_VERSION}
    return stats_path(key), durable.json_bytes(seal({**fields, **normalization.to_dict()}))


def load_stats(root: Path | str | Storage, manifest_hash: str, split: str = "train") -> Normalization:
    """Statistics of exactly this store content.

    Raises StoreMissing when none were computed, StaleKey when only those of another content or transform are there,
    StoreCorrupt when the file was altered.
    """
    storage = open_storage(root)
    key = stats_key(manifest_hash, split)
    try:
        data = storage.read(stats_path(key))
    except StoreMissing as error:
        others = sorted(name for name in storage.sizes() if is_statistics(name))
        if others:
            raise StaleKey(
                f"{storage.root}: its statistics ({', '.join(others)}) are of another content of the store or another "
                f"version of the transform, expected {stats_path(key)}; run `statevla stats` again"
            ) from error
        raise StoreMissing(f"{storage.root}: no statistics yet; run `statevla stats`") from error
    where = f"{storage.root}: {stats_path(key)}"
    fields = read_sealed(data, where)
    if fields.get("key") != key or fields.get("manifest") != manifest_hash:
        raise StaleKey(f"{where}: made for manifest {fields.get('manifest')}, this store's is {manifest_hash}")
    return Normalization.from_dict({name: fields[name] for name in FIELDS if name in fields})
