"""A plotly figure as a still picture, for pages that cannot draw plotly's: GitHub's viewer, a notebook made into HTML.

What `figures.figure` is used for is drawn: points, lines, bands and bars, their error bars, and straight marks.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from . import svg

_WIDE, _TALL = 640, 300  # px, the picture without its heads, and its plot
_THICK = 0.8  # of the room of a category that its bars fill


class _Axis:
    """Values of a kind, numbers or names, on a line of pixels."""

    def __init__(self, values: Iterable[Any], is_log: bool, margin: float) -> None:
        values = [value for value in values if value is not None]
        self.names = list(dict.fromkeys(values)) if any(isinstance(value, str) for value in values) else []
        self.is_log = is_log
        numbers = [n for n in map(self.number, values) if math.isfinite(n)] or [0.0, 1.0]
        low, high = min(numbers), max(numbers)
        room = 0.5 if self.names else (high - low or 1.0) * margin
        self.low, self.high = low - room, high + room

    def number(self, value: Any) -> float:
        """Where a value stands, in the axis's own measure."""
        if self.names:
            return float(self.names.index(value))
        return math.log10(value) if self.is_log else float(value)

    def share(self, value: Any) -> float:
        """Where a value stands between the ends, 0 to 1."""
        return (self.number(value) - self.low) / (self.high - self.low)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """(share, text) of what is named along the axis."""
        if self.names:
            yield from ((self.share(name), name) for name in self.names)
        elif self.is_log:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            yield from ((self.share(10.0**k), svg.short(10.0**k)) for k in powers)
        else:
            yield from ((self.share(tick), svg.short(tick)) for tick in svg.ticks(self.low, self.high))


def drawn(figure: go.Figure) -> str:
    """The figure as one `<svg>`, with its title, legend and axes."""
    layout, traces = figure.layout, list(figure.data)
    bars = [trace for trace in traces if trace.type == "bar"]
    flat = any(trace.orientation == "h" for trace in bars)
    x, y = (
        _Axis(
            [
                *_along(traces, name),
                *_straight(layout.shapes, name),
                *([0.0] if bars and flat == (name == "x") else []),
            ],
            layout[f"{name}axis"].type == "log",
            margin,
        )
        for name, margin in (("x", 0.04), ("y", 0.06))
    )
    title = layout.title.text or layout.legend.title.text or ""
    heads, top = _legend(traces, svg.HEAD if title else 2.0)
    left = min(max(svg.text_width(text) for _, text in y.ticks()), 0.4 * _WIDE) + 10
    top += svg.LINE if layout.yaxis.title.text else 6
    right, bottom = _WIDE - 22.0, top + _TALL

    def at(a: Any, b: Any) -> tuple[float, float]:
        return left + x.share(a) * (right - left), bottom - y.share(b) * (bottom - top)

    parts = [*heads, svg.text(0, top - 6, layout.yaxis.title.text or ""), *_grid(x, y, (left, top, right, bottom))]
    for k, trace in enumerate(traces):
        parts += _bars(trace, (bars.index(trace), len(bars)), at, k) if trace.type == "bar" else _marks(trace, at, k)
    parts += _shapes(layout.shapes, x, y, (left, top, right, bottom))
    named = layout.xaxis.title.text or ""
    parts.append(svg.text((left + right) / 2, bottom + 2 * svg.LINE + 2, named, "mid"))
    return svg.document(_WIDE, bottom + 2 * svg.LINE + 10, title, f"a plot over {named}", parts)


def _along(traces: Sequence[Any], name: str) -> Iterator[Any]:
    """All values of the traces along an axis, with the ends of their error bars."""
    for trace in traces:
        values = list(getattr(trace, name) if getattr(trace, name) is not None else ())
        yield from values
        for value, (below, above) in zip(values, _errors(trace, name), strict=False):
            yield from (value - below, value + above)


def _errors(trace: Any, name: str) -> list[tuple[float, float]]:
    """(below, above) of each point's error bar along an axis."""
    error = trace[f"error_{name}"]
    if error is None or error.array is None:
        return []
    below = error.array if error.arrayminus is None else error.arrayminus
    return [(float(a), float(b)) for a, b in zip(below, error.array, strict=True)]


def _colour(trace: Any, k: int) -> str:
    """The style and class of a trace's colour: its own, or the palette's by its place."""
    colours = [trace.marker.color, *([trace.line.color, trace.fillcolor] if trace.type == "scatter" else [])]
    colour = next((c for c in colours if isinstance(c, str)), None)
    return f'style="--c:{colour}" class="' if colour else f'class="c{k % 6} '


def _legend(traces: Sequence[Any], top: float) -> tuple[list[str], float]:
    """The names of the traces beside their colours, wrapped; with it the y below them."""
    named = [(k, trace) for k, trace in enumerate(traces) if trace.name and trace.showlegend is not False]
    if len(traces) < 2 or not named:
        return [], top
    parts, x = [], 0.0
    for k, trace in named:
        if x and x + 16 + svg.text_width(trace.name) > _WIDE:
            x, top = 0.0, top + svg.LINE
        parts.append(f'<circle {_colour(trace, k)}lab-dot" cx="{x + 5:.1f}" cy="{top + 8:.1f}" r="3.5"/>')
        parts.append(svg.text(x + 14, top + svg.BASE, trace.name))
        x += 28 + svg.text_width(trace.name)
    return parts, top + svg.LINE + 4


def _grid(x: _Axis, y: _Axis, box: tuple[float, float, float, float]) -> Iterator[str]:
    left, top, right, bottom = box
    for share, text in y.ticks():
        high = bottom - share * (bottom - top)
        yield f'<path class="lab-grid" d="M{left:.1f} {high:.1f}H{right:.1f}"/>'
        yield svg.text(left - 5, high + 4, svg.fit(text, left - 8), "end num")
    room = (right - left) / max(len(list(x.ticks())), 1)
    for share, text in x.ticks():
        yield svg.text(left + share * (right - left), bottom + 17, svg.fit(text, room), "mid num")
    yield f'<path class="lab-axis" d="M{left:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}"/>'


def _marks(trace: Any, at: Callable[[Any, Any], tuple[float, float]], k: int) -> Iterator[str]:
    """A line, a band or points, with their error bars."""
    points = [at(a, b) for a, b in zip(trace.x, trace.y, strict=True) if a is not None and b is not None]
    path = "M" + " ".join(f"{a:.1f} {b:.1f}" for a, b in points)
    if trace.fill == "toself":
        yield f'<path {_colour(trace, k)}lab-ribbon" d="{path}z"/>'
        return
    mode = trace.mode or "lines"
    if "lines" in mode:
        yield f'<path {_colour(trace, k)}lab-line" d="{path}"/>'
    if "markers" in mode:
        yield from (f'<circle {_colour(trace, k)}lab-dot" cx="{a:.1f}" cy="{b:.1f}" r="4"/>' for a, b in points)
    for name in ("x", "y"):
        for a, b, (below, above) in zip(trace.x, trace.y, _errors(trace, name), strict=False):
            ends = [at(a - below, b), at(a + above, b)] if name == "x" else [at(a, b - below), at(a, b + above)]
            line = "M" + "L".join(f"{a1:.1f} {b1:.1f}" for a1, b1 in ends)
            yield f'<path {_colour(trace, k)}lab-line" d="{line}"/>'


def _bars(trace: Any, slot: tuple[int, int], at: Callable, k: int) -> Iterator[str]:
    """The bars of a trace, which is one (its number, how many) beside each other in a category."""
    (number, count), flat = slot, trace.orientation == "h"
    step = abs(_pitch(trace, at, flat)) * _THICK / count
    start = (number - count / 2) * step
    for category, value in zip(*((trace.y, trace.x) if flat else (trace.x, trace.y)), strict=True):
        (x, y), (x0, y0) = (at(v, category) if flat else at(category, v) for v in (value, 0.0))
        bar = f"M{x0:.1f} {y0 + start:.1f}H{x:.1f}v{step:.1f}H{x0:.1f}z"
        if not flat:
            bar = f"M{x0 + start:.1f} {y0:.1f}V{y:.1f}h{step:.1f}V{y0:.1f}z"
        yield f'<path {_colour(trace, k)}lab-fill" d="{bar}"/>'


def _pitch(trace: Any, at: Callable, flat: bool) -> float:
    """The px from a category to the next; of one alone, its whole room."""
    names = list(dict.fromkeys(trace.y if flat else trace.x))
    if len(names) < 2:
        return 60.0
    return at(0.0, names[1])[1] - at(0.0, names[0])[1] if flat else at(names[1], 0.0)[0] - at(names[0], 0.0)[0]


def _shapes(shapes: Sequence[Any], x: _Axis, y: _Axis, box: tuple[float, float, float, float]) -> Iterator[str]:
    """The marks that `add_vline` and `add_hline` leave."""
    left, top, right, bottom = box
    for value in _straight(shapes, "x"):
        yield f'<path class="lab-now" d="M{left + x.share(value) * (right - left):.1f} {top:.1f}V{bottom:.1f}"/>'
    for value in _straight(shapes, "y"):
        yield f'<path class="lab-now" d="M{left:.1f} {bottom - y.share(value) * (bottom - top):.1f}H{right:.1f}"/>'


def _straight(shapes: Sequence[Any], name: str) -> list[Any]:
    """Where straight marks cross an axis."""
    return [s[f"{name}0"] for s in shapes if s[f"{name}ref"] == name and s[f"{name}0"] == s[f"{name}1"]]
