"""A store as a LeRobotDataset v3.0: the same rows, instructions and split; pictures as MP4.

Episodes of the train split come first, in the store's order, then those held out: LeRobot's splits are ranges. A row is
a frame with its action. Where an episode's last frame has no action, its row repeats the action before it, and the
column ``statevla/steps`` of the episodes' table says so; `statevla ingest` then leaves it out again.
``meta/statevla.json`` keeps the ObsSpec, which LeRobot has no place for.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.export import summaries
from pipelines.export.place import require_place, write_own
from pipelines.export.videos import LOSSLESS, LOSSY, VideoFiles
from pipelines.sources.lerobot.metadata import INFO, OWN_STEPS, OWN_TASK, STATS, TASKS
from pipelines.sources.lerobot.videos import pyav
from stores.disk import durable
from stores.progress import Progress, ProgressEvent
from stores.reader import Store
from stores.tables import ParquetWriter

VERSION: Final = "v3.0"
CHUNK_FILES: Final = 1000
DATA_BYTES, VIDEO_BYTES = 100 * 2**20, 200 * 2**20
DATA_PATH: Final = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH: Final = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH: Final = "meta/episodes/chunk-000/file-000.parquet"
STATE, ACTION, CAMERA = "observation.state", "action", "observation.images."
PLACES: Final = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
                 "task_index": "int64"}  # fmt: skip
BUFFER: Final = 256
"""Rows of the episodes' table written at once."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    dataset: str
    store: str
    episodes: int
    frames: int
    tasks: int
    splits: dict[str, str]
    bytes: int
    lossless: bool


def export_lerobot(
    store: Path | str,
    out: Path,
    lossless: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
    data_bytes: int = DATA_BYTES,
    video_bytes: int = VIDEO_BYTES,
) -> Exported:
    """Write the store (folder or URL) as a dataset in folder `out`, whole or not at all.

    lossless: pictures bit for bit as they are in the store. replace: an earlier export of another store may go.
    data_bytes, video_bytes: size from which a file gets no further episode.
    Raises UsageError where `out` holds something else or more (`pipelines.export.place`), StoreMissing or StoreCorrupt
    where the store cannot be read.
    """
    pyav()
    opened = Store.open(store)
    place = out.resolve() if out.is_dir() else out  # of a link, the folder is replaced and not the link
    require_place(place, opened.content_hash, replace)
    with durable.staging_dir(place) as staging:
        writer = _Writer(opened, staging, lossless, data_bytes, video_bytes)
        counts = writer.write(progress)
        require_place(place, opened.content_hash, replace)  # hours may have passed
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Exported(str(out), str(store), *counts, size, lossless)


class _Writer:
    """One export, into a folder that nobody reads yet."""

    def __init__(self, store: Store, root: Path, lossless: bool, data_bytes: int, video_bytes: int) -> None:
        self.store, self.root, self.spec = store, root, store.spec
        self.coding = LOSSLESS if lossless else LOSSY
        fps = self.spec.control_hz
        self.fps = int(fps) if fps % 1 == 0 else fps
        self.cameras = {name: CAMERA + name for name in self.spec.camera_names}
        self.videos = {
            name: VideoFiles(self._video_place(key), self.fps, size, self.coding, video_bytes)
            for (name, key), size in zip(self.cameras.items(), self.spec.image_sizes, strict=True)
        }
        self.schema = pa.schema(
            [
                (STATE, _kind(self.spec.robot_state_dim)),
                (ACTION, _kind(self.spec.action_dim)),
                *((name, pa.float32() if kind == "float32" else pa.int64()) for name, kind in PLACES.items()),
            ]
        )
        self.data = _DataFiles(root, self.schema, data_bytes)
        self.table: ParquetWriter | None = None
        self.rows: list[dict[str, Any]] = []
        self.all = {key: summaries.Together() for key in (*self.schema.names, *self.cameras.values())}

    def _video_place(self, key: str) -> Any:
        return lambda number: (
            self.root
            / VIDEO_PATH.format(video_key=key, chunk_index=number // CHUNK_FILES, file_index=number % CHUNK_FILES)
        )

    def write(self, progress: Progress | None) -> tuple[int, int, int, dict[str, str]]:
        """Episodes, frames, tasks and splits."""
        columns = self.store.episode_columns
        held = columns["split"] != "train"
        order = np.argsort(held, kind="stable")
        texts = list(dict.fromkeys(columns["instruction"].tolist()))
        tasks = {text: number for number, text in enumerate(texts)}
        durable.make_dir(self.root / "meta/episodes/chunk-000")
        done, total = 0, int(columns["frames"].sum())
        for number, episode in enumerate(order.tolist()):
            self._episode(number, episode, done, tasks)
            done += int(columns["frames"][episode])
            if progress is not None:
                progress(ProgressEvent("export", done, total, "frames", str(columns["id"][episode])))
        for videos in self.videos.values():
            videos.close()
        self.data.close()
        self._flush()
        assert self.table is not None
        self.table.close()
        write_tasks(self.root / TASKS, texts)
        trained = int((~held).sum())
        splits = {"train": f"0:{trained}"} | ({"val": f"{trained}:{len(order)}"} if trained < len(order) else {})
        counts = len(order), total, len(texts), splits
        durable.write_json(
            self.root / STATS, summaries.plain({key: found.summary() for key, found in self.all.items()})
        )
        durable.write_json(self.root / INFO, self._info(*counts))
        write_own(self.root, self.store.obs_spec, self.store.content_hash)
        return counts

    def _episode(self, number: int, episode: int, first: int, tasks: dict[str, int]) -> None:
        columns = self.store.episode_columns
        frames, steps, at = (int(columns[name][episode]) for name in ("frames", "steps", "first_frame"))
        instruction = str(columns["instruction"][episode])
        action = self.store.numbers["action"].read(at, at + frames)
        action[steps:] = action[steps - 1]
        count = np.arange(frames)
        values: dict[str, NDArray[Any]] = {
            STATE: self.store.numbers["robot_state"].read(at, at + frames),
            ACTION: action,
            "timestamp": (count / self.fps).astype(np.float32),
            "frame_index": count,
            "episode_index": np.full(frames, number),
            "index": first + count,
            "task_index": np.full(frames, tasks[instruction]),
        }
        found = {key: summaries.of_rows(rows.reshape(frames, -1)) for key, rows in values.items()}
        chunk, file = self.data.add(values)
        row: dict[str, Any] = {
            "episode_index": number, "tasks": [instruction], "length": frames, "data/chunk_index": chunk,
            "data/file_index": file, "dataset_from_index": first, "dataset_to_index": first + frames,
        }  # fmt: skip
        for name, (place, start, stop, seen) in self._pictures(episode, frames).items():
            found[self.cameras[name]] = seen
            clip = (place // CHUNK_FILES, place % CHUNK_FILES, start, stop)
            parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            row |= {f"videos/{self.cameras[name]}/{part}": value for part, value in zip(parts, clip, strict=True)}
        for key, summary in found.items():
            self.all[key].add(summary)
            row |= {f"stats/{key}/{name}": part.tolist() for name, part in summary.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        row |= {OWN_TASK: str(columns["task"][episode]), OWN_STEPS: steps}
        self.rows.append(row)
        if len(self.rows) >= BUFFER:
            self._flush()

    def _pictures(self, episode: int, frames: int) -> dict[str, tuple[int, float, float, summaries.Summary]]:
        """By camera: number of the file, first and end second there, and what the pictures are like."""
        seen = {name: summaries.Pictures() for name in self.cameras}
        for videos in self.videos.values():
            videos.begin()
        for shown in self._shown(episode, frames):
            for name, pictures in zip(self.cameras, shown, strict=True):
                seen[name].add(pictures)
                for picture in pictures:
                    self.videos[name].add(picture)
        return {name: (*videos.end(), seen[name].summary()) for name, videos in self.videos.items()}

    def _shown(self, episode: int, frames: int) -> Iterator[tuple[NDArray[np.uint8], ...]]:
        """The episode's pictures, a segment at a time; a segment ends with the first frame of the next."""
        columns, segments = self.store.episode_columns, self.store.segment_columns
        first, count = int(columns["first_segment"][episode]), int(columns["segments"][episode])
        done = 0
        for number in range(first, first + count):
            steps = int(segments["steps"][number])
            stop = frames - done if number == first + count - 1 else steps
            yield tuple(pictures[:stop] for pictures in self.store.decode_segment(number))
            done += stop

    def _flush(self) -> None:
        if not self.rows:
            return
        table = pa.Table.from_pylist(self.rows) if self.table is None else pa.Table.from_pylist(
            self.rows, schema=self.table.schema
        )  # fmt: skip
        if self.table is None:
            self.table = ParquetWriter(self.root / EPISODES_PATH, table.schema)
        self.table.write_table(table)
        self.rows.clear()

    def _info(self, episodes: int, frames: int, tasks: int, splits: dict[str, str]) -> dict[str, Any]:
        video = {**self.coding.info, "video.fps": self.fps, "video.channels": 3}
        cameras: dict[str, Any] = {
            self.cameras[camera.name]: {
                "dtype": "video",
                "shape": [camera.height, camera.width, 3],
                "names": ["height", "width", "channels"],
                "info": {"video.height": camera.height, "video.width": camera.width, **video},
            }
            for camera in self.spec.cameras
        }
        numbers = {
            STATE: {"dtype": "float32", "shape": [self.spec.robot_state_dim], "names": list(self.spec.state_names)},
            ACTION: {"dtype": "float32", "shape": [self.spec.action_dim], "names": list(self.spec.action_names)},
        }
        places = {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in PLACES.items()}
        return {
            "codebase_version": VERSION,
            "robot_type": None,
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_BYTES // 2**20,
            "video_files_size_in_mb": VIDEO_BYTES // 2**20,
            "fps": self.fps,
            "splits": splits,
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": {**cameras, **numbers, **places},
        }


class _DataFiles:
    """Rows of episodes as Parquet, one row group an episode."""

    def __init__(self, root: Path, schema: pa.Schema, limit: int) -> None:
        self._root, self._schema, self._limit = root, schema, limit
        self._number, self._bytes = -1, 0
        self._writer: ParquetWriter | None = None

    def add(self, values: dict[str, NDArray[Any]]) -> tuple[int, int]:
        """(chunk, file) in which the rows are now."""
        if self._writer is None or self._bytes >= self._limit:
            self.close()
            self._number, self._bytes = self._number + 1, 0
            place = {"chunk_index": self._number // CHUNK_FILES, "file_index": self._number % CHUNK_FILES}
            path = self._root / DATA_PATH.format(**place)
            durable.make_dir(path.parent)
            self._writer = ParquetWriter(path, self._schema, compression="snappy")
        columns = [_column(values[field.name], field.type) for field in self._schema]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._bytes += sum(rows.nbytes for rows in values.values())
        return self._number // CHUNK_FILES, self._number % CHUNK_FILES

    def close(self) -> None:
        """Finish the file that is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _kind(width: int) -> pa.DataType:
    """LeRobot keeps one number as a number, several as a list of that length."""
    return pa.float32() if width == 1 else pa.list_(pa.float32(), width)


def _column(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
    return pa.array(values.ravel(), kind)


def write_tasks(path: Path, texts: list[str]) -> None:
    """``meta/tasks.parquet``: a table whose index, in pandas' words, is the task. LeRobot looks tasks up in it."""
    table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), "task": pa.array(texts, pa.string())})
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    told = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
                            "metadata": {"encoding": "UTF-8"}}],
        "columns": [{"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
                    for name, (kind, numpy) in kinds.items()],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }  # fmt: skip
    table = table.replace_schema_metadata({b"pandas": json.dumps(told).encode()})
    with ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
