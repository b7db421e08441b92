"""What a LeRobotDataset v3.0 says of itself: ``meta/info.json``, ``meta/tasks.parquet``, ``meta/episodes/*/*.parquet``.

Layout: ``info.json`` has ``codebase_version``, ``fps``, ``features`` (dtype, shape, names by key), ``splits`` and the
templates ``data_path`` and ``video_path``. A row of the episodes' tables has ``episode_index``, ``tasks``, ``length``,
``dataset_from_index``, ``dataset_to_index``, the chunk and file of its rows (``data/…``) and, by camera
(``videos/<key>/…``), chunk, file and the seconds that it takes there, ``from_timestamp`` to ``to_timestamp``. Several
episodes share a file. Source: huggingface/lerobot, src/lerobot/datasets, 0.6.1.
"""

import contextlib
import hashlib
import itertools
import json
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.sources import hdf5
from pipelines.sources.pointers import require_content
from stores import pages
from stores.errors import SourceError, SourceTrouble
from stores.printable import plain

INFO: Final = "meta/info.json"
TASKS: Final = "meta/tasks.parquet"
STATS: Final = "meta/stats.json"
OWN: Final = "meta/statevla.json"
"""What only an export of this toolkit writes: the ObsSpec of the store."""
EPISODES: Final = "meta/episodes"
OWN_TASK, OWN_STEPS = "statevla/task", "statevla/steps"
"""Columns of the episodes' tables that only an export of this toolkit writes: the store's task, and its actions."""

JSON_LIMIT: Final = 64 * 2**20
ROOM: Final = 256 * 2**20
"""Bytes that columns of a small file may become; more for a large one (`stores.pages`)."""
CONVERTERS: Final = {"v2.1": "python -m lerobot.scripts.convert_dataset_v21_to_v30"}


@contextlib.contextmanager
def reporting(where: str) -> Iterator[None]:
    """Turn what pyarrow, PyAV and the system raise inside into a SourceError that starts with `where`.

    Raises SourceTrouble where the surroundings failed, and not the content.
    """
    try:
        yield
    except (SourceError, SourceTrouble) as error:
        raise type(error)(plain(f"{where}: {error}")) from error
    except (pa.ArrowException, *hdf5.HDF5_FAILURES) as error:
        if (reason := hdf5.outside(error)) is not None:
            raise SourceTrouble(
                plain(f"{where}: cannot be read: {reason}. Nothing was quarantined; run the same command again")
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(plain(f"{where}: cannot be read: {reason:.300}")) from error


def require_file(path: Path, needed_by: str = "") -> None:
    """Raise SourceTrouble where `path` is not there, or only a pointer to it is."""
    if not path.is_file():
        whose = f", which {needed_by} needs" if needed_by else ""
        raise SourceTrouble(
            f"no such file{whose}; fetch the whole dataset (hf download, git lfs pull). Nothing was changed"
        )
    require_content(path)


def read_json(root: Path, name: str) -> Any:
    """A JSON file of the dataset. Raises SourceError, SourceTrouble naming it."""
    with reporting(name):
        require_file(root / name)
        if (size := (root / name).stat().st_size) > JSON_LIMIT:
            raise SourceError(f"expected at most {JSON_LIMIT:,} bytes, got {size:,}")
        try:
            return json.loads((root / name).read_bytes())
        except (ValueError, RecursionError) as error:
            raise SourceError(f"expected JSON, got {error}") from error


def parquet(path: Path) -> pq.ParquetFile:
    """The file, read without a thread of Arrow's own: this runs in a forked child."""
    return pq.ParquetFile(pa.OSFile(str(path)), pre_buffer=False, page_checksum_verification=True)


def require_bounded(path: Path, file: pq.ParquetFile, names: Sequence[str] | None = None) -> None:
    """Raise pyarrow's ArrowInvalid where columns `names` (None: all) become too much to be held; inflates nothing."""
    with pa.OSFile(str(path)) as source:
        pages.require_bounded(source, file.metadata, names, ROOM)


@dataclass(frozen=True)
class Feature:
    """A column or camera of the dataset. names: of its numbers, empty where it has none."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    depth: bool

    @property
    def picture(self) -> bool:
        """Whether it is a camera's."""
        return self.dtype in ("video", "image") and not self.depth

    @property
    def vector(self) -> bool:
        """Whether it is a list of numbers, or one."""
        return self.dtype.startswith("float") and len(self.shape) == 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a camera; info.json has the channels first or last. Raises SourceError."""
        if len(self.shape) == 3 and 3 in (self.shape[0], self.shape[2]):
            return (self.shape[0], self.shape[1]) if self.shape[2] == 3 else (self.shape[1], self.shape[2])
        raise SourceError(f"{INFO}, features, {self.key}: expected a picture's shape with 3 channels, got {self.shape}")


@dataclass(frozen=True)
class Info:
    """``meta/info.json``. splits: as it stands there. templates: of the data's and the videos' paths."""

    version: str
    fps: float
    features: dict[str, Feature]
    splits: dict[str, str]
    data_path: str
    video_path: str
    episodes: int | None
    frames: int | None

    @property
    def digest(self) -> str:
        """Of what decides how rows and pictures are read: not of the counts, which a growing dataset changes."""
        told = [self.version, self.fps, self.data_path, self.video_path, sorted(map(repr, self.features.values()))]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def read_info(root: Path) -> Info:
    """Raises SourceError naming what of ``meta/info.json`` is not as it must be."""
    data = read_json(root, INFO)
    if not isinstance(data, dict):
        raise SourceError(f"{INFO}: expected an object, got {type(data).__name__}")
    version = str(data.get("codebase_version"))
    if not re.fullmatch(r"v3\.\d+(\.\d+)?", version):
        old = CONVERTERS.get(version)
        run = (
            f"convert it in place: {old} --repo-id={root.name} --root={root} --push-to-hub=false"
            if old
            else "convert it with lerobot, to v2.1 and from there to v3.0"
        )
        raise SourceError(f"{INFO}: codebase_version {version}, expected v3.0; {run}")
    fps = data.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 10_000:
        raise SourceError(f"{INFO}, fps: expected a number above 0, got {fps!r}")
    features = data.get("features")
    if not isinstance(features, dict) or not features:
        raise SourceError(f"{INFO}, features: expected an object, got {features!r:.80}")
    splits = data.get("splits") or {}
    if not isinstance(splits, dict) or not all(isinstance(value, str) for value in splits.values()):
        raise SourceError(f"{INFO}, splits: expected ranges as 'first:end' by name, got {splits!r:.80}")
    found = {str(key): _feature(str(key), value) for key, value in features.items()}
    told = {"data_path": data.get("data_path"), "video_path": data.get("video_path")}
    if not any(item.dtype == "video" for item in found.values()):
        told["video_path"] = told["video_path"] or ""  # LeRobot writes null where there are no videos
    paths = [_template(template, name) for name, template in told.items()]
    counts = [data.get(f"total_{name}") for name in ("episodes", "frames")]
    episodes, frames = (value if isinstance(value, int) else None for value in counts)
    return Info(version, fps, found, splits, paths[0], paths[1], episodes, frames)


def _feature(key: str, data: Any) -> Feature:
    where = f"{INFO}, features, {key}"
    if ".." in key.split("/"):
        raise SourceError(f"{where}: expected a name that leads nowhere else, its videos are found by it")
    if not isinstance(data, dict) or not isinstance(data.get("dtype"), str):
        raise SourceError(f"{where}: expected dtype, shape and names, got {data!r:.80}")
    shape = data.get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and 0 < n < 2**31 for n in shape):
        raise SourceError(f"{where}, shape: expected sizes above 0, got {shape!r:.80}")
    names = data.get("names")
    if isinstance(names, dict) and len(names) == 1:  # {"motors": [...]}
        (names,) = names.values()
    texts = tuple(map(str, names)) if isinstance(names, list) else ()
    listed = len(shape) == 1 and len(set(texts)) == shape[0]
    told: dict[str, Any] = {}
    for name in ("video_info", "info"):
        said = data.get(name) or {}
        if not isinstance(said, dict):
            raise SourceError(f"{where}, {name}: expected an object, got {said!r:.80}")
        told |= said
    depth = bool(told.get("is_depth_map") or told.get("video.is_depth_map"))
    return Feature(key, data["dtype"], tuple(shape), texts if listed else (), depth)


def _template(template: Any, name: str) -> str:
    """A path with places for numbers and a camera, and nothing else that `str.format` could be made to do."""
    try:
        fields = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except (ValueError, TypeError) as error:
        raise SourceError(f"{INFO}, {name}: expected a path, got {template!r:.80}") from error
    if not template and name == "data_path":
        raise SourceError(f"{INFO}, {name}: expected a path, got {template!r}")
    for field, form, conversion in fields:
        known = field in ("chunk_index", "file_index") or (field == "video_key" and not form)
        if not known or conversion or not re.fullmatch(r"(0\d)?d?", form or ""):
            raise SourceError(f"{INFO}, {name}: expected chunk_index, file_index, video_key, got {template!r:.80}")
    if Path(template).is_absolute() or ".." in Path(template).parts:
        raise SourceError(f"{INFO}, {name}: expected a path below the dataset, got {template!r:.80}")
    return str(template)


def read_tasks(root: Path) -> dict[int, str]:
    """Task by ``task_index``. Raises SourceError, SourceTrouble."""
    with reporting(TASKS):
        require_file(root / TASKS)
        file = parquet(root / TASKS)
        require_bounded(root / TASKS, file)
        table = file.read(use_threads=False)
        texts = [name for name in table.column_names if pa.types.is_string(table[name].type) or
                 pa.types.is_large_string(table[name].type)]  # fmt: skip
        if "task_index" not in table.column_names or len(texts) != 1:
            raise SourceError(f"expected task_index and one column of texts, got {table.column_names}")
        found: dict[int, str] = {}
        for number, text in zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True):
            if found.setdefault(number, text) != text:
                raise SourceError(f"task_index {number} is both {found[number]!r:.80} and {text!r:.80}")
        return found


@dataclass(frozen=True)
class Clip:
    """Where a camera's pictures of an episode are: in `path` (below the dataset), from `start` to `stop` seconds."""

    path: str
    start: float
    stop: float


@dataclass(frozen=True)
class Row:
    """One episode. start, stop: rows of the whole dataset. path: of the Parquet file that has them.

    tasks: texts. task, steps: what an export of this toolkit says, else empty and None.
    """

    index: int
    length: int
    start: int
    stop: int
    path: str
    tasks: tuple[str, ...]
    clips: dict[str, Clip]
    task: str = ""
    steps: int | None = None

    @property
    def name(self) -> str:
        """Of the demonstration."""
        return f"episode_{self.index:06d}"


class Episodes:
    """The episodes' tables, as columns: an episode is a `Row` when it is asked for."""

    def __init__(self, root: Path, info: Info) -> None:
        self._info = info
        self.videos = [key for key, item in info.features.items() if item.dtype == "video" and not item.depth]
        paths = self.paths = sorted((root / EPISODES).glob("*/*.parquet"))
        if not paths:
            raise SourceTrouble(f"{EPISODES}: no tables of episodes; fetch the whole dataset (hf download)")
        integers = ["episode_index", "length", "dataset_from_index", "dataset_to_index", "data/chunk_index",
                    "data/file_index"]  # fmt: skip
        clips = [f"videos/{key}/{part}" for key in self.videos for part in _CLIP]
        tables = [_episode_table(root, path, [*integers, "tasks", *clips]) for path in paths]

        def numbers(name: str) -> NDArray[Any]:  # of each table by itself: writers differ in the width of integers
            kind = np.float64 if name.endswith("timestamp") else np.int64
            return np.concatenate([_numbers(table, name, kind) for table in tables])

        order = np.argsort(numbers("episode_index"), kind="stable")
        self._columns = {name: numbers(name)[order] for name in (*integers, *clips)}

        def values(name: str) -> list[Any]:
            found = [table[name].to_pylist() if name in table.column_names else [None] * len(table) for table in tables]
            together = list(itertools.chain.from_iterable(found))
            return [together[place] for place in order]

        self._tasks = [tuple(map(str, told if isinstance(told, list) else [told])) for told in values("tasks")]
        self._own = {name: values(name) for name in (OWN_TASK, OWN_STEPS)}
        self.index = self._columns["episode_index"]
        self._places = {int(number): place for place, number in enumerate(self.index)}

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Row]:
        return (self.at(place) for place in range(len(self)))

    def find(self, name: str) -> Row:
        """The episode called `name`. Raises SourceError."""
        number = name.removeprefix("episode_")
        if not number.isdecimal() or int(number) not in self._places:
            raise SourceError(f"{name}: no such episode in {EPISODES}")
        return self.at(self._places[int(number)])

    def at(self, place: int) -> Row:
        """The episode at `place` in order of their numbers."""
        column = {name: values[place] for name, values in self._columns.items()}
        clips = {}
        for key in self.videos:
            chunk, file, start, stop = (column[f"videos/{key}/{part}"] for part in _CLIP)
            path = self._info.video_path.format(video_key=key, chunk_index=int(chunk), file_index=int(file))
            clips[key] = Clip(path, float(start), float(stop))
        path = self._info.data_path.format(
            chunk_index=int(column["data/chunk_index"]), file_index=int(column["data/file_index"])
        )
        own = {name: values[place] for name, values in self._own.items()}
        return Row(
            int(column["episode_index"]), int(column["length"]), int(column["dataset_from_index"]),
            int(column["dataset_to_index"]), path, self._tasks[place], clips,
            own.get(OWN_TASK) or "", own.get(OWN_STEPS),
        )  # fmt: skip


_CLIP: Final = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


def _episode_table(root: Path, path: Path, columns: Sequence[str]) -> pa.Table:
    name = path.relative_to(root).as_posix()
    with reporting(name):
        require_file(path)
        file = parquet(path)
        there = set(file.schema_arrow.names)
        missing = [column for column in columns if column not in there]
        if missing:
            raise SourceError(f"columns {', '.join(missing)} are missing; it has {len(there)} others")
        own = [column for column in (OWN_TASK, OWN_STEPS) if column in there]
        require_bounded(path, file, [*columns, *own])
        return file.read(columns=[*columns, *own], use_threads=False).replace_schema_metadata(None)


def _numbers(table: pa.Table, name: str, kind: Any) -> NDArray[Any]:
    column = table[name]
    if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise SourceError(f"{EPISODES}, {name}: expected numbers, got {column.type} with {column.null_count} nulls")
    values: NDArray[Any] = column.to_numpy()
    if kind is np.int64 and not (np.abs(values.astype(np.float64)) < 2**53).all():
        raise SourceError(f"{EPISODES}, {name}: expected whole numbers, got NaN or one beyond any")
    return values.astype(kind)


def require_all(root: Path, info: Info, episodes: Episodes) -> None:
    """Raise SourceTrouble naming episodes, and tables where their numbers show it, that the dataset should have and has
    not: a part that was not fetched must not look like a smaller dataset.
    """
    known = {int(number) for number in episodes.index}
    declared = max(known, default=-1) + 1 if info.episodes is None else info.episodes
    if len(known) >= declared:
        return
    absent = declared - sum(number < declared for number in known)
    gone = [str(number) for number in itertools.islice((n for n in range(declared) if n not in known), 10)]
    more = f" and {absent - 10} more" if absent > 10 else ""
    tables = _gaps([path.relative_to(root) for path in episodes.paths])
    named = f" ({', '.join(tables[:5])})" if tables else ""
    raise SourceTrouble(
        f"{EPISODES}: episodes {', '.join(gone)}{more} of the {declared} that {INFO}, total_episodes, declares are "
        f"missing{named}; fetch the whole dataset (hf download, git lfs pull), or correct total_episodes where these "
        "are all. Nothing was changed"
    )


def _gaps(paths: Sequence[Path]) -> list[str]:
    """Files that numbers of others in their folder say must be there."""
    there: dict[Path, dict[int, Path]] = {}
    for path in paths:
        if found := re.fullmatch(r"file-(\d{3,9})\.parquet", path.name):
            there.setdefault(path.parent, {})[int(found[1])] = path
    return [
        (folder / f"file-{number:03d}.parquet").as_posix()
        for folder, numbers in there.items()
        for number in itertools.islice((n for n in range(max(numbers)) if n not in numbers), 5)
    ]
