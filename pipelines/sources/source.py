"""What a format of demonstrations is to an ingest: one object with two doors, and canonical episodes behind them.

A format is one file in this package and one line in `pipelines.sources.table.SOURCES`. Its methods run in a child
process (`pipelines.sources.reading`): they may meet any file, report what they cannot use as SourceError, and write
nothing.

Legend: T observations of an episode, A its actions (T or T - 1), H, W rows and columns of an image, R numbers of a
robot state, D of an action.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.evidence import Told
from stores.errors import SourceError
from stores.spec import ObsSpec


@dataclass(frozen=True)
class EpisodeHead:
    """What is known of an episode before its arrays are read. sizes: (height, width) by camera, in the spec's order."""

    rows: int
    sizes: tuple[tuple[int, int], ...]
    task: str
    instruction: str


@dataclass(frozen=True)
class SourceFile:
    """What the header of a file says, without its arrays.

    spec: what a frame of it is; the episodes' own picture sizes are in their heads. episodes: by name, in natural
    order, those that could be opened. evidence: what the file says and shows of its conventions, for `Source.weigh`.
    parts: ``train`` or ``val`` by demonstration, where the file says. refused: (demonstration or "", reason). notes:
    what was assumed, left out or not used.
    """

    name: str
    spec: ObsSpec
    episodes: dict[str, EpisodeHead]
    evidence: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    refused: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        episodes = {name: vars(head) for name, head in self.episodes.items()}
        return {**vars(self), "spec": self.spec.to_dict(), "episodes": episodes}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "SourceFile":
        """Inverse of `to_dict`."""
        episodes = {
            name: EpisodeHead(head["rows"], tuple((h, w) for h, w in head["sizes"]), head["task"], head["instruction"])
            for name, head in fields["episodes"].items()
        }
        return cls(
            name=fields["name"],
            spec=ObsSpec.from_dict(fields["spec"]),
            episodes=episodes,
            evidence=dict(fields["evidence"]),
            parts=dict(fields["parts"]),
            refused=tuple((demo, reason) for demo, reason in fields["refused"]),
            notes=tuple(fields["notes"]),
        )


@dataclass(frozen=True)
class Verdict:
    """How files are read, seen together. facts: by file, what bears on the bytes of its episodes, JSON-ready: for
    `Source.open`, and kept in the manifest. refused: reason by file. notes: (file, text): assumed or converted.
    """

    facts: dict[str, dict[str, Any]]
    refused: dict[str, str] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()


Images = Callable[[str, int, int, NDArray[np.uint8] | None], NDArray[np.uint8]]


@dataclass(frozen=True)
class Episode:
    """One canonical episode (``obs[t]`` before ``action[t]``); images are read on demand, so that memory stays bounded.

    robot_state: float32 [T, R]. action: float32 [A, D]. sizes: as `EpisodeHead.sizes`.
    images(camera, start, stop, into): uint8 [stop - start, H, W, 3], upright, while the file is open; a view of `into`
    (uint8 [>= stop - start, H, W, 3]), which the next call may overwrite, or of fresh memory where that is None.
    init_state: number of the benchmark's initial state that it starts from, or ``sha256:`` of its first simulator
    state; empty where the file has neither. made_by: how the demonstration was made, where the file says.
    """

    demo: str
    robot_state: NDArray[np.float32]
    action: NDArray[np.float32]
    alignment: str
    sizes: tuple[tuple[int, int], ...]
    images: Images
    init_state: str = ""
    made_by: str = ""


class Opened(Protocol):
    """An open source file."""

    def episode(self, name: str) -> Episode:
        """Raises SourceError naming file, demonstration, what was expected and what came."""

    def fingerprint(self, name: str) -> str:
        """Equal ones mean that `episode` would give the same. Cheap after `episode` of the same name, and never raises
        for a bad demonstration: what is wrong with it is its fingerprint.
        """


class Source(Protocol):
    """A format. name: in the table and in flags. format: raised by hand when the same file leads to other episodes.
    suffixes: of its files' names, in lower case.
    """

    @property
    def name(self) -> str: ...

    @property
    def format(self) -> int: ...

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    def recognizes(self, path: Path) -> bool:
        """Whether the file looks like this format. Raises SourceError when it cannot be opened."""

    def inspect(self, path: Path, told: Told, poison: Mapping[int, str], files: int = 1) -> SourceFile:
        """Header of `path`. Raises SourceError when the file as a whole is of no use.

        poison: reasons by position (from 1) of demonstrations that must not be touched; say which one is being looked
        at with `pipelines.sources.pulse.at`. files: of the source; what all of them show together need not be gathered
        from each alone.
        """

    def weigh(self, files: Mapping[str, SourceFile], told: Told) -> Verdict:
        """How these files are to be read, from what all of them show. Opens nothing."""

    def open(self, path: Path, facts: Mapping[str, Any], told: Told) -> AbstractContextManager[Opened]:
        """The file, to read episodes. Raises SourceError."""


@runtime_checkable
class FolderSource(Source, Protocol):
    """A format whose demonstrations lie in a folder of many files: that folder is what elsewhere is the file."""

    def is_dataset(self, folder: Path) -> bool:
        """Whether `folder` is one. Looks at names only."""

    def members(self, folder: Path) -> Sequence[Path]:
        """The files that it consists of, in a fixed order."""


def check_episode(episode: Episode, spec: ObsSpec) -> None:
    """Raise SourceError unless `episode` is what `spec` says, field by field."""
    if episode.sizes != spec.image_sizes:
        raise SourceError(
            f"{episode.demo}: images of {_sizes(episode.sizes)}, the store has {_sizes(spec.image_sizes)} (height, "
            "width): one store holds one image size; ingest the others into a store of their own"
        )
    frames, steps = len(episode.robot_state), len(episode.action)
    if steps not in (frames, frames - 1) or steps < 1:
        raise SourceError(f"{episode.demo}: {frames} frames and {steps} actions, expected as many or one action less")
    for name, values, width in (
        ("robot_state", episode.robot_state, spec.robot_state_dim),
        ("action", episode.action, spec.action_dim),
    ):
        if values.shape != (len(values), width) or values.dtype != np.float32:
            raise SourceError(
                f"{episode.demo}, {name}: expected float32 [*, {width}] as the obs spec says, got {values.dtype} "
                f"{list(values.shape)}"
            )
        if not np.isfinite(values).all():
            raise SourceError(f"{episode.demo}, {name}: expected finite numbers, got NaN or infinity")
    for column in spec.binary:
        outside = np.abs(episode.action[:, column]) > 1
        if outside.any():
            raise SourceError(
                f"{episode.demo}, action {spec.action_names[column]}: binary in the obs spec, so -1 to +1; "
                f"got {episode.action[outside, column][0]:g}"
            )


def _sizes(sizes: tuple[tuple[int, int], ...]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else str(sizes)
