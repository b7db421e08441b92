"""Whether the videos of a LeRobotDataset are what ``meta/`` says of them: by their headers; no picture is decoded."""

from pathlib import Path
from typing import Final, NamedTuple

from pipelines.sources.lerobot import videos
from pipelines.sources.lerobot.layout import Layout
from pipelines.sources.lerobot.metadata import INFO, Episodes, Info, Row
from stores.errors import SourceError

HALF: Final = 0.5
"""Frames that a clip's seconds may be off from its rows."""


class Clips:
    """What the headers of the video files say, each asked once, beside what the episodes' tables say."""

    def __init__(self, root: Path, info: Info, layout: Layout, episodes: Episodes) -> None:
        self._root, self._info, self._layout = root, info, layout
        self._facts: dict[str, tuple[int, float, tuple[int, int]] | str] = {}
        self._overlaps = overlaps(episodes, info.fps)

    def fault(self, row: Row) -> str | None:
        """What of the episode's videos is not as it must be, in words; None: nothing."""
        fps = self._info.fps
        for camera, size in zip(self._layout.cameras.items(), self._layout.spec.image_sizes, strict=True):
            clip = row.clips.get(camera[1])
            if clip is None:
                continue
            told = f"from_timestamp {clip.start:.4f} to to_timestamp {clip.stop:.4f}"
            if not clip.start >= 0 or abs((clip.stop - clip.start) * fps - row.length) > HALF:
                count = (clip.stop - clip.start) * fps
                return f"{clip.path}: {told} are {count:.1f} frames at {fps:g} a second, length says {row.length} rows"
            if clash := self._overlaps.get((row.index, camera[1])):
                return f"{clip.path}: {told} {clash}"
            facts = self._of(clip.path, row)
            if isinstance(facts, str):
                return facts
            frames, rate, came = facts
            if abs(rate - fps) > 0.01 * fps:
                return f"{clip.path}: {rate:g} frames a second, {INFO} says {fps:g}"
            if came != size:
                return f"{clip.path}: pictures of {came}, {INFO} says {size} (height, width)"
            needed = round(clip.stop * fps)
            if needed > frames:
                return f"{clip.path}: {told} needs {needed} frames, it has {frames}"
        return None

    def _of(self, path: str, row: Row) -> tuple[int, float, tuple[int, int]] | str:
        if path not in self._facts:
            try:
                self._facts[path] = videos.video_facts(self._root, path, row.name)
            except SourceError as error:
                self._facts[path] = str(error)
        return self._facts[path]


class _Taken(NamedTuple):
    """Seconds of a file that a camera's clip of an episode takes."""

    start: float
    stop: float
    episode: int
    camera: str


def overlaps(episodes: Episodes, fps: float) -> dict[tuple[int, str], str]:
    """By (episode, camera), how its clip runs into another's, in words. Of two that share frames nothing says which has
    the wrong pictures, so both are named; but a clip that has not its rows' length is wrong by itself alone.
    """
    files: dict[str, list[_Taken]] = {}
    for row in episodes:
        for key, clip in row.clips.items():
            if abs((clip.stop - clip.start) * fps - row.length) <= HALF:
                files.setdefault(clip.path, []).append(_Taken(clip.start, clip.stop, row.index, key))
    found: dict[tuple[int, str], str] = {}
    for clips in files.values():
        clips.sort()
        last = clips[0]
        for each in clips[1:]:
            if last.episode != each.episode and last.stop - each.start > videos.STEP / fps:
                begins = f"begins before episode {last.episode} ends, at {last.stop:.4f}"
                ends = f"ends after episode {each.episode} begins, at {each.start:.4f}"
                found.setdefault((each.episode, each.camera), begins)
                found.setdefault((last.episode, last.camera), ends)
            last = each if each.stop > last.stop else last
    return found
