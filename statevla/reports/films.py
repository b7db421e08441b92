"""Rollouts as animated GIFs: both cameras enlarged, the instruction, the gripper, the planned chunk and the outcome."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from statevla.observation import Observation
from stores.disk import durable
from stores.errors import UsageError
from stores.spec import LIBERO

FINGER_OPEN: Final = 0.05
"""Finger position that is drawn as fully open [m]: the tabletop gripper's; LIBERO's opens to 0.04."""

GAP: Final = 6
FOOT: Final = 40
PLAN: Final = 52
"""Height of the strip with the planned chunk."""

INK: Final = (232, 236, 241)
DIM: Final = (172, 181, 192)
AHEAD: Final = (96, 190, 255)
GROUND: Final = (30, 35, 42)
OUTCOME_COLOURS: Final = {"success": (74, 200, 120), "failure": (232, 112, 92), "error": (232, 190, 80)}
PALETTE: Final = 128


@dataclass(frozen=True)
class Clip:
    """What was seen in one rollout, first observation to last. outcome: ``success``, ``failure`` or ``error``.

    plans: the chunks [K, A] that a policy decided on, each with the observation's index that it saw; in order.
    """

    observations: tuple[Observation, ...]
    outcome: str
    plans: tuple[tuple[int, NDArray[np.float32]], ...] = ()


def write_gif(path: Path, clip: Clip, side: int = 288, stride: int = 2) -> None:
    """Write ``clip`` as a GIF that plays in real time and rests on its last frame.

    Args:
        side: pixels of each camera's picture in the GIF.
        stride: keep every n-th observation (the last one always).
    """
    with durable.atomic(path) as file:
        file.write(gif_bytes(clip, side, stride))


def gif_bytes(clip: Clip, side: int = 288, stride: int = 2) -> bytes:
    """`write_gif`, in memory. Raises UsageError on a clip without observations."""
    if not clip.observations:
        raise UsageError("video: the clip holds no observations")
    kept = kept_frames(len(clip.observations), stride)
    frames = [_draw(clip, index, side) for index in kept]
    palette = _palette(frames)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 * stride / LIBERO.control_hz)] * len(frames)
    durations[-1] = 1500
    buffer = io.BytesIO()
    indexed[0].save(
        buffer, format="GIF", save_all=True, append_images=indexed[1:], duration=durations, loop=0, optimize=False
    )
    return buffer.getvalue()


def frames_of_gif(gif: bytes, quality: int = 82) -> tuple[tuple[bytes, ...], int]:
    """The frames of a GIF as JPEG, and the milliseconds of the first, for a player that can stop and scrub."""
    frames = []
    with Image.open(io.BytesIO(gif)) as film:
        every = int(film.info["duration"])
        for frame in ImageSequence.Iterator(film):
            buffer = io.BytesIO()
            frame.convert("RGB").save(buffer, format="JPEG", quality=quality)
            frames.append(buffer.getvalue())
    return tuple(frames), every


def kept_frames(count: int, stride: int) -> list[int]:
    """Every ``stride``-th index of ``count``, and the last."""
    kept = list(range(0, count, stride))
    return kept if kept[-1] == count - 1 else [*kept, count - 1]


def png_bytes(images: Sequence[NDArray[np.uint8]], side: int = 224) -> bytes:
    """All cameras of one observation, uint8 [H, W, 3] each, side by side as a PNG."""
    canvas = Image.new("RGB", (len(images) * side + GAP * (len(images) - 1), side), GROUND)
    _paste(canvas, images, side)
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _paste(canvas: Image.Image, images: Sequence[NDArray[np.uint8]], side: int) -> None:
    for number, picture in enumerate(images):
        enlarged = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        canvas.paste(enlarged, (number * (side + GAP), 0))


def _draw(clip: Clip, index: int, side: int) -> Image.Image:
    seen = clip.observations[index]
    width = len(seen.images) * side + GAP * (len(seen.images) - 1)
    height = side + FOOT + (PLAN if clip.plans else 0)
    canvas = Image.new("RGB", (width, height), GROUND)
    _paste(canvas, seen.images, side)
    draw = ImageDraw.Draw(canvas)
    text, small = ImageFont.load_default(13), ImageFont.load_default(11)
    draw.text((8, side + 4), seen.instruction, INK, text)
    last = index == len(clip.observations) - 1
    status = clip.outcome if last else f"{index / LIBERO.control_hz:4.1f} s"
    colour = OUTCOME_COLOURS.get(clip.outcome, INK) if last else DIM
    draw.text((8, side + 22), status, colour, small)
    _draw_gripper(draw, float(seen.robot_state[7]), width, side, small)
    if clip.plans:
        _draw_plan(draw, clip, index, width, side + FOOT, small)
    if last:
        draw.rectangle((0, 0, width - 1, height - 1), outline=colour, width=3)
    return canvas


def _draw_plan(
    draw: ImageDraw.ImageDraw,
    clip: Clip,
    index: int,
    width: int,
    top: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """The newest chunk, a small curve a dimension: what lies behind now is dim, what is still planned bright.

    All of a dimension's curves have the scale of the largest value that was ever planned in it.
    """
    known = [plan for plan in clip.plans if plan[0] <= index]
    if not known:
        return
    start, chunk = known[-1]
    scale = np.maximum(np.max([np.abs(plan).max(axis=0) for _, plan in clip.plans], axis=0), 1e-3)
    cell = width / chunk.shape[1]
    middle, half = top + 32, 14
    for dimension, values in enumerate(np.clip(chunk / scale, -1, 1).T):
        left = dimension * cell + 6
        step = (cell - 12) / max(1, len(values) - 1)
        points = [(left + k * step, middle - half * float(value)) for k, value in enumerate(values)]
        now = min(max(index - start, 0), len(points) - 1)
        draw.text((left, top), _label(dimension, chunk.shape[1]), DIM, font)
        draw.line((left, middle, left + cell - 12, middle), (70, 78, 90))
        draw.line(points[: now + 1] if now else points[:1] * 2, DIM, 1)
        draw.line(points[now:] if now < len(points) - 1 else points[-1:] * 2, AHEAD, 2)
        x, y = points[now]
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), INK)


def _label(dimension: int, width: int) -> str:
    """A dimension's name where the action is LIBERO's, else its number."""
    return LIBERO.action_names[dimension] if width == LIBERO.action_dim else str(dimension)


def _draw_gripper(
    draw: ImageDraw.ImageDraw, finger: float, width: int, side: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    """Two fingers as far apart as the real ones, relative to an open gripper."""
    opening = min(max(finger / FINGER_OPEN, 0.0), 1.0)
    centre, top = width - 36, side + 23
    draw.text((width - 112, side + 22), "gripper", DIM, font)
    half = 4 + round(18 * opening)
    draw.line((centre - 24, top + 12, centre + 24, top + 12), DIM)
    for x in (centre - half, centre + half):
        draw.rectangle((x - 2, top, x + 2, top + 11), INK)


def _palette(frames: list[Image.Image]) -> Image.Image:
    """One palette for the whole clip, so that still parts do not flicker: from the first, middle and last frame.

    Every third pixel is enough to find the colours, and a ninth of the work.
    """
    width, height = frames[0].size[0] // 3, frames[0].size[1] // 3
    picks = [frames[i].resize((width, height), Image.Resampling.NEAREST) for i in (0, len(frames) // 2, -1)]
    sheet = Image.new("RGB", (width, height * len(picks)))
    for number, frame in enumerate(picks):
        sheet.paste(frame, (0, number * height))
    return sheet.quantize(PALETTE, method=Image.Quantize.MEDIANCUT, kmeans=2)
