"""Line charts as inline SVG: no script, readable in light and dark, with gaps where a value is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from .html import Html, join, tag

Point = tuple[float, float]

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34  # margins that hold the axis labels; the left one grows with them
DIGIT = 7.0  # the width of a digit at the style's 12 px, rounded up
MOST_POINTS = 600  # a longer curve is thinned to its highs and lows
COLOURS, DASHES = 8, 3  # of curves in one chart
FEW_POINTS = 40  # up to so many are marked one by one


def line_chart(points: Sequence[Point], *, title: str, x_label: str, marks: Sequence[tuple[str, float]] = ()) -> Html:
    """A curve (x, y) with axes; a y that is not finite leaves a gap. `marks` are dashed horizontal lines.

    The x are finite, and at least one y is.
    """
    shown = thin(points, MOST_POINTS)
    parts = pieces(shown)
    finite = [y for piece in parts for _, y in piece]
    frame = Frame((min(x for x, _ in shown), max(x for x, _ in shown)), [*finite, *(y for _, y in marks)])
    label = f"{title} over {x_label}: from {short(finite[0])} to {short(finite[-1])}"
    return frame.chart(
        label,
        x_label,
        *(frame.rule(y, "mark") for _, y in marks),
        *(frame.line(piece) for piece in parts if len(piece) > 1),
        *(frame.dot(*point) for piece in parts for point in piece if len(piece) == 1 or len(shown) <= FEW_POINTS),
        *(frame.name(name, y) for name, y in marks),
    )


def overlay_chart(curves: Sequence[tuple[str, Sequence[Point]]], *, title: str, x_label: str) -> Html:
    """Several named curves (x, y) in one frame; the nth has the class `series-n`, counted from 0 and by `COLOURS`.

    A curve may be empty, and keeps its colour from the others; one at least has a finite y.
    """
    shown = [(name, thin(points, MOST_POINTS)) for name, points in curves]
    parts = [(name, number, pieces(points)) for number, (name, points) in enumerate(shown)]
    finite = [y for _, _, pieces_of in parts for piece in pieces_of for _, y in piece]
    xs = [x for _, points in shown for x, _ in points]
    frame = Frame((min(xs), max(xs)), finite)
    label = f"{title} over {x_label}, {len(curves)} curves"
    return frame.chart(label, x_label, *(_one_of_many(frame, *of) for of in parts))


def _one_of_many(frame: Frame, name: str, number: int, parts: Sequence[Sequence[Point]]) -> Html:
    """One curve of several, with its name for who points at it."""
    lines = [frame.line(piece) for piece in parts if len(piece) > 1]
    dots = [frame.dot(*piece[0]) for piece in parts if len(piece) == 1]
    return tag("g", tag("title", name), *lines, *dots, class_=series(number))


def series(number: int) -> str:
    """The classes of the nth of several: a colour, and another dash each time the colours begin anew."""
    dashed = f" dashed-{(number // COLOURS - 1) % DASHES}" if number >= COLOURS else ""
    return f"series-{number % COLOURS}{dashed}"


class Frame:
    """The rectangle of a chart: from values to places in it."""

    def __init__(self, x_range: Point, ys: Sequence[float]) -> None:
        self.x_ticks = ticks(*x_range)
        self.y_ticks = ticks(min(ys), max(ys))
        self.x_low, self.x_high = x_range if x_range[0] < x_range[1] else (x_range[0] - 0.5, x_range[1] + 0.5)
        self.y_low, self.y_high = self.y_ticks[0], self.y_ticks[-1]
        self.left = max(LEFT, 10 + DIGIT * max(len(short(value)) for value in self.y_ticks))

    def x(self, value: float) -> float:
        """The horizontal place of a value."""
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(self.left + share * (WIDTH - self.left - RIGHT), 1)

    def y(self, value: float) -> float:
        """The vertical place of a value."""
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def chart(self, label: str, x_label: str, *drawn: Html) -> Html:
        """The whole picture, with `label` for who does not see it, over `axes`."""
        size = f"0 0 {WIDTH} {HEIGHT}"
        return tag("svg", tag("title", label), self.axes(x_label), *drawn, viewBox=size, role="img", aria_label=label)

    def axes(self, x_label: str) -> Html:
        """Grid lines with their values, and what the horizontal axis counts."""
        parts = []
        for value in self.y_ticks:
            parts += [self.rule(value, "grid"), _text(self.left - 6, self.y(value) + 4, short(value), "end")]
        for value in self.x_ticks:
            if self.x_low <= value <= self.x_high:
                parts.append(_text(self.x(value), HEIGHT - BOTTOM + 15, short(value), "middle"))
        return join([*parts, _text((self.left + WIDTH - RIGHT) / 2, HEIGHT - 3, x_label, "middle")])

    def name(self, name: str, value: float) -> Html:
        """What a line across the chart stands for, above it; drawn last, so that no curve strikes it through."""
        return _text(WIDTH - RIGHT, self.y(value) - 4, name, "end")

    def line(self, points: Sequence[Point]) -> Html:
        """One stretch of the curve without a gap."""
        path = "L".join(f"{self.x(x):g} {self.y(y):g}" for x, y in points)
        return tag("path", d=f"M{path}", class_="curve")

    def dot(self, x: float, y: float) -> Html:
        """A point of the curve, with its values for who points at it."""
        return tag("circle", tag("title", f"{short(x)}: {short(y)}"), cx=self.x(x), cy=self.y(y), r=2.5, class_="dot")

    def rule(self, value: float, kind: str) -> Html:
        """A line across the chart."""
        return tag("line", x1=self.left, x2=WIDTH - RIGHT, y1=self.y(value), y2=self.y(value), class_=kind)


def _text(x: float, y: float, text: str, anchor: str) -> Html:
    return tag("text", text, x=f"{x:g}", y=f"{y:g}", text_anchor=anchor)


def pieces(points: Sequence[Point]) -> list[list[Point]]:
    """The stretches of a curve between its gaps."""
    grouped = groupby(points, key=lambda point: math.isfinite(point[1]))
    return [list(group) for finite, group in grouped if finite]


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` points: of each of equal stretches the lowest, the highest and a gap stay."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        finite = sorted((p for p in part if math.isfinite(p[1])), key=lambda point: point[1])
        gaps = [p for p in part if not math.isfinite(p[1])]
        kept += sorted({*finite[:1], *finite[-1:], *gaps[:1]}, key=lambda point: point[0])
    return kept


def ticks(low: float, high: float) -> list[float]:
    """Three to six round values that enclose low and high."""
    if not high - low > 1e-100:  # a smaller difference has no power of ten
        pad = abs(low) / 2 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number in few characters: 0.0123, 12.3, 4500, 1.2e+06."""
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"
