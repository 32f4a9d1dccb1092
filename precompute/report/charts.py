"""Charts as SVG text: no library, no script, colours from the page's style sheet. Every label is escaped."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 400, 190  # units of the view box; about pixels on a phone
LEFT, RIGHT, TOP, BOTTOM = 8, 8, 22, 26


def histogram(values: npt.NDArray[Any], unit: str, bins: int = 32, mark: float | None = None) -> str:
    """Bars between the 0.5th and 99.5th percentile, the outermost holding the rest; the median is marked.

    mark: a limit to draw, such as the number of tokens that an encoder keeps.
    """
    values = np.asarray(values, float)
    if not len(values):
        return '<p class="quiet">nothing to count</p>'
    low, high = np.percentile(values, [0.5, 99.5])
    low, high = (low - 0.5, high + 0.5) if high - low < 1e-9 else (low, high)
    if mark is not None:
        high = max(high, min(mark, 3 * high))
    whole = bool((values == np.round(values)).all())
    if whole:  # each bar holds equally many of them
        step = np.ceil((high - low + 1) / bins)
        low, high = (
            np.floor(low) - 0.5,
            np.floor(low) - 0.5 + step * np.ceil((high - np.floor(low) + 1) / step),
        )
        bins = round((high - low) / step)
    counts, edges = np.histogram(np.clip(values, low, high), bins, (low, high))
    x = _scale(low, high, LEFT, WIDTH - RIGHT)
    top, parts = counts.max(), []
    for count, a, b in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        bar = (HEIGHT - TOP - BOTTOM) * count / top
        label = f"{_short(a)} to {_short(b)} {unit}: {count:,}"
        parts.append(_bar(x(a) + 0.5, HEIGHT - BOTTOM - bar, x(b) - x(a) - 1, bar, label))
    middle = float(np.median(values))
    parts.append(_rule(x(middle), f"median {_short(middle)} {unit}", "median"))
    if mark is not None and mark <= high:
        parts.append(_rule(x(mark), f"limit {_short(mark)}", "limit"))
    return _svg([*parts, _ticks(low, high, x, whole)], f"Histogram, median {_short(middle)} {unit}")


def series(values: Sequence[float], unit: str) -> str:
    """A line over units of work, averaged to at most 80 points."""
    if not len(values):
        return '<p class="quiet">nothing was timed</p>'
    chunks = np.array_split(np.asarray(values, float), min(80, len(values)))
    points = np.array([chunk.mean() for chunk in chunks])
    x = _scale(0, max(1, len(points) - 1), LEFT, WIDTH - RIGHT)
    y = _scale(0, float(points.max()) * 1.05 or 1, HEIGHT - BOTTOM, TOP)
    path = " ".join(f"{x(i):.1f},{y(float(value)):.1f}" for i, value in enumerate(points))
    if len(points) == 1:
        path = f"{LEFT},{y(float(points[0])):.1f} {WIDTH - RIGHT},{y(float(points[0])):.1f}"
    area = f"{LEFT},{HEIGHT - BOTTOM} {path} {WIDTH - RIGHT},{HEIGHT - BOTTOM}"
    middle = float(np.median(values))
    label = f"median {_short(middle)} {unit}"
    return _svg(
        [
            f'<polygon class="area" points="{area}"/><polyline class="line" points="{path}"/>',
            f'<text class="note" x="{WIDTH - RIGHT}" y="14" text-anchor="end">{escape(label)}</text>',
            f'<text class="tick" x="{LEFT}" y="{HEIGHT - 8}">first unit</text>',
            f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">unit {len(values):,}</text>',
        ],
        label,
    )


def channels(stats: Sequence[tuple[float, float]]) -> str:
    """Mean and standard deviation of each channel, before the band, -1 to 1, that a well-scaled VAE fills."""
    reach = max(2.0, *(abs(mean) + std for mean, std in stats)) * 1.05
    y = _scale(-reach, reach, HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT - 24) / len(stats)
    band = f'<rect class="band" x="{LEFT + 24}" y="{y(1):.1f}" width="{WIDTH - LEFT - RIGHT - 24}" height="{y(-1) - y(1):.1f}"/>'
    parts = [band]
    for level in (-1, 0, 1):
        parts.append(
            f'<text class="tick" x="{LEFT}" y="{y(level) + 4:.1f}">{level:+d}</text>'.replace("+0", "0")
        )
    for place, (mean, std) in enumerate(stats):
        x, width = LEFT + 24 + step * place, min(step * 0.6, 14)
        left, height = x + (step - width) / 2, y(mean - std) - y(mean + std)
        parts.append(
            _bar(left, y(mean + std), width, height, f"channel {place}: mean {mean:.2f}, std {std:.2f}")
        )
        parts.append(
            f'<rect class="mean" x="{left - 2:.1f}" y="{y(mean) - 1:.1f}" width="{width + 4:.1f}" height="2"/>'
        )
        if len(stats) <= 32:
            parts.append(
                f'<text class="tick" x="{x + step / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{place}</text>'
            )
    return _svg(parts, f"Mean and standard deviation of {len(stats)} channels")


def _svg(parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _bar(x: float, y: float, width: float, height: float, label: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}"'
    return f'<rect class="bar" {place} rx="1"><title>{escape(label)}</title></rect>'


def _rule(x: float, label: str, kind: str) -> str:
    anchor = "end" if x > WIDTH * 0.6 else "start"
    text = x - 5 if anchor == "end" else x + 5
    row = TOP - 8 if kind == "median" else TOP + 6
    return (
        f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 16}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="note" x="{text:.1f}" y="{row}" text-anchor="{anchor}">{escape(label)}</text>'
    )


def _ticks(low: float, high: float, x: Any, whole: bool) -> str:
    values = [low + share * (high - low) for share in (0.04, 0.27, 0.5, 0.73, 0.96)]
    values = sorted({float(round(value)) for value in values}) if whole else values
    places = (f'x="{x(value):.1f}" y="{HEIGHT - 8}" text-anchor="middle"' for value in values)
    return "".join(f'<text class="tick" {p}>{_short(v)}</text>' for p, v in zip(places, values, strict=True))


def _scale(low: float, high: float, start: float, stop: float) -> Any:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 20 else f"{value:.3g}"
