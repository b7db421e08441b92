"""Pictures of an episode out of a dataset's MP4 files, by PyAV (extra ``lerobot``): frames that come when they should.

Legend: H, W rows and columns of a picture.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.sources import pulse
from pipelines.sources.lerobot.metadata import Clip, reporting, require_file
from stores.errors import SourceError, UsageError

STEP: Final = 0.25
"""Share of a frame's time that a picture may be off; a picture of the next or the last row is off by a whole one."""


def pyav() -> ModuleType:
    """PyAV. Raises UsageError saying what to install."""
    try:
        import av
    except ImportError as error:
        raise UsageError(f"video of LeRobot datasets needs PyAV: pip install 'statevla[lerobot]' ({error})") from error
    av.logging.set_level(av.logging.FATAL)
    found: ModuleType = av
    return found


@contextlib.contextmanager
def opened(root: Path, path: str, needed_by: str) -> Iterator[tuple[Any, Any]]:
    """(container, its video stream). Raises SourceError, SourceTrouble naming the file."""
    av = pyav()
    with reporting(path):
        require_file(root / path, needed_by)
        with av.open(str(root / path)) as container:
            if not container.streams.video:
                raise SourceError("no video in it")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # a process that was forked from one with threads starts none
            yield container, stream


def video_facts(root: Path, path: str, needed_by: str) -> tuple[int, float, tuple[int, int]]:
    """(frames, frames a second, (height, width)) of a video. Counts packets where the header does not say."""
    with opened(root, path, needed_by) as (container, stream):
        frames, rate = int(stream.frames), float(stream.average_rate or 0)
        size = (int(stream.codec_context.height), int(stream.codec_context.width))
        if not frames:
            for packet in container.demux(stream):
                pulse.beat()
                frames += packet.size > 0
        return frames, rate, size


def frames_of(
    root: Path, clip: Clip, fps: float, first: int, length: int, size: tuple[int, int], episode: str
) -> Iterator[NDArray[np.uint8]]:
    """Pictures uint8 [H, W, 3] of rows `first` to `length` of an episode. Raises SourceError where a frame does not
    come when its row says, or the video ends before.
    """
    with opened(root, clip.path, episode) as (container, stream):
        base = float(stream.time_base)
        container.seek(max(0, round((clip.start + (first - STEP) / fps) / base)), stream=stream, backward=True)
        row = first
        for frame in container.decode(stream):
            pulse.beat()
            if frame.pts is None:
                raise SourceError(f"a frame without a time, where row {row} of {episode} is expected")
            came = frame.pts * base - clip.start
            if came < (first - STEP) / fps:
                continue
            if abs(came - row / fps) > STEP / fps:
                raise SourceError(
                    f"row {row} of {episode}: expected its frame {row / fps:.4f} s after from_timestamp "
                    f"{clip.start:.4f}, got one at {came:.4f} s: frames are out of step with the rows"
                )
            if (frame.height, frame.width) != size:
                raise SourceError(f"row {row} of {episode}: expected {size}, got {(frame.height, frame.width)} pixels")
            yield frame.to_ndarray(format="rgb24")
            row += 1
            if row == length:
                return
        raise SourceError(f"it ends after {row} of the {length} frames of {episode}")


def add_packets(digest: "xxhash.xxh3_128", root: Path, clip: Clip, fps: float, episode: str) -> None:
    """Add the compressed frames of an episode to `digest`, from the key frame before its first one on."""
    with opened(root, clip.path, episode) as (container, stream):
        base = float(stream.time_base)
        extra = stream.codec_context.extradata or b""
        digest.update(f"{stream.codec_context.name}\0{stream.time_base}\0{clip.start}\0{clip.stop}\0".encode() + extra)
        container.seek(max(0, round((clip.start - STEP / fps) / base)), stream=stream, backward=True)
        for packet in container.demux(stream):
            pulse.beat()
            if packet.pts is None or (packet.dts is not None and packet.dts * base > clip.stop):
                break
            digest.update(f"{packet.pts}\0".encode() + bytes(packet))
