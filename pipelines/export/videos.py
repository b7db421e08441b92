"""One camera's pictures as MP4 files of several episodes each, by PyAV (extra ``lerobot``).

H.264, every second frame a key frame (as LeRobot writes it, so that any frame is near one), no frame out of order.
Lossy is YUV 4:4:4 at CRF 10: colours keep their resolution. Lossless is RGB at CRF 0. Measured in docs/sources.md.

Legend: H, W rows and columns of a picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.lerobot.videos import pyav
from stores.disk import durable

THREADS: Final = 2
"""Of the encoder; the bytes depend on it, so it does not depend on the machine."""
CRF: Final = 10


@dataclass(frozen=True)
class Coding:
    """What the encoder is told. pix_fmt: of the stream."""

    encoder: str
    pix_fmt: str
    crf: int

    @property
    def info(self) -> dict[str, Any]:
        """As a feature's ``info`` in LeRobot's meta/info.json has it."""
        return {"video.codec": "h264", "video.pix_fmt": self.pix_fmt, "is_depth_map": False, "has_audio": False}


LOSSY: Final = Coding("libx264", "yuv444p", CRF)
LOSSLESS: Final = Coding("libx264rgb", "gbrp", 0)


class VideoFiles:
    """Frames come in order, episode by episode; a file that has reached `limit` bytes gets no further episode.

    place(number): the path of file `number`.
    """

    def __init__(
        self, place: Callable[[int], Path], fps: float, size: tuple[int, int], coding: Coding, limit: int
    ) -> None:
        self._place, self._size, self._coding, self._limit = place, size, coding, limit
        self._rate = Fraction(fps).limit_denominator(100_000)
        self._number, self._frames, self._bytes, self._from = -1, 0, 0, 0
        self._container: Any = None
        self._stream: Any = None

    def begin(self) -> None:
        """The next frame is the first of an episode."""
        if self._container is None or self._bytes >= self._limit:
            self.close()
            self._open()
        self._from = self._frames

    def add(self, picture: NDArray[np.uint8]) -> None:
        """The next frame, uint8 [H, W, 3]."""
        frame = pyav().VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = self._frames, 1 / self._rate
        self._frames += 1
        self._put(self._stream.encode(frame))

    def end(self) -> tuple[int, float, float]:
        """(number of the file, first and end second there) of the episode that began."""
        return self._number, float(self._from / self._rate), float(self._frames / self._rate)

    def close(self) -> None:
        """Finish the file that is open."""
        if self._container is not None:
            self._put(self._stream.encode())
            self._container.close()
            self._container = None

    def _open(self) -> None:
        self._number += 1
        self._frames = self._bytes = 0
        path = self._place(self._number)
        durable.make_dir(path.parent)
        self._container = pyav().open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        told = {"crf": str(self._coding.crf), "g": "2", "bf": "0"}
        self._stream = self._container.add_stream(self._coding.encoder, rate=self._rate, options=told)
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = "rgb24" if self._coding is LOSSLESS else self._coding.pix_fmt
        self._stream.codec_context.thread_count = THREADS

    def _put(self, packets: list[Any]) -> None:
        for packet in packets:
            self._bytes += packet.size
            self._container.mux(packet)
