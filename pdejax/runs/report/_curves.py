"""Figures layer by layer as curves: small SVG pictures made from the rows of a result."""

import dataclasses
import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from pdejax.runs import _format
from pdejax.runs._records import Row

LAYER = re.compile(r",?\s*\blayers? (\d+)(?:–\d+)?\b,?\s*")
LEAST = 4  # layers that make a curve
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 190, 46, 8, 8, 24


@dataclasses.dataclass(frozen=True)
class Point:
    """A figure at a layer, with the ends of its interval and its null, None where there is none."""

    layer: int
    value: float
    low: float | None
    high: float | None
    null: float | None


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves of one quantity: `name` with its `unit`, and the points of every system by its name."""

    name: str
    curves: Mapping[str, Sequence[Point]]


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Return the quantities that rows give layer by layer, at four layers or more."""
    found: dict[str, dict[str, list[Point]]] = {}
    for row in rows:
        at = LAYER.search(row.quantity)
        if at is None or row.ours is None or not math.isfinite(float(row.ours)):
            continue
        name = row.quantity[: at.start()] + (f" ({row.unit})" if row.unit else "")
        low, high = (float(end) for end in (row.ours.low, row.ours.high))
        known = math.isfinite(low) and math.isfinite(high)
        null = None if row.null is None or not math.isfinite(float(row.null)) else float(row.null)
        point = Point(int(at[1]), float(row.ours), low if known else None, high if known else None, null)
        found.setdefault(name, {}).setdefault(row.quantity[at.end() :], []).append(point)
    long = {
        name: {
            system: sorted(points, key=lambda p: p.layer) for system, points in curves.items() if len(points) >= LEAST
        }
        for name, curves in found.items()
    }
    return [Panel(name, curves) for name, curves in long.items() if curves]


def drawn(panel: Panel) -> str:
    """Write a panel as a figure: a curve and a marker per system, its interval as a band, its null dashed.

    The frame holds every value and null; intervals that are wider are cut off at it.
    """
    points = [point for curve in panel.curves.values() for point in curve]
    layers = sorted({point.layer for point in points})
    values = [x for point in points for x in (point.value, point.null) if x is not None]
    low, high = min(values), max(values)
    room = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - room, high + room

    def x(layer: int) -> float:
        return LEFT + (layer - layers[0]) / max(layers[-1] - layers[0], 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        inside = min(max(value, low), high)
        return TOP + (high - inside) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def path(pairs: Sequence[tuple[int, float]]) -> str:
        return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in pairs)

    marks = []
    for place, (system, curve) in enumerate(panel.curves.items()):
        kind = f"curve c{place % 6}"
        band = [(p.layer, p.low, p.high) for p in curve if p.low is not None and p.high is not None]
        if len(band) > 1:
            around = [(a, b) for a, b, _ in band] + [(a, c) for a, _, c in reversed(band)]
            marks.append(f'<polygon class="{kind} band" points="{path(around)}"/>')
        null = [(p.layer, p.null) for p in curve if p.null is not None]
        if len(null) > 1:
            marks.append(f'<polyline class="{kind} null" points="{path(null)}"/>')
        marks.append(f'<polyline class="{kind}" points="{path([(p.layer, p.value) for p in curve])}"/>')
        marks += [_dot(kind, x(p.layer), y(p.value), system, p) for p in curve]
    name = html.escape(panel.name)
    return (
        f'<figure class="curves"><svg role="img" aria-label="{name}, layer by layer" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"{''.join(_axes(layers, low, high, x, y))}{''.join(marks)}</svg>"
        f"<figcaption>{name}, by layer{_legend(panel)}</figcaption></figure>"
    )


def _dot(kind: str, x: float, y: float, system: str, point: Point) -> str:
    interval = "" if point.low is None else f" [{_format.number(point.low)}, {_format.number(point.high)}]"
    said = f"{system + ', ' if system else ''}layer {point.layer}: {_format.number(point.value)}{interval}"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"><title>{html.escape(said)}</title></circle>'


def _axes(layers: Sequence[int], low: float, high: float, x, y) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    yield f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{bottom - TOP}"/>'
    for layer in layers[:: max(1, math.ceil(len(layers) / 8))]:
        yield f'<text x="{x(layer):.1f}" y="{bottom + 15}" text-anchor="middle">{layer}</text>'
    for value in _ticks(low, high):
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        yield f'<text x="{LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers in a range."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step *= next((factor for factor in (5, 2) if (high - low) / (factor * step) >= 2), 1)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _legend(panel: Panel) -> str:
    if len(panel.curves) == 1 and not next(iter(panel.curves)):
        return "."
    named = (
        f'<span class="curve c{place % 6}" aria-hidden="true">●</span> {html.escape(system or "ours")}'
        for place, system in enumerate(panel.curves)
    )
    return f": {', '.join(named)}."
