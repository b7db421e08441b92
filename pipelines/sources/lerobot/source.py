"""LeRobotDataset v3.0 as a row of `pipelines.sources.table.SOURCES`: a folder is the source file, an episode a
demonstration.

A row holds the observation and the action that was sent after it, so ``obs[t]`` is before ``action[t]``; nothing in the
files shows it; ``--alignment after`` says otherwise. The dataset's held-out split is kept (``--masks ignore``: not).

Legend: T rows of an episode, R numbers of a robot state, D of an action, H, W rows and columns of a picture.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from pipelines.sources import pulse
from pipelines.sources.alignment import AFTER, BEFORE
from pipelines.sources.evidence import Told
from pipelines.sources.fields import told_fields
from pipelines.sources.lerobot import videos
from pipelines.sources.lerobot.clips import Clips
from pipelines.sources.lerobot.commands import convert_commands, weigh_commands
from pipelines.sources.lerobot.layout import Layout, layout_of
from pipelines.sources.lerobot.metadata import (
    EPISODES,
    INFO,
    OWN_TASK,
    STATS,
    TASKS,
    Episodes,
    Info,
    Row,
    read_info,
    read_tasks,
    require_all,
)
from pipelines.sources.lerobot.rows import DataFile
from pipelines.sources.lerobot.statistics import Moments, differences
from pipelines.sources.masks import IGNORE
from pipelines.sources.source import Episode, EpisodeHead, SourceFile, Verdict
from pipelines.sources.texts import clean_instruction, near_identical, require_printable
from stores.errors import SourceError, SourceTrouble
from stores.printable import plain

TRAIN: Final = "train"


class LeRobotSource:
    """The format; see the module."""

    name: Final = "lerobot"
    format: Final = 1
    suffixes: Final = ()
    takes_fields: Final = True
    as_stored: Final = True
    """Whether pictures stay the way round that they are."""

    def is_dataset(self, folder: Path) -> bool:
        """Whether `folder` has what every LeRobot dataset has."""
        return (folder / INFO).is_file()

    def members(self, folder: Path) -> tuple[Path, ...]:
        """The files of the dataset; its statistics are not needed and may be absent."""
        found = [folder / INFO, folder / TASKS, *(path for path in (folder / STATS,) if path.exists())]
        for pattern in (f"{EPISODES}/*/*.parquet", "data/*/*.parquet", "videos/*/*/*.mp4"):
            found += sorted(folder.glob(pattern))
        return tuple(found)

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a dataset."""
        return self.is_dataset(path)

    def inspect(self, path: Path, told: Told, poison: Mapping[int, str], files: int = 1) -> SourceFile:
        """See `pipelines.sources.source.Source`; every row's place and time is looked at, and no picture."""
        with _naming(path):
            return _inspect(path, told)

    def weigh(self, files: Mapping[str, SourceFile], told: Told) -> Verdict:
        """Nothing of one dataset bears on another but instructions that read alike."""
        texts = dict.fromkeys(head.instruction for header in files.values() for head in header.episodes.values())
        notes = [("", f"instructions that read alike, kept as they are: {', '.join(map(repr, group))}")
                 for group in near_identical(texts)]  # fmt: skip
        return Verdict({name: dict(header.evidence) for name, header in files.items()}, {}, tuple(notes))

    @contextlib.contextmanager
    def open(self, path: Path, facts: Mapping[str, Any], told: Told) -> Iterator["OpenLeRobot"]:
        """See `pipelines.sources.source.Source`."""
        with _naming(path):
            opened = OpenLeRobot(path, told, facts)
            if opened.info.digest != facts["features"]:
                raise SourceTrouble(f"{INFO} was replaced while the dataset was read; run the same command again")
        yield opened


class OpenLeRobot:
    """An open dataset; the Parquet file that was read last stays open."""

    def __init__(self, root: Path, told: Told, facts: Mapping[str, Any]) -> None:
        self.root, self._told, self._facts = root, told, facts
        self.info = read_info(root)
        self._tasks = read_tasks(root)
        self._episodes = Episodes(root, self.info)
        self.layout = layout_of(root, self.info, told_fields(told.fields, told.spec))
        self._data: DataFile | None = None

    def episode(self, name: str) -> Episode:
        """Raises SourceError naming dataset, episode, file, what was expected and what came."""
        with _naming(self.root, name):
            row = self._episodes.find(name)
            data = self._file(row)
            fault = data.fault(row, self.info, self._tasks)
            if fault:
                raise SourceError(fault)
            ((first, end),) = data.places[row.index]
            state, action = self._numbers(data, first, end)
            alignment = AFTER if self._told.alignment == AFTER else BEFORE
            if alignment == AFTER:
                action = action[1:]
            elif row.steps in (row.length, row.length - 1):
                action = action[: row.steps]
            sizes = self.layout.spec.image_sizes
            return Episode(name, state, action, alignment, sizes, self._images(row, data, first, end))

    def fingerprint(self, name: str) -> str:
        """Of the numbers, the pictures as they are stored, and where ``meta/`` says that they are."""
        try:
            with _naming(self.root, name):
                row = self._episodes.find(name)
                data = self._file(row)
                if fault := data.fault(row, self.info, self._tasks):
                    return f"unreadable: {fault}"
                ((first, end),) = data.places[row.index]
                digest = xxhash.xxh3_128(repr((row, self._told.alignment)).encode())
                for values in self._numbers(data, first, end):
                    digest.update(np.ascontiguousarray(values).data)
                for key in self.layout.cameras.values():
                    if key in row.clips:
                        videos.add_packets(digest, self.root, row.clips[key], self.info.fps, name)
                    else:
                        for picture in data.pictures(key, first, end):
                            digest.update(picture)
                return digest.hexdigest()
        except SourceError as error:
            return f"unreadable: {error}"

    def _file(self, row: Row) -> DataFile:
        if self._data is None or self._data.path != row.path:
            self._data = DataFile(self.root, row.path, row.name)
        return self._data

    def _numbers(self, data: DataFile, first: int, end: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Robot state [T, R] and actions [T, D]."""
        found = data.numbers([*self.layout.state, self.layout.action], first, end)
        action = convert_commands(found[self.layout.action[0]], self._facts)
        return np.concatenate([found[key] for key, _ in self.layout.state], axis=1), action

    def _images(
        self, row: Row, data: DataFile, first: int, end: int
    ) -> Callable[[str, int, int, NDArray[np.uint8] | None], NDArray[np.uint8]]:
        sizes = dict(zip(self.layout.cameras, self.layout.spec.image_sizes, strict=True))
        going: dict[str, tuple[int, Iterator[NDArray[np.uint8]]]] = {}

        def stream(camera: str, start: int) -> Iterator[NDArray[np.uint8]]:
            key, size = self.layout.cameras[camera], sizes[camera]
            if key in row.clips:
                return videos.frames_of(self.root, row.clips[key], self.info.fps, start, row.length, size, row.name)
            pictures = data.pictures(key, first + start, end)
            return (decode_picture(file, size, f"{data.path}, {key}, row {first + start}") for file in pictures)

        def images(camera: str, start: int, stop: int, into: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
            with _naming(self.root, row.name):
                at, frames = going.pop(camera, (-1, iter(())))
                if at != start:
                    frames = stream(camera, start)
                read = np.empty((stop - start, *sizes[camera], 3), np.uint8) if into is None else into[: stop - start]
                for number in range(stop - start):
                    read[number] = next(frames)
                going[camera] = (stop, frames)
                return read

        return images


def decode_picture(file: bytes, size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    """A PNG or JPEG -> uint8 [H, W, 3]. Raises SourceError."""
    pulse.beat()
    try:
        with Image.open(io.BytesIO(file), formats=["PNG", "JPEG"]) as opened:
            if (opened.height, opened.width) != size:
                raise SourceError(f"{where}: expected {size}, got {(opened.height, opened.width)} pixels")
            return np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SourceError(f"{where}: {len(file)} bytes are no PNG or JPEG: {error}") from error


@contextlib.contextmanager
def _naming(root: Path, episode: str = "") -> Iterator[None]:
    where = f"{root.name}/{episode}" if episode else root.name
    try:
        yield
    except (SourceError, SourceTrouble) as error:
        text = plain(str(error))
        raise type(error)(text if text.startswith(plain(where)) else f"{plain(where)}: {text}") from error


def _inspect(root: Path, told: Told) -> SourceFile:
    info, tasks = read_info(root), read_tasks(root)
    episodes = Episodes(root, info)
    require_all(root, info, episodes)
    layout = layout_of(root, info, told_fields(told.fields, told.spec))
    notes = [f"{root.name}: {note}" for note in layout.notes]
    if told.alignment not in (AFTER, BEFORE) and not layout.own:
        notes.append(f"{root.name}: observations taken as stored before their actions, as LeRobot records them; "
                     "nothing in the files shows it (--alignment after says otherwise)")  # fmt: skip
    for what, said, came in (("total_episodes", info.episodes, len(episodes)),
                             ("total_frames", info.frames, sum(row.length for row in episodes))):  # fmt: skip
        if said is not None and said != came:
            notes.append(f"{root.name}: {INFO}, {what} declares {said}, {EPISODES} has {came}")
    refused: dict[str, str] = {}
    heads: dict[str, EpisodeHead] = {}
    moments = {key: Moments() for key, _ in (*layout.state, layout.action)}
    for row, fault in _looked_at(root, info, layout, tasks, episodes, moments, notes):
        if row.name in heads or row.name in refused:
            heads.pop(row.name, None)
            refused[row.name] = f"{root.name}/{row.name}: {EPISODES} has it more than once"
        elif fault:
            refused[row.name] = f"{root.name}/{row.name}: {fault}"
        else:
            text = told.fields.instruction if told.fields and told.fields.instruction else row.tasks[0]
            try:
                instruction = clean_instruction(text, TASKS)
                task = require_printable(row.task or instruction, f"{EPISODES}, {OWN_TASK}")
            except SourceError as error:
                hint = "" if text.strip() else "; say it by --spec, instruction"
                refused[row.name] = f"{root.name}/{row.name}: {error}{hint}"
                continue
            heads[row.name] = EpisodeHead(row.length, layout.spec.image_sizes, task, instruction)
    parts, out = _split(info, episodes, told.masks, root.name, notes)
    heads = {name: head for name, head in heads.items() if name not in out}
    commands, remarks = weigh_commands(layout.spec, moments[layout.action[0]], told.gripper)
    notes += [f"{root.name}: {note}" for note in remarks]
    evidence = {"codebase_version": info.version, "features": info.digest, **commands}
    listed = tuple(sorted(refused.items()))
    return SourceFile(root.name, layout.spec, heads, evidence, parts, listed, tuple(notes))


def _looked_at(
    root: Path,
    info: Info,
    layout: Layout,
    tasks: Mapping[int, str],
    episodes: Episodes,
    moments: Mapping[str, Moments],
    notes: list[str],
) -> Iterator[tuple[Row, str | None]]:
    """Every episode with what is wrong with it. Adds what it sees to `moments`, and to `notes` what ``stats.json`` has
    wrong.
    """
    keys = [*layout.state, layout.action]
    clips = Clips(root, info, layout, episodes)
    known = {int(number) for number in episodes.index}
    data: DataFile | None = None
    broken: dict[str, str] = {}
    seen: set[str] = set()
    for row in sorted(episodes, key=lambda row: (row.path, row.index)):
        pulse.beat()
        if data is None or data.path != row.path:
            data = None
            try:
                if row.path not in broken:
                    data = DataFile(root, row.path, row.name)
                    if row.path not in seen:
                        _add_moments(data, keys, moments)
                        stray = sorted(set(data.places) - known)
                        if stray:
                            notes.append(
                                f"{root.name}: {row.path} has rows of episodes {stray[:10]}, not in {EPISODES}"
                            )
                    seen.add(row.path)
            except SourceError as error:
                broken[row.path], data = str(error), None
        yield row, broken[row.path] if data is None else data.fault(row, info, tasks) or clips.fault(row)
    names = {key: info.features[key].names for key, _ in keys}
    if not broken:
        notes += [f"{root.name}: {note}" for note in differences(root, moments, names)]


def _add_moments(data: DataFile, keys: list[tuple[str, int]], moments: Mapping[str, Moments]) -> None:
    for piece in data.scan(keys):
        for key, values in piece.items():
            moments[key].add(values)


def _split(
    info: Info, episodes: Episodes, told: str, where: str, notes: list[str]
) -> tuple[dict[str, str], frozenset[str]]:
    """train or val by episode, and the episodes that no part of the split names. Raises SourceError."""
    ranges: dict[str, range] = {}
    for name, text in info.splits.items():
        found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
        if not found:
            raise SourceError(f"{INFO}, splits, {name}: expected a range of episodes as 'first:end', got {text!r:.40}")
        ranges[name] = range(int(found[1]), int(found[2]))
    held = {name: part for name, part in ranges.items() if name != TRAIN and len(part)}
    trained = ranges.get(TRAIN, range(0))
    listed = ", ".join(f"{name} {info.splits[name]}" for name in ranges)
    if not ranges or (not held and all(int(number) in trained for number in episodes.index)):
        return {}, frozenset()
    if told == IGNORE:
        notes.append(f"{where}: splits {listed} are not used (--masks {IGNORE})")
        return {}, frozenset()
    notes.append(f"{where}: splits {listed} are kept: train, and the others held out (--masks {IGNORE}: not used)")
    parts, out = {}, []
    for row in episodes:
        outside = any(row.index in part for part in held.values())
        if outside or row.index in trained:  # in both: what was held out stays held out
            parts[row.name] = "val" if outside else "train"
        else:
            out.append(row.name)
    if out:
        more = f" and {len(out) - 10} more" if len(out) > 10 else ""
        notes.append(f"{where}: {', '.join(out[:10])}{more} left out: in no split")
    return parts, frozenset(out)


LEROBOT_SOURCE: Final = LeRobotSource()
