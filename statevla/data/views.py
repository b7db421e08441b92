"""What of an observation is loaded, and from where: one row a view.

Pictures as they were ingested come by segment (`statevla.data.frames`). Every other view is a derived folder whose rows
are the store's frames, and is read by frame number, in the same order of the same samples.

Legend: B rows of a batch, C cameras, N frames of the store, P patches, V feature width, D width.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statevla.data.gather import Memory, gather
from stores.arrays import map_whole
from stores.derived import Derived
from stores.errors import StaleKey
from stores.sharded import ShardedArray

Ints = NDArray[np.int64]

ROWS_A_JOB: Final = 8


@runtime_checkable
class View(Protocol):
    """Rows of a derived folder as fields of an `ObservationBatch`."""

    def observe(self, rows: Ints, pin: bool, pool: Executor) -> Mapping[str, Any]:
        """The fields of frames `rows`, read by `pool`."""


@runtime_checkable
class Far(Protocol):
    """A view that may lie over a network."""

    @property
    def is_far(self) -> bool:
        """Whether it does: of one that is near, nothing is to be fetched."""

    def fetch(self, start: int, stop: int) -> None:
        """Have frames start … stop - 1 near by, where there is a cache (`stores.cloud.cache`)."""


@runtime_checkable
class Rows(Protocol):
    """An array of rows by frame number."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row."""

    @property
    def dtype(self) -> str:
        """Its name."""

    @property
    def is_far(self) -> bool:
        """Whether they lie over a network."""

    @property
    def memory(self) -> Memory:
        """For what is taken of them."""

    def take(self, rows: Ints, out: NDArray[Any], pool: Executor) -> None:
        """Rows into `out` [B, …]."""

    def fetch(self, start: int, stop: int) -> None:
        """Have rows start … stop - 1 near by."""


@dataclass(frozen=True)
class Held:
    """In memory, or mapped: one gather."""

    values: NDArray[Any]
    memory: Memory = field(default_factory=Memory)
    is_far: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape[1:]

    @cached_property
    def dtype(self) -> str:
        return self.values.dtype.name

    def take(self, rows: Ints, out: NDArray[Any], pool: Executor) -> None:
        gather(self.values, rows, out)

    def fetch(self, start: int, stop: int) -> None:
        """They are."""


@dataclass(frozen=True)
class Stored:
    """On disk: each row is read straight into its place."""

    array: ShardedArray
    memory: Memory = field(default_factory=Memory)

    @property
    def is_far(self) -> bool:
        return self.array.is_far

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.spec.shape[1:]

    @property
    def dtype(self) -> str:
        return self.array.spec.dtype

    def take(self, rows: Ints, out: NDArray[Any], pool: Executor) -> None:
        def read(begin: int) -> None:
            for i, row in enumerate(rows[begin : begin + ROWS_A_JOB].tolist(), begin):
                self.array.read(row, row + 1, out[i : i + 1])

        for _ in pool.map(read, range(0, len(rows), ROWS_A_JOB)):
            pass

    def fetch(self, start: int, stop: int) -> None:
        self.array.fetch(start, stop)


def take(source: Rows, rows: Ints, pin: bool, pool: Executor) -> Tensor:
    """[B, …], in page-locked memory if `pin`."""
    out = source.memory.tensor((len(rows), *source.shape), source.dtype, pin)
    source.take(rows, out.numpy(), pool)
    return out


@dataclass(frozen=True)
class Latents:
    """The states of a frozen encoder. z: rows [D]."""

    z: Rows

    @property
    def is_far(self) -> bool:
        return self.z.is_far

    def observe(self, rows: Ints, pin: bool, pool: Executor) -> dict[str, Any]:
        return {"latent": take(self.z, rows, pin, pool)}

    def fetch(self, start: int, stop: int) -> None:
        self.z.fetch(start, stop)


@dataclass(frozen=True)
class Decoded:
    """Pictures, decoded. cameras: rows [H, W, 3] each."""

    cameras: tuple[Held, ...]

    def observe(self, rows: Ints, pin: bool, pool: Executor) -> dict[str, Any]:
        return {"images": tuple(take(camera, rows, pin, pool) for camera in self.cameras)}


def open_decoded(found: Derived, cache_bytes: float) -> Decoded:
    """Mapped: the system shares one copy among processes and keeps what fits. Read once, for the checksums."""
    return Decoded(tuple(Held(map_whole(found.array(name))) for name in found.about["cameras"]))


@dataclass(frozen=True)
class Features:
    """Patch features of a frozen tower. cameras: rows [P, V] each; scales: of int8, rows [P] each."""

    cameras: tuple[Rows, ...]
    scales: tuple[Rows, ...]

    @property
    def is_far(self) -> bool:
        return any(rows.is_far for rows in (*self.cameras, *self.scales))

    def observe(self, rows: Ints, pin: bool, pool: Executor) -> dict[str, Any]:
        return {
            "features": tuple(take(camera, rows, pin, pool) for camera in self.cameras),
            "scales": tuple(take(scale, rows, pin, pool) for scale in self.scales),
        }

    def fetch(self, start: int, stop: int) -> None:
        for source in (*self.cameras, *self.scales):
            source.fetch(start, stop)


def open_features(found: Derived, cache_bytes: float) -> View:
    """Read row by row: they are large, and the system keeps what fits. Raises StaleKey where an array is not as the
    seal has it.
    """
    names = found.about["cameras"]
    wanted = (found.made_from["dtype"], (found.about["patches"], found.about["width"]))
    for name in names:
        spec = found.sharded(name).spec
        if (spec.dtype, spec.shape[1:]) != wanted:
            raise StaleKey(
                f"{found.storage.root}: features/{found.name}/{name}: expected {wanted[0]} rows of {list(wanted[1])} "
                f"as its seal says, got {spec.dtype} {list(spec.shape[1:])}; run `statevla features` again"
            )
    scales = [f"{name}_scale" for name in names] if found.made_from["dtype"] == "int8" else []
    return Features(*(tuple(Stored(found.sharded(name)) for name in group) for group in (names, scales)))


@dataclass(frozen=True)
class LaterStates:
    """The kept states of some frames after each frame, for `ObservationBatch.extras`: ``states`` [B, n, D], and
    ``states_there`` [B, n], whether the episode has a frame so far on; where not, its last one stands for it.

    z: rows [D]. offsets: those n, of frames. last: int64 [N], the last frame of each frame's episode.
    """

    z: Rows
    offsets: tuple[int, ...]
    last: Ints

    @property
    def is_far(self) -> bool:
        return self.z.is_far

    def observe(self, rows: Ints, pin: bool, pool: Executor) -> dict[str, Any]:
        wanted, last = rows[:, None] + np.array(self.offsets, np.int64), self.last[rows][:, None]
        found = take(self.z, np.minimum(wanted, last).ravel(), pin, pool)
        return {"states": found.view(*wanted.shape, -1), "states_there": torch.from_numpy(wanted <= last)}

    def fetch(self, start: int, stop: int) -> None:
        """What frames start … stop - 1 look at."""
        self.z.fetch(start, int(min(stop + self.offsets[-1], self.last[stop - 1] + 1)))


def rows_of_latents(found: Derived, cache_bytes: float) -> Rows:
    """Held in memory where they fit in `cache_bytes`."""
    array = found.sharded("z")
    size = array.spec.shape[0] * array.spec.row_bytes
    return Held(array.read(0, array.spec.shape[0])) if size <= cache_bytes else Stored(array)


def open_latents(found: Derived, cache_bytes: float) -> View:
    """`rows_of_latents` as the states of observations."""
    return Latents(rows_of_latents(found, cache_bytes))


VIEWS: Final[dict[str, Callable[[Derived, float], View] | None]] = {
    "pixels": None,
    "decoded": open_decoded,
    "features": open_features,
    "latents": open_latents,
}
"""By name: how a derived folder is opened, given the bytes of memory it may take. Pixels have none.

The first four stand for one another, whichever a run chooses; a system may want features beside its pixels
(`Needs.features_beside`). A further row is opened from ``features/<its name>`` and
comes beside them, as `ObservationBatch.extras`.
"""

INSTEAD: Final = frozenset({"pixels", "decoded", "features", "latents"})
