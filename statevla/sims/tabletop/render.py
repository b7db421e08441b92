"""Pictures of the tabletop suite: two cameras, drawn with NumPy, antialiased, fast enough to collect demonstrations.

Legend: S image side [px], H/W rows and columns of a layer, O objects (blocks first, then bowls).

What does not move (table, bowls, blocks at rest) is drawn once on a large layer and redrawn only when a block is picked
or put down; a frame is a piece of that layer plus shadow, held block, arm and gripper. Both come *upright*:
row 0 is away from the robot (+y), column 0 is the robot's left (-x).
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Pixels = NDArray[np.float32]
Colour = tuple[int, int, int]

BLOCK_HALF: Final = 0.03
BOWL_RADIUS: Final = 0.075
TABLE_HALF: Final = 0.25

AGENT_WIDTH: Final = 0.56
"""Width of table that the fixed camera sees [m]."""
AGENT_HEIGHT: Final = 2.0
"""Height of the fixed camera [m]: what is higher looks larger and further out."""
HAND_CAMERA: Final = 0.35
"""Height of the hand's camera above the gripper [m]."""
HAND_ANGLE: Final = 0.5 / 0.55
"""Width seen by the hand's camera for each metre of distance: 0.5 m at a gripper height of 0.2 m."""

# Greys: what is saturated is a block or a bowl.
FLOOR: Final = (122, 120, 118)
TABLE: Final = (132, 129, 125)
GRAIN: Final = (126, 123, 119)
SHADOW: Final = (40, 34, 30)
ARM: Final = (150, 150, 152)
ARM_EDGE: Final = (112, 112, 114)
PALM: Final = (90, 90, 92)
FINGER: Final = (235, 235, 236)


@dataclass(frozen=True, eq=False)
class Scene:
    """What there is to draw. ``objects [O, 4]`` = x, y, z, yaw; ``held`` = index of the block in the gripper."""

    gripper: NDArray[np.float64]
    """[x, y, z, yaw]"""
    finger: float
    """Distance of each finger from the gripper's centre [m]."""
    elbow: tuple[float, float]
    base: tuple[float, float]
    objects: NDArray[np.float64]
    held: int | None
    block_colours: tuple[Colour, ...]
    bowl_colours: tuple[Colour, ...]


class _Layer:
    """A float picture ``[H, W, 3]`` of the plane, ``scale`` px per metre, centred on world point (x, y)."""

    def __init__(self, pixels: Pixels, scale: float, x: float = 0.0, y: float = 0.0) -> None:
        # NumPy scalars are not weak: one of float64 would widen whole float32 layers.
        self.pixels, self.scale, self.x, self.y = pixels, float(scale), float(x), float(y)

    def _window(self, x: float, y: float, reach_x: float, reach_y: float) -> tuple[slice, slice]:
        height, width = self.pixels.shape[:2]
        column, row = width / 2 + (x - self.x) * self.scale, height / 2 - (y - self.y) * self.scale
        rx, ry = reach_x * self.scale + 1, reach_y * self.scale + 1
        return (
            slice(max(int(row - ry), 0), max(min(int(row + ry) + 1, height), 0)),
            slice(max(int(column - rx), 0), max(min(int(column + rx) + 1, width), 0)),
        )

    def _offsets(self, window: tuple[slice, slice], x: float, y: float) -> tuple[Pixels, Pixels]:
        """Metres from (x, y) of the window's pixel centres, as a row ``[1, w]`` and a column ``[h, 1]``."""
        height, width = self.pixels.shape[:2]
        rows, columns = window
        dx = (np.arange(columns.start, columns.stop, dtype=np.float32) + (0.5 - width / 2)) / self.scale
        dy = (np.arange(rows.start, rows.stop, dtype=np.float32) + (0.5 - height / 2)) / -self.scale
        return (dx + float(self.x - x))[None, :], (dy + float(self.y - y))[:, None]

    def _blend(
        self, window: tuple[slice, slice], distance: NDArray[np.floating[Any]], colour: Colour, alpha: float
    ) -> None:
        """Paint where the signed distance [m] is negative; the edge pixel takes its covered share."""
        cover = np.minimum(np.maximum(0.5 - distance * self.scale, 0.0), 1.0) * alpha
        region = self.pixels[window]
        region += cover[..., None] * (np.array(colour, np.float32) - region)

    def disc(self, x: float, y: float, radius: float, colour: Colour, alpha: float = 1.0) -> None:
        window = self._window(x, y, radius, radius)
        dx, dy = self._offsets(window, x, y)
        self._blend(window, np.sqrt(dx * dx + dy * dy) - radius, colour, alpha)

    def box(
        self,
        x: float,
        y: float,
        half: tuple[float, float],
        yaw: float,
        colour: Colour,
        alpha: float = 1.0,
        corner: float = 0.004,
    ) -> None:
        """A rounded rectangle of half sides ``half`` [m], turned by ``yaw``."""
        cos, sin = float(np.cos(yaw)), float(np.sin(yaw))
        window = self._window(x, y, half[0] * abs(cos) + half[1] * abs(sin), half[0] * abs(sin) + half[1] * abs(cos))
        dx, dy = self._offsets(window, x, y)
        u = np.abs(dx * cos + dy * sin) - (half[0] - corner)
        v = np.abs(dy * cos - dx * sin) - (half[1] - corner)
        outside = np.sqrt(np.maximum(u, 0.0) ** 2 + np.maximum(v, 0.0) ** 2)
        self._blend(window, outside + np.minimum(np.maximum(u, v), 0.0) - corner, colour, alpha)

    def bar(
        self, a: tuple[float, float], b: tuple[float, float], radius: float, colour: Colour, alpha: float = 1.0
    ) -> None:
        """A round-ended bar from ``a`` to ``b``."""
        length = float(np.hypot(b[0] - a[0], b[1] - a[1]))
        yaw = float(np.arctan2(b[1] - a[1], b[0] - a[0]))
        centre = ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)
        self.box(*centre, (length / 2 + radius, radius), yaw, colour, alpha, corner=radius)


class Renderer:
    """Draws scenes as two ``uint8 [S, S, 3]`` pictures; keeps the layer of what rests between calls."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._scale = 2 * image_size / AGENT_WIDTH
        self._table = _draw_table(4 * image_size, self._scale)
        self._key = b""
        self._rest = self._table
        self._agent = _halve(self._centre(self._rest))

    def render(self, scene: Scene) -> tuple[Image, Image]:
        """The upright pictures of the fixed camera and of the hand's camera."""
        key = scene.objects[[i for i in range(len(scene.objects)) if i != scene.held]].tobytes() + bytes(
            [255 if scene.held is None else scene.held]
        )
        if key != self._key:
            self._rest = self._draw_rest(scene)
            self._agent = _halve(self._centre(self._rest))
            self._key = key
        return _to_bytes(self._draw_agent(scene)), _to_bytes(self._draw_hand(scene))

    def _centre(self, layer: Pixels) -> Pixels:
        size = self.image_size
        return layer[size : 3 * size, size : 3 * size]

    def _draw_rest(self, scene: Scene) -> Pixels:
        layer = _Layer(self._table.copy(), self._scale)
        blocks = len(scene.block_colours)
        for colour, (x, y, _, _) in zip(scene.bowl_colours, scene.objects[blocks:], strict=True):
            layer.disc(x + 0.006, y - 0.006, BOWL_RADIUS, SHADOW, 0.30)
            layer.disc(x, y, BOWL_RADIUS, colour)
            layer.disc(x, y, 0.80 * BOWL_RADIUS, _shade(colour, 0.72))
            layer.disc(x + 0.002, y - 0.002, 0.62 * BOWL_RADIUS, _shade(colour, 0.86))
        for index, colour in enumerate(scene.block_colours):
            if index != scene.held:
                x, y, _, yaw = scene.objects[index]
                layer.box(x + 0.006, y - 0.006, (BLOCK_HALF, BLOCK_HALF), yaw, SHADOW, 0.30)
                _draw_block(layer, x, y, BLOCK_HALF, yaw, colour)
        return layer.pixels

    def _draw_agent(self, scene: Scene) -> Pixels:
        layer = _Layer(self._agent.copy(), self.image_size / AGENT_WIDTH)
        x, y, z, yaw = scene.gripper
        near = AGENT_HEIGHT / (AGENT_HEIGHT - z)
        _draw_shadow(layer, scene)
        head, elbow = (x * near, y * near), (scene.elbow[0] * near, scene.elbow[1] * near)
        if scene.held is not None:
            _draw_block(layer, *head, BLOCK_HALF * near, scene.objects[scene.held, 3], scene.block_colours[scene.held])
        layer.bar(scene.base, elbow, 0.011, ARM_EDGE)
        layer.bar(scene.base, elbow, 0.008, ARM)
        layer.bar(elbow, head, 0.008, ARM_EDGE)
        layer.bar(elbow, head, 0.005, ARM)
        _draw_gripper(layer, *head, near, yaw, scene.finger)
        return layer.pixels

    def _draw_hand(self, scene: Scene) -> Pixels:
        size = self.image_size
        x, y, z, yaw = scene.gripper
        width = HAND_ANGLE * (HAND_CAMERA + z)
        ground = _Layer(self._sample(x, y, width), size / width, x, y)
        _draw_shadow(ground, scene)
        layer = _Layer(ground.pixels, size / (HAND_ANGLE * HAND_CAMERA), x, y)
        if scene.held is not None:
            _draw_block(layer, x, y, BLOCK_HALF, scene.objects[scene.held, 3], scene.block_colours[scene.held])
        _draw_gripper(layer, x, y, 1.0, yaw, scene.finger)
        return layer.pixels

    def _sample(self, x: float, y: float, width: float) -> Pixels:
        """Bilinear piece of the rest layer, ``width`` metres wide, centred on (x, y)."""
        size = self.image_size
        steps = (np.arange(size) + (0.5 - size / 2)) * (width / size)
        columns = (x + AGENT_WIDTH + steps) * self._scale - 0.5
        rows = (AGENT_WIDTH - y + steps) * self._scale - 0.5
        last = self._rest.shape[0] - 2
        c0 = np.minimum(np.maximum(columns.astype(np.intp), 0), last)
        r0 = np.minimum(np.maximum(rows.astype(np.intp), 0), last)
        wc = np.clip(columns - c0, 0, 1).astype(np.float32)[None, :, None]
        wr = np.clip(rows - r0, 0, 1).astype(np.float32)[:, None, None]
        left, right = int(c0[0]), int(c0[-1]) + 2
        piece = self._rest[r0[0] : r0[-1] + 2, left:right]
        r0, c0 = r0 - r0[0], c0 - left
        mixed: Pixels = piece[r0]
        mixed += wr * (piece[r0 + 1] - mixed)
        out: Pixels = mixed[:, c0]
        out += wc * (mixed[:, c0 + 1] - out)
        return out


def _draw_table(side: int, scale: float) -> Pixels:
    layer = _Layer(np.empty((side, side, 3), np.float32), scale)
    layer.pixels[:] = FLOOR
    layer.box(0.010, -0.010, (TABLE_HALF, TABLE_HALF), 0.0, SHADOW, 0.35, corner=0.02)
    layer.box(0.0, 0.0, (TABLE_HALF, TABLE_HALF), 0.0, TABLE, corner=0.02)
    for y in np.arange(-0.15, 0.2, 0.1):
        layer.box(0.0, float(y), (TABLE_HALF, 0.0016), 0.0, GRAIN, corner=0.001)
    return layer.pixels


def _draw_block(layer: _Layer, x: float, y: float, half: float, yaw: float, colour: Colour) -> None:
    layer.box(x, y, (half, half), yaw, _shade(colour, 0.72))
    layer.box(x, y, (0.78 * half, 0.78 * half), yaw, colour)


def _draw_shadow(layer: _Layer, scene: Scene) -> None:
    """The gripper's shadow on the table: its offset grows with the height."""
    x, y, z, _ = scene.gripper
    layer.disc(x + 0.25 * z, y - 0.25 * z, 0.028, SHADOW, 0.30)


def _draw_gripper(layer: _Layer, x: float, y: float, near: float, yaw: float, finger: float) -> None:
    cos, sin = float(np.cos(yaw)), float(np.sin(yaw))
    layer.box(x, y, (0.052 * near, 0.0055 * near), yaw, PALM, corner=0.003)
    for side in (-1.0, 1.0):
        away = side * (finger + 0.006) * near
        layer.box(x + away * cos, y + away * sin, (0.006 * near, 0.014 * near), yaw, FINGER, corner=0.003)


def _shade(colour: Colour, factor: float) -> Colour:
    return (int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor))


def _halve(layer: Pixels) -> Pixels:
    """Mean of every 2 x 2 pixels."""
    pairs = layer[:, 0::2] + layer[:, 1::2]
    halved: Pixels = (pairs[0::2] + pairs[1::2]) * np.float32(0.25)
    return halved


def _to_bytes(pixels: Pixels) -> Image:
    pixels += 0.5  # every colour is a mix of colours in 0 ... 255, so that no clipping is needed
    return pixels.astype(np.uint8)
