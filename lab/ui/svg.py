"""Small pictures as SVG text: bars, lines, blocks and heat; pure functions of plain numbers.

Each returns one `<svg>`; several stand side by side by adding the strings. Colours are classes (`explorer.css`),
so one picture serves light and dark pages. Lengths are px; text is never under 11 px.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's colours, told apart by colour-blind readers; the first four reach 3:1 on white and on Jupyter's dark.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE = 17  # px from one line of text to the next
SIZE = 12  # px, the height of text
BASE = 12  # px from the top of a line down to where its text stands
UNDER = 15  # px from a shape down to where a line of text under it stands
HEAD = LINE + 5  # px, the room of a title
_BOLD = 1.1  # a title's width over that of plain text
_HIGH = 64  # px, the highest block
_INSET = 6  # px between the axes of a plot and its points
_RIGHT = 22  # px right of a plot, for the half of its last tick's number
_LEAST_ROW = 14  # px, the height of a row that has room for its name
_COLUMNS = 120  # of a table of values over steps
_NARROW, _WIDE = "fijlrtI.,:;|!'()[]/- ", "mwMW@%—"
_NARROW_EM, _WIDE_EM, _USUAL_EM = 0.38, 1.0, 0.66  # widths of characters, over the height of text


@dataclass(frozen=True)
class Series:
    """Points (x, y) of one colour, joined by a line unless `joined` is false.

    `band` are (x, low, high), such as an interval over other runs, filled behind all lines.
    """

    name: str
    points: Sequence[tuple[float, float]] = ()
    joined: bool = True
    band: Sequence[tuple[float, float, float]] = ()


def number(value: float | int | str) -> str:
    """A number as people read it: counts in full with commas, fractions to six figures; text as it is."""
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 1e6):
        return f"{int(value):,}"
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"


def short(value: float) -> str:
    """A tick's number in a few characters: 1500000 is 1.5M."""
    for size, letter, start in ((1e9, "G", 1e9), (1e6, "M", 1e6), (1e3, "k", 1e4)):
        if abs(value) >= start:
            return f"{value / size:.4g}{letter}"
    return f"{value:.6g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) within [low, high]."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def text_width(text: str) -> float:
    """The room a line of text needs, in px, taken from a wide font so that nothing is cut off in another."""
    return SIZE * sum(_NARROW_EM if c in _NARROW else _WIDE_EM if c in _WIDE else _USUAL_EM for c in text)


def title_width(text: str) -> float:
    """The room that a title needs, in px: it is bold."""
    return text_width(text) * _BOLD


def fit(text: str, room: float) -> str:
    """The text, shortened in its middle to fit into `room` px; names of layers differ at both ends."""
    if text_width(text) <= room:
        return text
    keep = len(text) - 1
    while keep > 1 and text_width(text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]) > room:
        keep -= 1
    return text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]


def bars(
    rows: Iterable[tuple[str, float, float]], title: str = "", width: int | None = None, share: bool = False
) -> str:
    """What is kept of each whole: one bar per (name, kept, total) inside its hollow outline, numbers beside it.

    Bars share one scale from zero; with `share` each outline has full length. Over 24 rows stand in columns.
    """
    rows = list(rows)
    columns = min(3, -(-len(rows) // 24)) or 1
    deep = -(-len(rows) // columns)  # rows per column
    width = width or (420 if columns == 1 else 640)
    column = width / columns
    numbers = [f"{number(kept)} / {number(total)}" for _, kept, total in rows]
    right = max((text_width(f"{number(total)} / {number(total)}") for _, _, total in rows), default=0) + 14
    left = min(max((text_width(name) for name, _, _ in rows), default=0), column * 0.5) + 8
    room, most = column - left - right, max((total for _, _, total in rows), default=1) or 1
    top = _top(title)
    texts, outlines, fills = [], "", ""
    for i, ((name, kept, total), note) in enumerate(zip(rows, numbers, strict=True)):
        x, y = (i // deep) * column, top + (i % deep) * LINE
        scale = room / ((total or 1) if share else most)
        texts.append(text(x, y + BASE, fit(name, left - 8), hint=name))
        texts.append(text(x + left + total * scale + 6, y + BASE, note, "num"))
        outlines += _box(x + left, y + 3, total * scale, LINE - 6)
        fills += _box(x + left, y + 3, kept * scale, LINE - 6) if kept else ""
    parts = [_path(fills, "lab-fill c0"), _path(outlines, "lab-track"), *texts]
    return document(width, top + deep * LINE + 4, title, "what is kept", parts)


def lines(
    series: Iterable[Series], x: str = "", y: str = "", title: str = "", at: float | None = None, width: int = 380
) -> str:
    """Series over two axes with ticks; `at` is a vertical marker at the present x. `x` and `y` name axis and unit."""
    series = list(series)
    points = [p for s in series for p in _finite((*s.points, *_edge(s.band)))]
    if not points:
        return document(width, 44, title, "no points", [text(0, 34, "nothing measured yet")])
    across = [p[0] for p in points] + ([] if at is None else [at])
    (x0, x1), (y0, y1) = _span(across), _span([p[1] for p in points])
    rows = ticks(y0, y1)
    legend, top = _legend(series, width, _top(title))
    left, right, bottom = max(text_width(short(t)) for t in rows) + 8, width - _RIGHT, top + LINE + 190
    top += LINE if y else 6

    def px(v: float) -> float:
        return left + _INSET + (v - x0) / (x1 - x0) * (right - left - 2 * _INSET)

    def py(v: float) -> float:
        return bottom - _INSET - (v - y0) / (y1 - y0) * (bottom - top - 2 * _INSET)

    parts = [legend, text(0, top - 6, y) if y else "", _axes(rows, ticks(x0, x1), px, py, (left, right, bottom))]
    if x:
        parts.append(text((left + right) / 2, bottom + 2 * LINE, x, "mid"))
    if at is not None:
        parts.append(_path(f"M{_n(px(at))} {_n(top)}V{_n(bottom)}", "lab-now"))
    parts += [_ribbon(s, i, px, py) for i, s in enumerate(series)]
    upwards = sorted(range(len(series)), key=lambda i: -len(series[i].points))  # a cloud hides no smaller series
    parts += [_curve(series[i], i, px, py) for i in upwards]
    return document(width, bottom + (2 * LINE + 6 if x else LINE + 6), title, f"{y} against {x}", parts)


def blocks(
    parts: Iterable[tuple[str, float, float]], skips: Iterable[tuple[int, int]] = (), title: str = "", width: int = 640
) -> str:
    """A network as a row of blocks (name, kept, total): the higher the more there was, filled to the share kept.

    A block of which nothing is kept is a dashed outline. `skips` (i, j) are arcs from block i over to block j. Long
    networks wrap; over 32 blocks are drawn narrow, with their names on hover.
    """
    parts, skips = list(parts), list(skips)
    wide = len(parts) <= 32
    rows = math.ceil(len(parts) * (52 if wide else 17) / width) or 1
    per_row = math.ceil(len(parts) / rows) or 1
    pitch = min(72 if wide else 20, width / per_row)
    most = max((total for _, _, total in parts), default=1) or 1
    sky = 28 if skips else 2  # px above the blocks, where arcs run
    tall = sky + _HIGH + (2 * LINE + 6 if wide else 10)
    top = _top(title)
    corners = [((i % per_row) * pitch + 1, top + (i // per_row) * tall + sky) for i in range(len(parts))]
    shapes = [_block(part, x, y, pitch, most, wide) for part, (x, y) in zip(parts, corners, strict=True)]
    heights = [_HIGH * math.sqrt(total / most) for _, _, total in parts]
    middle = _body(pitch, wide) / 2
    roofs = [(x + middle, y, y + _HIGH - h - 2) for (x, y), h in zip(corners, heights, strict=True)]
    arcs = [_skip(roofs[i], roofs[j], per_row * pitch) for i, j in skips]
    return document(width, top + rows * tall, title, "blocks of the network", [*arcs, *shapes])


def heat(
    values: Sequence[Sequence[float]],
    names: Sequence[str] = (),
    x: str = "step",
    title: str = "",
    at: float | None = None,
    width: int = 420,
    span: tuple[float, float] | None = None,
    most: float = 1.0,
) -> str:
    """Values in [0, most], one row per structure and one column per step: the stronger the colour, the larger.

    `at` marks a column; `span` are the numbers of the first and the last column, left out their indices. Of long tables
    120 steps are drawn, the first and the last among them. Shades have eight levels.
    """
    rows, names = [list(row) for row in values], list(names)
    steps = len(rows[0]) if rows else 0
    if not steps:
        return document(width, 44, title, "no values", [text(0, 34, "nothing recorded yet")])
    shown = min(steps, _COLUMNS)
    table = [[row[round(k * (steps - 1) / max(shown - 1, 1))] / most for k in range(shown)] for row in rows]
    left = min(max((text_width(name) for name in names), default=0), width * 0.3) + (8 if names else 1)
    tall = max(2.0, min(LINE, 240 / len(table)))
    w, h, top = width - left - 8, tall * len(table), _top(title) + LINE + 2
    every = math.ceil(_LEAST_ROW / tall) if tall < _LEAST_ROW else 1  # name as many rows as have room for their text
    labels = [
        text(0, top + (i + 0.5) * tall + 4, fit(name, left - 8), hint=name)
        for i, name in enumerate(names)
        if i % every == 0
    ]
    placed = f"translate({_n(left)} {_n(top)}) scale({w / shown:.4f} {tall:.4f})"
    cells = f'<g transform="{placed}">{_runs(table)}</g>'
    frame = rect(left, top, w, h, "lab-track")
    first, last = span or (0, steps - 1)
    below = top + h + UNDER
    ends = [text(left, below, short(first), "num"), text(left + w, below, short(last), "end num")]
    ends.append(text(left + w / 2, below, x, "mid"))
    now = left + ((at or 0) + 0.5) / steps * w
    marker = "" if at is None else _path(f"M{_n(now)} {_n(top - 3)}v{_n(h + 6)}", "lab-now")
    key = [rect(left + 10 + 8 * k, top - 16, 8, 10, f"lab-shade c0 s{k}") for k in range(8)]
    scale = [text(left, top - 7, "0"), *key, text(left + 78, top - 7, short(float(f"{most:.2g}")))]
    shapes = [*scale, cells, frame, marker, *labels, *ends]
    return document(width, top + h + LINE + 4, title, "values over steps", shapes)


def target(
    box: tuple[float, float, float, float], hint: str, pressed: bool = False, content: str = "", **values: str | float
) -> str:
    """A part of a picture that is a button: a click on it sets the explorer's controls to `values`.

    box is (x, y, width, height) in px; `content` is SVG that lies under it, `hint` what it says on hover and aloud,
    `pressed` whether the values are the present ones.
    """
    state = ' aria-pressed="true"' if pressed else ' aria-pressed="false"'
    label = f"<title>{escape(hint)}</title>"
    return f'<g data-set="{escape(json.dumps(values))}"{state}>{label}{content}{rect(*box, "lab-target")}</g>'


def _runs(table: list[list[float]]) -> str:
    """One path per shade; a run of equal cells in a row is one stroke, so masks that move slowly stay small."""
    paths: dict[int, list[str]] = {}
    for r, row in enumerate(table):
        shades = [0 if math.isnan(v) else min(7, max(0, round(v * 7))) for v in row]
        start = 0
        for c in range(1, len(row) + 1):
            if c == len(row) or shades[c] != shades[start]:
                if shades[start]:
                    paths.setdefault(shades[start], []).append(f"M{start} {r}.5h{c - start}")
                start = c
    return "".join(_path("".join(d), f"lab-run s{s}") for s, d in sorted(paths.items()))


def _body(pitch: float, wide: bool) -> float:
    return pitch - (14 if wide else 4)


def _block(part: tuple[str, float, float], x: float, y: float, pitch: float, most: float, wide: bool) -> str:
    name, kept, total = part
    w, floor = _body(pitch, wide), y + _HIGH
    full, left = _HIGH * math.sqrt(total / most), _HIGH * math.sqrt(kept / most)  # areas as seen go with the counts
    inner = w * math.sqrt(kept / total) if total else 0
    numbers = f"{number(kept)}/{number(total)}"
    brief = numbers if text_width(numbers) < pitch + 8 else number(kept)
    notes = text(x + w / 2, floor + 14, fit(name, pitch - 3), "mid") + text(x + w / 2, floor + 29, brief, "mid num")
    return (
        f"<g><title>{escape(name)}: {number(kept)} of {number(total)}</title>"
        + rect(x, floor - full, w, full, "lab-track" if kept else "lab-gone")
        + (rect(x + (w - inner) / 2, floor - left, inner, left, "lab-fill c0") if kept else "")
        + (notes if wide else "")
        + "</g>"
    )


def _skip(start: tuple[float, float, float], end: tuple[float, float, float], edge: float) -> str:
    """An arc between two roofs (x, y of the row, y of the roof); over a line break it goes out right, in left."""
    (a, row, ya), (b, other, yb) = start, end
    sky, below = _n(row - 24), _n(other - 24)
    if row == other:
        d = f"M{_n(a)} {_n(ya)}C{_n(a)} {sky} {_n(b)} {sky} {_n(b)} {_n(yb)}"
    else:
        d = f"M{_n(a)} {_n(ya)}Q{_n(a)} {sky} {_n(edge)} {sky}M0 {below}Q{_n(b)} {below} {_n(b)} {_n(yb)}"
    return _path(d, "lab-skip")


def _curve(series: Series, colour: int, px, py) -> str:
    points = [(px(a), py(b)) for a, b in _finite(series.points)]
    parts = []
    if series.joined and len(points) > 1:
        parts.append(_path("M" + " ".join(f"{_n(a)} {_n(b)}" for a, b in _thin(points)), f"lab-line c{colour % 6}"))
    if len(points) <= 40 or not series.joined:  # more would touch each other
        parts += [f'<circle class="lab-dot c{colour % 6}" cx="{_n(a)}" cy="{_n(b)}" r="3.5"/>' for a, b in points]
    return "".join(parts)


def _edge(band: Iterable[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """The outline of a band: along its low side, and back along its high one."""
    finite = [point for point in band if all(map(math.isfinite, point))]
    return [(x, low) for x, low, _ in finite] + [(x, high) for x, _, high in reversed(finite)]


def _ribbon(series: Series, colour: int, px, py) -> str:
    outline = _edge(series.band)
    path = "M" + " ".join(f"{_n(px(a))} {_n(py(b))}" for a, b in outline) + "z"
    return _path(path, f"lab-ribbon c{colour % 6}") if len(outline) > 2 else ""


def _finite(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b)]


def _thin(points: list[tuple[float, float]], most: int = 160) -> list[tuple[float, float]]:
    """A long curve by the lowest and highest point of each stretch, so that no peak is lost."""
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    ends = [{min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])} for part in stretches]
    return [points[0], *(p for pair in ends for p in sorted(pair)), points[-1]]


def _legend(series: list[Series], width: float, top: float) -> tuple[str, float]:
    """One entry per series, wrapped; with it the y below the legend."""
    entries = [(s.name, i) for i, s in enumerate(series) if s.points]
    if len(entries) < 2:
        return "", top
    parts, x = [], 0.0
    for name, colour in entries:
        name = fit(name, width - 20)
        if x and x + 16 + text_width(name) > width:
            x, top = 0.0, top + LINE
        parts.append(f'<circle class="lab-dot c{colour % 6}" cx="{_n(x + 5)}" cy="{_n(top + 8)}" r="3.5"/>')
        parts.append(text(x + 14, top + BASE, name))
        x += 28 + text_width(name)
    return "".join(parts), top + LINE + 4


def _axes(rows: list[float], columns: list[float], px, py, box: tuple[float, float, float]) -> str:
    left, right, bottom = box
    grid = "".join(f"M{_n(left)} {_n(py(t))}H{_n(right)}" for t in rows)
    marks = "".join(f"M{_n(px(t))} {_n(bottom)}v4" for t in columns)
    labels = [text(left - 5, py(t) + 4, short(t), "end num") for t in rows]
    labels += [text(px(t), bottom + 17, short(t), "mid num") for t in columns]
    return _path(grid, "lab-grid") + _path(f"M{_n(left)} {_n(bottom)}H{_n(right)}{marks}", "lab-axis") + "".join(labels)


def _span(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (abs(low) or 1) * 0.05 if low == high else 0
    return low - margin, high + margin


def _top(title: str) -> float:
    return HEAD if title else 2


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _box(x: float, y: float, w: float, h: float) -> str:
    w = max(w, 0.5)
    return f"M{_n(x)} {_n(y)}h{_n(w)}v{_n(max(h, 0.5))}h{_n(-w)}z"


def _path(d: str, kind: str) -> str:
    return f'<path class="{kind}" d="{d}"/>'


def rect(x: float, y: float, w: float, h: float, kind: str) -> str:
    """A rectangle whose looks are the class `kind`."""
    return _path(_box(x, y, w, h), kind)


def text(x: float, y: float, words: str, kind: str = "", hint: str = "") -> str:
    """A line of text whose baseline starts at x, y; `hint` is what it says on hover."""
    title = f"<title>{escape(hint)}</title>" if hint and hint != words else ""
    chosen = f' class="{kind}"' if kind else ""
    return f'<text x="{_n(x)}" y="{_n(y)}"{chosen}>{title}{escape(words)}</text>' if words else ""


def document(width: float, height: float, title: str, label: str, parts: Iterable[str], *, alone: bool = False) -> str:
    """The `<svg>` around parts, width x height px, under its title; `label` says aloud what it shows without one.

    An `alone` one has nothing beside it on its row.
    """
    size = f'viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}"'
    inside = text(0, 13, title, "strong") + "".join(parts)
    role = "group" if "data-set=" in inside else "img"  # what is inside an img is nobody's button
    kind = ' class="lab-alone"' if alone else ""
    return f'<svg {size}{kind} role="{role}" aria-label="{escape(title or label)}">{inside}</svg>'
