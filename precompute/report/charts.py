"""Charts as SVG text under a line of words: no library, no script, colours from the page's style sheet. Every label is escaped."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 340, 160  # units of the view box; about pixels on a phone
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 12, 24


def histogram(values: npt.NDArray[Any], unit: str, bins: int = 32, mark: float | None = None) -> str:
    """Bars between rounded ends, so that nearly all are seen well; what lies far above is counted in words. The median is marked.

    mark: a limit to draw, such as the number of tokens that an encoder keeps.
    """
    values = np.asarray(values, float)
    if not len(values):
        return '<p class="quiet">nothing to count</p>'
    most, high = (float(np.percentile(values, share)) for share in (95, 99))
    high = high if high <= 2 * most else most  # a few that are far away are a note
    if mark is not None:
        high = max(high, min(mark, 3 * high))
    ticks = round_ticks(float(values.min()), max(high, float(values.min())))
    low, high = ticks[0], ticks[-1]
    whole = bool((values == np.round(values)).all())
    if whole:  # each bar holds equally many of them
        width = max(1, round((high - low) / bins))
        edges = np.arange(low, high + width + 0.5, width) - 0.5
    else:
        edges = np.linspace(low, high, bins + 1)
    counts, _ = np.histogram(values, edges)
    above = int((values > edges[-1]).sum())
    x = _scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    levels = round_ticks(0, int(counts.max()))
    y = _scale(0, levels[-1], HEIGHT - BOTTOM, TOP)
    parts = [_level(y(level), level) for level in levels]
    for count, a, b in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        label = f"{_short(a + 0.5 * whole)} to {_short(b - 0.5 * whole)} {unit}: {count:,}"
        parts.append(_bar(x(a) + 0.5, y(count), x(b) - x(a) - 1, y(0) - y(count), label))
    middle = float(np.median(values))
    words = [("median", f"median {_short(middle)} {unit}".rstrip())]
    parts.append(_rule(x(middle), "median"))
    if mark is not None and mark <= edges[-1]:
        cut = float(np.mean(values > mark))
        words.append(("limit", f"limit {_short(mark)}" + (f", which cuts {cut:.1%}" if cut else "")))
        parts.append(_rule(x(mark), "limit"))
    if above:
        words.append(("", f"and {above:,} above, up to {_short(float(values.max()))}"))
    places = "".join(_tick(x(tick), _short(tick)) for tick in ticks if edges[0] <= tick <= edges[-1])
    return _chart([*parts, places], words, "Histogram")


def round_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, from below `low` to above `high`; at most `most` and two more."""
    span = high - low if high > low else max(abs(high), 1.0) / 2
    power = 10.0 ** np.floor(np.log10(span / most))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= most)
    first, last = np.floor(low / step), np.ceil(high / step)
    return [round(float(n * step), 10) for n in range(int(first), int(max(last, first + 1)) + 1)]


def series(values: Sequence[float], unit: str) -> str:
    """A line over units of work, averaged to at most 80 points."""
    if not len(values):
        return '<p class="quiet">nothing was timed</p>'
    chunks = np.array_split(np.asarray(values, float), min(80, len(values)))
    points = np.array([chunk.mean() for chunk in chunks])
    x = _scale(0, max(1, len(points) - 1), LEFT, WIDTH - RIGHT)
    levels = round_ticks(0, float(points.max()))
    y = _scale(0, levels[-1], HEIGHT - BOTTOM, TOP)
    path = " ".join(f"{x(i):.1f},{y(float(value)):.1f}" for i, value in enumerate(points))
    if len(points) == 1:
        path = f"{LEFT},{y(float(points[0])):.1f} {WIDTH - RIGHT},{y(float(points[0])):.1f}"
    area = f"{LEFT},{HEIGHT - BOTTOM} {path} {WIDTH - RIGHT},{HEIGHT - BOTTOM}"
    drawn = f'<polygon class="area" points="{area}"/><polyline class="line" points="{path}"/>'
    places = _tick(LEFT, "first unit") + _tick(WIDTH - RIGHT, f"unit {len(values):,}") * (len(values) > 1)
    words = f"median {_short(float(np.median(values)))} {unit}"
    return _chart([*(_level(y(level), level) for level in levels), drawn, places], [("", words)], "Line")


def channels(stats: Sequence[tuple[float, float]]) -> str:
    """Mean and standard deviation of each channel, before the band, -1 to 1, that a well-scaled VAE fills."""
    lows, highs = [mean - std for mean, std in stats], [mean + std for mean, std in stats]
    levels = round_ticks(min(-1.0, *lows), max(1.0, *highs))
    y = _scale(levels[0], levels[-1], HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(stats)
    band = f'<rect class="band" x="{LEFT}" y="{y(1):.1f}" width="{WIDTH - LEFT - RIGHT}" height="{y(-1) - y(1):.1f}"/>'
    parts = [band, *(_level(y(level), level) for level in levels)]
    for place, (mean, std) in enumerate(stats):
        x, width = LEFT + step * place, min(step * 0.6, 14)
        left, height = x + (step - width) / 2, y(mean - std) - y(mean + std)
        parts.append(
            _bar(left, y(mean + std), width, height, f"channel {place}: mean {mean:.2f}, std {std:.2f}")
        )
        parts.append(
            f'<rect class="mean" x="{left - 2:.1f}" y="{y(mean) - 1:.1f}" width="{width + 4:.1f}" height="2"/>'
        )
        if place % -(-len(stats) // 16) == 0:  # as many numbers as stand beside each other
            parts.append(_tick(x + step / 2, str(place)))
    return _chart(parts, [("", f"{len(stats)} channels")], "Mean and standard deviation")


def _chart(parts: Sequence[str], words: Sequence[tuple[str, str]], kind: str) -> str:
    """A chart under its words, each with the class of the rule that it explains."""
    said = "".join(f"<span>{_mark(rule)}{escape(text)}</span>" for rule, text in words)
    label = escape(f"{kind}: {', '.join(text for _, text in words)}")
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<p class="legend small quiet">{said}</p>{drawing}'


def _mark(rule: str) -> str:
    return f'<i class="{rule}"></i>' if rule else ""


def _bar(x: float, y: float, width: float, height: float, label: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}"'
    return f'<rect class="bar" {place} rx="1"><title>{escape(label)}</title></rect>'


def _rule(x: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'


def _tick(x: float, label: str) -> str:
    anchor = "start" if x < LEFT + 6 else "end" if x > WIDTH - RIGHT - 6 else "middle"
    return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{escape(label)}</text>'


def _level(y: float, value: float) -> str:
    """A line across, with its value at the left."""
    line = f'<line class="grid-line" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    text = f'<text class="tick" x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_compact(value)}</text>'
    return line + text


def _scale(low: float, high: float, start: float, stop: float) -> Any:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 20 else f"{value:.3g}"


def _compact(value: float) -> str:
    """`12k`: what fits beside a chart."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
