"""Small LeRobot datasets written by hand, so that a test can spoil one thing: Parquet, MP4 or PNG, ``meta/``.

Legend: T rows of an episode, H, W rows and columns of a picture.
"""

import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

FPS = 10
SIZE = (24, 32)
TASKS = ("fold the cloth", "hang the cloth up")
TOP, WRIST = "observation.images.top", "observation.image"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = f"videos/{TOP}/chunk-000/file-000.mp4"


def lengths(episodes: int) -> list[int]:
    return [6 + number for number in range(episodes)]


def numbers(episode: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """State [T, 3] and action [T, 2]."""
    rng = np.random.default_rng(episode)
    rows = 6 + episode
    return rng.normal(size=(rows, 3)).astype(np.float32), rng.normal(size=(rows, 2)).astype(np.float32)


def pictures(episode: int) -> NDArray[np.uint8]:
    """uint8 [T, H, W, 3]; each row's has a brightness of its own."""
    rows, (height, width) = 6 + episode, SIZE
    across = np.broadcast_to(np.arange(width) * 2, (height, width))
    moment = 20 * episode + 8 * np.arange(rows)
    shown = [np.stack([across, across.max() - across, np.full_like(across, 60)], -1) + level for level in moment]
    return np.clip(np.stack(shown), 0, 255).astype(np.uint8)


def write_video(path: Path, frames: NDArray[np.uint8], fps: float = FPS) -> None:
    """Lossless, so that a test may compare pictures bit for bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        stream.options = {"crf": "0", "g": "2"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def write_dataset(root: Path, episodes: int = 4, splits: dict[str, str] | None = None) -> Path:
    """A dataset with a camera as video and one as pictures in the rows, and two tasks in turn."""
    rows: dict[str, list[Any]] = {}
    table: list[dict[str, Any]] = []
    start = 0
    for episode, length in enumerate(lengths(episodes)):
        state, action = numbers(episode)
        count = np.arange(length)
        columns = {
            "observation.state": list(state),
            "action": list(action),
            WRIST: [{"bytes": png(picture[::-1]), "path": None} for picture in pictures(episode)],
            "timestamp": (count / FPS).astype(np.float32),
            "frame_index": count,
            "episode_index": np.full(length, episode),
            "index": start + count,
            "task_index": np.full(length, episode % 2),
        }
        for name, values in columns.items():
            rows.setdefault(name, []).extend(values)
        table.append(
            {"episode_index": episode, "tasks": [TASKS[episode % 2]], "length": length, "dataset_from_index": start,
             "dataset_to_index": start + length, "data/chunk_index": 0, "data/file_index": 0,
             f"videos/{TOP}/chunk_index": 0, f"videos/{TOP}/file_index": 0,
             f"videos/{TOP}/from_timestamp": start / FPS, f"videos/{TOP}/to_timestamp": (start + length) / FPS}
        )  # fmt: skip
        start += length
    kinds = {
        "observation.state": pa.list_(pa.float32(), 3), "action": pa.list_(pa.float32(), 2), "timestamp": pa.float32(),
        WRIST: pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    }  # fmt: skip
    whole = pa.table({name: pa.array(values, kinds.get(name, pa.int64())) for name, values in rows.items()})
    for name in (DATA, EPISODES):
        (root / name).parent.mkdir(parents=True)
    pq.write_table(whole, root / DATA, row_group_size=7)
    pq.write_table(pa.Table.from_pylist(table), root / EPISODES)
    tasks = pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    write_video(root / VIDEO, np.concatenate([pictures(episode) for episode in range(episodes)]))
    vector = {"dtype": "float32"}
    place = {"dtype": "int64", "shape": [1], "names": None}
    shape = [*SIZE, 3]
    write_json(
        root / "meta/info.json",
        {
            "codebase_version": "v3.0", "robot_type": "two hands", "total_episodes": episodes, "total_frames": start,
            "total_tasks": 2, "fps": FPS, "splits": splits or {"train": f"0:{episodes}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": {
                TOP: {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]},
                WRIST: {"dtype": "image", "shape": [3, *SIZE], "names": ["channels", "height", "width"]},
                "observation.state": {**vector, "shape": [3], "names": {"motors": ["pan.pos", "lift.pos", "roll.pos"]}},
                "action": {**vector, "shape": [2], "names": ["left", "right"]},
                "timestamp": {**vector, "shape": [1], "names": None},
                **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), place),
            },
        },
    )  # fmt: skip
    write_json(root / "meta/stats.json", statistics(episodes))
    return root


def statistics(episodes: int) -> dict[str, Any]:
    found = {}
    for key, which in (("observation.state", 0), ("action", 1)):
        rows = np.concatenate([numbers(episode)[which] for episode in range(episodes)]).astype(float)
        found[key] = {name: getattr(rows, name)(axis=0).tolist() for name in ("min", "max", "mean", "std")}
        found[key]["count"] = [len(rows)]
    return found


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


def edit_table(path: Path, column: str, row: int, value: Any) -> None:
    """One value of a Parquet file."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row] = value
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), path)
