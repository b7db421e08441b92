"""GIFs hold the frames that they should, in real time, with the pictures unharmed."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from statevla.observation import Observation
from statevla.reports.films import Clip, gif_bytes, kept_frames, png_bytes
from stores.errors import UsageError


def clip(frames: int, outcome: str = "success") -> Clip:
    """Camera 0 brightens with time, camera 1 stays red; the fingers close."""
    seen = []
    for t in range(frames):
        images = np.zeros((2, 16, 16, 3), np.uint8)
        images[0] = 20 * t
        images[1, ..., 0] = 200
        state = np.zeros(9, np.float32)
        state[7] = 0.04 * (1 - t / frames)
        seen.append(Observation(tuple(images), state, "put <the> red block in the green bowl"))
    return Clip(tuple(seen), outcome)


@given(st.integers(1, 200), st.integers(1, 20))
def test_kept_frames_are_strided_and_end_with_the_last(count: int, stride: int) -> None:
    kept = kept_frames(count, stride)
    assert kept[0] == 0
    assert kept[-1] == count - 1
    assert all(index % stride == 0 for index in kept[:-1])
    assert kept == sorted(set(kept))
    assert len(kept) == -(-(count - 1) // stride) + 1


@pytest.mark.parametrize(("frames", "stride", "expected"), [(8, 1, 8), (8, 2, 5), (7, 3, 3), (1, 2, 1)])
def test_frame_count_and_speed(frames: int, stride: int, expected: int) -> None:
    with Image.open(io.BytesIO(gif_bytes(clip(frames), side=48, stride=stride))) as gif:
        assert gif.n_frames == expected
        assert gif.size == (48 * 2 + 6, 48 + 40)
        if expected > 1:
            assert gif.info["duration"] == 50 * stride
            assert gif.info["loop"] == 0


def test_pictures_survive() -> None:
    with Image.open(io.BytesIO(gif_bytes(clip(8), side=48, stride=1))) as gif:
        for t in range(gif.n_frames):
            gif.seek(t)
            pixels = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(pixels[24, 24] - 20 * t).max() <= 24  # one palette for the clip
            assert np.abs(pixels[24, 48 + 6 + 24] - [200, 0, 0]).max() <= 24


def test_the_text_is_drawn() -> None:
    with Image.open(io.BytesIO(gif_bytes(clip(2), side=48))) as gif:
        foot = np.asarray(gif.convert("L"))[48:]
    assert foot.max() > 150


def test_the_planned_chunk_is_drawn_and_what_is_ahead_of_now_is_bright() -> None:
    rising = np.zeros((6, 7), np.float32)
    rising[:, 0] = np.linspace(-1, 1, 6)
    seen = clip(8)
    planned = Clip(seen.observations, "success", ((0, rising), (5, -rising)))
    size, ahead, first = 112, [], {}
    with Image.open(io.BytesIO(gif_bytes(planned, side=size, stride=1))) as gif:
        assert gif.size == (size * 2 + 6, size + 40 + 52)
        for t in range(gif.n_frames):
            gif.seek(t)
            strip = np.asarray(gif.convert("RGB")).astype(int)[size + 40 :, :32]
            bright = np.abs(strip - (96, 190, 255)).sum(axis=-1) < 90
            ahead.append(bright.sum())
            first[t] = np.argwhere(bright)[:, 0].mean()
    assert ahead[0] > ahead[2] > ahead[4]
    assert ahead[5] > ahead[4]  # a new chunk
    assert first[3] < 32 < first[7]  # what is left of a rising plan lies above the middle, of a falling one below


def test_stills_show_both_cameras() -> None:
    with Image.open(io.BytesIO(png_bytes(clip(1).observations[0].images, side=32))) as still:
        pixels = np.asarray(still)
    assert pixels.shape == (32, 70, 3)
    assert tuple(pixels[16, 16]) == (0, 0, 0)
    assert tuple(pixels[16, 54]) == (200, 0, 0)


def test_an_empty_clip_is_refused() -> None:
    with pytest.raises(UsageError, match="no observations"):
        gif_bytes(Clip((), "error"))
