"""Small charts as inline SVG: they follow the page's light or dark colours and need nothing else.

Colours come from the page's CSS variables: ``--ink``, ``--dim``, ``--line`` and the series ``--s0`` ... ``--s3``.
"""

from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

SERIES_COLOURS = 4
MARKED_POINTS = 40
"""A line of at most so many points shows them as dots too: a single one would be invisible."""


@dataclass(frozen=True)
class Series:
    """One line: values over steps. Values that a logarithmic axis cannot show (not positive) are left out."""

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


def line_chart(
    series: list[Series], x_label: str, log_y: bool = True, width: float = 560.0, height: float = 260.0
) -> str:
    """Lines over a common x axis, with a legend; the y axis is logarithmic unless told otherwise."""
    left, right, top, bottom = 58.0, 12.0, 30.0, 36.0
    points = [
        [(x, log10(y) if log_y else y) for x, y in zip(line.steps, line.values, strict=True) if y > 0 or not log_y]
        for line in series
    ]
    every = [point for line in points for point in line]
    if not every:
        return '<p class="dim">Nothing was recorded.</p>'
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    y_low, y_high = min(y for _, y in every), max(y for _, y in every)
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0
    y_low, y_span = y_low - 0.05 * y_span, 1.1 * y_span

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x_low) / x_span * (width - left - right),
            height - bottom - (y - y_low) / y_span * (height - top - bottom),
        )

    parts = [_open(width, height, ", ".join(line.name for line in series))]
    for tick in _ticks(y_low, y_low + y_span, log_y):
        _, y = place(x_low, log10(tick) if log_y else tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, f"{tick:.3g}", "end"))
    for tick in _ticks(x_low, x_high, False):
        x, _ = place(tick, y_low)
        parts.append(_text(x, height - bottom + 16, f"{tick:.6g}", "middle"))
    parts.append(_text((left + width - right) / 2, height - 4, x_label, "middle"))
    for number, (line, placed) in enumerate(zip(series, points, strict=True)):
        colour = f"var(--s{number % SERIES_COLOURS})"
        at = [place(*point) for point in placed]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        if len(at) <= MARKED_POINTS:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in at]
        x = left + number * (width - left) / len(series)
        parts.append(f'<rect x="{x:.0f}" y="8" width="14" height="4" rx="2" fill="{colour}"/>')
        parts.append(_text(x + 20, 15.0, line.name, "start"))
    return "".join([*parts, "</svg>"])


def rate_chart(bars: list[Bar], width: float = 560.0) -> str:
    """Horizontal bars on [0, 100 %], each with its interval as a whisker and its note at the right."""
    left, right, row = 170.0, 130.0, 44.0
    height = row * len(bars) + 30.0
    scale = width - left - right
    parts = [_open(width, height, "success rates with 95 % intervals")]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 24}"/>')
        parts.append(_text(x, height - 8, f"{100 * tick:.0f} %", "middle"))
    for number, bar in enumerate(bars):
        y = number * row + 10.0
        low, high = (left + bound * scale for bound in bar.interval)
        parts.append(_text(left - 10, y + 17, bar.name, "end", "ink"))
        if bar.value is not None:
            colour = f"var(--s{number % SERIES_COLOURS})"
            parts.append(
                f'<rect x="{left}" y="{y}" width="{max(bar.value * scale, 1):.1f}" height="24" rx="3" fill="{colour}"/>'
            )
        middle = y + 12
        parts.append(f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 5}v10"/>')
        parts.append(f'<path class="whisker" d="M{high:.1f} {middle - 5}v10"/>')
        parts.append(_text(left + scale + 12, y + 17, bar.note, "start", "ink"))
    return "".join([*parts, "</svg>"])


def _open(width: float, height: float, label: str) -> str:
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.0f} {height:.0f}">'


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
