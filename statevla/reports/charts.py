"""Small charts as inline SVG: they follow the page's light or dark colours and need nothing else.

All are drawn on a canvas of `WIDTH` units and shown at most `.chart`'s width wide, so that their text has one size,
on a phone too. Legends are HTML above the drawing, where they can wrap. Colours come from the page's CSS variables:
``--ink``, ``--dim``, ``--line`` and the series ``--s0`` ... ``--s7``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Final

WIDTH: Final = 360.0
SERIES_COLOURS: Final = 8
MARKED_POINTS: Final = 40
"""A line of at most so many points shows them as dots too: a single one would be invisible."""

LARGEST: Final = 1e300
"""Numbers beyond it, and below its inverse on a logarithmic axis, leave no room for the arithmetic of ticks."""

NOTHING: Final = '<p class="dim">Nothing was recorded.</p>'


@dataclass(frozen=True)
class Series:
    """One line: values over steps. Values that an axis cannot show are left out: NaN, infinity, numbers beyond
    `LARGEST`; on a logarithmic one, what is not positive.
    """

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Bar:
    """One rate in [0, 1] with its interval; ``value`` is None when nothing was tried."""

    name: str
    value: float | None
    interval: tuple[float, float]
    note: str


@dataclass(frozen=True)
class Dot:
    """A point of a scatter. colour: any CSS colour."""

    x: float
    y: float
    colour: str


def line_chart(
    series: Sequence[Series], x_label: str, y_label: str = "", log_y: bool = True, height: float = 220.0
) -> str:
    """Lines over a common x axis, under a legend; the y axis is logarithmic unless told otherwise, and says so."""
    left, right, top, bottom = 48.0, 22.0, 22.0, 36.0
    points = [
        [
            (x, log10(y) if log_y else y) for x, y in zip(line.steps, line.values, strict=True)
            if (1 / LARGEST < y < LARGEST if log_y else abs(y) < LARGEST)  # NaN is neither
        ]
        for line in series
    ]  # fmt: skip
    every = [point for line in points for point in line]
    if not every:
        return NOTHING
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    y_low, y_high = min(y for _, y in every), max(y for _, y in every)
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0
    y_low, y_span = y_low - 0.05 * y_span, 1.1 * y_span

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x_low) / x_span * (WIDTH - left - right),
            height - bottom - (y - y_low) / y_span * (height - top - bottom),
        )

    parts = [legend([line.name for line in series]), _open(height, ", ".join(line.name for line in series))]
    scale = "logarithmic scale" if log_y else ""
    parts.append(_text(2.0, 12.0, ", ".join(part for part in (y_label, scale) if part), "start"))
    for tick in _ticks(y_low, y_low + y_span, log_y):
        _, y = place(x_low, log10(tick) if log_y else tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, f"{tick:.3g}", "end"))
    for tick in _ticks(x_low, x_high, False):
        x, _ = place(tick, y_low)
        parts.append(_text(x, height - bottom + 16, f"{tick:.6g}", "middle"))
    parts.append(_text((left + WIDTH - right) / 2, height - 4, x_label, "middle"))
    for number, placed in enumerate(points):
        colour = colour_of(number)
        at = [place(*point) for point in placed]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        if len(at) <= MARKED_POINTS:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in at]
    return "".join([*parts, "</svg>"])


def rate_chart(bars: Sequence[Bar]) -> str:
    """Horizontal bars on [0, 100 %], each with its interval as a whisker and its note at the right."""
    left, right, row = 76.0, 74.0, 36.0
    height = row * len(bars) + 26.0
    scale = WIDTH - left - right
    parts = [_open(height, "success rates with 95 % intervals")]
    for tick in (0.0, 0.5, 1.0):
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 22}"/>')
        parts.append(_text(x, height - 6, f"{100 * tick:.0f} %", "middle"))
    for number, bar in enumerate(bars):
        y, middle = number * row + 8.0, number * row + 18.0
        low, high = (left + bound * scale for bound in bar.interval)
        parts.append(_text(left - 8, middle + 4, bar.name, "end", "ink"))
        if bar.value is not None:
            wide = max(bar.value * scale, 1)
            parts.append(f'<rect x="{left}" y="{y}" width="{wide:.1f}" height="20" rx="3" fill="{colour_of(number)}"/>')
        parts.append(f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 5}v10"/>')
        parts.append(f'<path class="whisker" d="M{high:.1f} {middle - 5}v10"/>')
        parts.append(_text(left + scale + 10, middle + 4, bar.note, "start", "ink"))
    return "".join([*parts, "</svg>"])


def panel(name: str, lines: Sequence[Series], low: float, high: float, height: float = 130.0) -> str:
    """One small drawing of lines over a common x axis, its range of values written at the left. Half a chart wide."""
    wide, left, top, bottom = WIDTH / 2, 34.0, 20.0, 6.0
    longest = max((line.steps[-1] for line in lines if line.steps), default=1.0) or 1.0
    span = (high - low) or 1.0
    parts = [_open(height, name, wide), _text(left, 13.0, name, "start", "ink")]
    for tick in (low, high):
        y = height - bottom - (tick - low) / span * (height - top - bottom)
        parts.append(f'<line class="grid" x1="{left}" x2="{wide - 2}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 4, min(max(y + 4, top + 8), height - 2), f"{tick:.2g}", "end"))

    def place(x: float, y: float) -> str:
        share = (min(max(y, low), high) - low) / span
        return f"{left + x / longest * (wide - left - 4):.1f},{height - bottom - share * (height - top - bottom):.1f}"

    for number, line in enumerate(lines):
        path = " ".join(place(x, y) for x, y in zip(line.steps, line.values, strict=True))
        parts.append(f'<polyline fill="none" stroke="{colour_of(number)}" stroke-width="1.8" points="{path}"/>')
    return "".join([*parts, "</svg>"])


def scatter(dots: Sequence[Dot], x_label: str, y_label: str, height: float = 300.0) -> str:
    """Points on two axes of one kind, without ticks: only their places to one another mean something."""
    if not dots:
        return NOTHING
    left, right, top, bottom = 10.0, 10.0, 20.0, 24.0
    xs, ys = [dot.x for dot in dots], [dot.y for dot in dots]
    x_span, y_span = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0
    parts = [_open(height, f"{y_label} over {x_label}"), _text(2.0, 12.0, y_label, "start")]
    parts.append(_text(WIDTH / 2, height - 4, x_label, "middle"))
    for dot in dots:
        x = left + (dot.x - min(xs)) / x_span * (WIDTH - left - right)
        y = height - bottom - (dot.y - min(ys)) / y_span * (height - top - bottom)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{escape(dot.colour)}"/>')
    return "".join([*parts, "</svg>"])


def legend(names: Sequence[str]) -> str:
    """Names with their colours, in the order of `colour_of`."""
    items = (f'<span><i style="background:{colour_of(n)}"></i>{escape(name)}</span>' for n, name in enumerate(names))
    return f'<div class="legend">{"".join(items)}</div>'


def colour_of(number: int) -> str:
    """The CSS colour of the n-th series."""
    return f"var(--s{number % SERIES_COLOURS})"


def _open(height: float, label: str, width: float = WIDTH) -> str:
    kind = "chart" if width == WIDTH else "chart half"
    return f'<svg class="{kind}" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.0f} {height:.0f}">'


def _text(x: float, y: float, text: str, anchor: str, style: str = "dim") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Round values inside [low, high]; for a logarithmic axis the bounds are exponents of ten."""
    if log:
        factors = (1,) if high - low > 2.5 else (1, 2, 5)
        exponents = range(floor(low), ceil(high) + 1)
        decades = [f * 10.0**e for e in exponents for f in factors if low <= log10(f * 10.0**e) <= high]
        return decades if len(decades) > 1 else _ticks(10**low, 10**high, False)
    if high <= low:
        return [low]
    step = 10.0 ** floor(log10((high - low) / 4))
    step *= next(f for f in (1, 2, 5, 10) if (high - low) / (f * step) <= 6)
    return [step * n for n in range(ceil(low / step), floor(high / step) + 1)]
