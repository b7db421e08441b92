"""Normalization statistics: mergeable moments, exact quantiles, and what of it is applied to which dimension.

Legend: n rows, D dimensions.

Moments are float64. One `Moments` is made per episode and all are merged in episode order, so the result has the same
bits however the rows are read: floating-point sums depend on order, and the order is fixed.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.cloud.storage import Storage, open_storage
from stores.disk import durable
from stores.errors import StoreCorrupt, UsageError
from stores.layout import STATISTICS, seal_path
from stores.printable import word
from stores.spec import ObsSpec

TRANSFORM_VERSION: Final = 2
"""Raised when what is computed, or how it is applied, changes: statistics of before are then refused."""

CONSTANT_STD: Final = 1e-4
"""A dimension whose spread is below this (0.1 mrad, 0.1 mm, 0.01 % of a controller unit) counts as constant.

It is centred but not scaled. Dividing by a tiny spread would turn rounding noise, or a small change at test time, into
huge inputs. An action's constant dimension comes out as its constant, whatever a model says.
"""

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


LEVELS: Final = (0.01, 0.99)
SORTED_ROWS: Final = 4096


class Tails:
    """Exact quantiles at `LEVELS` of rows [n, D] that come in pieces, in memory for 2 % of them.

    The same bits as ``np.quantile(…, method="linear")`` over all rows at once: a quantile is made of the two values at
    the ranks around level * (n - 1), and those are among the smallest or the largest so many. n must be known before.
    """

    def __init__(self, rows: int, width: int) -> None:
        self._rows, self._seen = rows, 0
        self._ranks = [level * (rows - 1) for level in LEVELS]
        low, high = int(np.floor(self._ranks[0])), int(np.floor(self._ranks[1]))
        self._keep = (min(low + 2, rows), rows - high)
        self._low = np.empty((0, width), np.float64)
        self._high = np.empty((0, width), np.float64)
        self._waiting: list[NDArray[np.float64]] = []
        self._waits = 0

    def add(self, values: NDArray[Any]) -> None:
        """More rows, in any order."""
        self._seen += len(values)
        self._waiting.append(values.astype(np.float64))
        self._waits += len(values)
        if self._waits >= max(*self._keep, SORTED_ROWS):  # so many at once that sorting costs little a row
            self._sort()

    def _sort(self) -> None:
        low, high = self._keep
        self._low = np.sort(np.concatenate([self._low, *self._waiting]), axis=0)[:low]
        self._high = np.sort(np.concatenate([self._high, *self._waiting]), axis=0)[-high:]
        self._waiting, self._waits = [], 0

    def quantiles(self) -> NDArray[np.float64]:
        """float64 [levels, D]. Raises UsageError unless as many rows came as were announced, at least one."""
        self._sort()
        if self._seen != self._rows or self._rows < 1:
            raise UsageError(f"quantiles: expected {self._rows} rows, at least 1, got {self._seen}")
        first_high = self._rows - len(self._high)
        found = []
        for rank, values, first in zip(self._ranks, (self._low, self._high), (0, first_high), strict=True):
            at = int(np.floor(rank))
            a, b = values[at - first], values[min(at + 1, self._rows - 1) - first]
            t, step = rank - at, b - a
            # NumPy's own interpolation, to the bit: from the nearer end.
            found.append(a + step * t if t < 0.5 else b - step * (1 - t))
        return np.stack(found)


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


@dataclass(frozen=True)
class Normalization:
    """Train-split statistics of both fields; the spec says which dimensions they are applied to."""

    action: Statistics
    robot_state: Statistics

    def affine(self, field: str, spec: ObsSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(shift, scale) [D] with normalized = (x - shift) / scale: of ``action`` (binary dimensions 0 and 1, which
        leaves them as they are) or ``robot_state``.

        The scale of a robot state's constant dimension is 1, that of an action's is 0: whatever a model says of it, the
        action is its constant. Raises UsageError where the widths are not the spec's.
        """
        widths = {"action": spec.action_dim, "robot_state": spec.robot_state_dim}
        if field not in widths:
            raise UsageError(f"normalized field: expected one of {FIELDS}, got {field!r}")
        of_field: Statistics = getattr(self, field)
        still = of_field.constant
        shift, scale = np.array(of_field.mean), np.where(still, 1.0, np.array(of_field.std))
        if len(shift) != widths[field]:
            raise UsageError(f"statistics of {field}: {len(shift)} dimensions, the obs spec has {widths[field]}")
        if field == "action":
            low, mean = np.array(of_field.min), np.array(of_field.mean)
            exact = low == np.array(of_field.max)
            shift[still], scale[still] = np.where(exact, low, mean)[still], 0.0
            shift[list(spec.binary)], scale[list(spec.binary)] = 0.0, 1.0
        return shift, scale

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form: {"action": …, "robot_state": …}."""
        return {"action": self.action.to_dict(), "robot_state": self.robot_state.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Normalization":
        """Inverse of `to_dict`. Raises StoreCorrupt."""
        if set(data) != set(FIELDS):
            raise StoreCorrupt(f"normalization: expected {sorted(FIELDS)}, got {sorted(data)}")
        return cls(Statistics.from_dict(data["action"]), Statistics.from_dict(data["robot_state"]))


def made_from(content_hash: str, split: str = "train") -> dict[str, Any]:
    """All that statistics are a function of."""
    return {"content_hash": content_hash, "split": split, "transform_version": TRANSFORM_VERSION}


def save_stats(root: Path | str, content_hash: str, normalization: Normalization, split: str = "train") -> str:
    """Write ``stats/<key>.json``, sealed; returns its path below the store."""
    path, data = stats_file(content_hash, normalization, split)
    durable.write_bytes(Path(root, path), data)
    return path


def stats_file(content_hash: str, normalization: Normalization, split: str = "train") -> tuple[str, bytes]:
    """(path below the store, content) of the file that holds them."""
    from stores.derived import key_of, seal_bytes  # models import this module where no arrays can be read

    made = made_from(content_hash, split)
    return seal_path(STATISTICS, key_of(made)), seal_bytes(made, normalization.to_dict())


def load_stats(root: Path | str | Storage, content_hash: str, split: str = "train") -> Normalization:
    """Statistics of exactly this store content.

    Raises StoreMissing when none were computed, StaleKey when only those of another content or transform are there,
    StoreCorrupt when the file was altered.
    """
    from stores.derived import open_derived

    storage = open_storage(root)
    make = f"statevla stats --store {word(storage.root)}"  # there may be several stores
    found = open_derived(storage, STATISTICS, made_from(content_hash, split), make)
    return Normalization.from_dict(found.about)
