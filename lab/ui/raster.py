"""Arrays as pictures: maps of numbers in colour, many on one small PNG inside an SVG, with the scale they are read by.

A page of maps is one `<image>`: a browser draws it at once, however many maps it holds. Zero is the darkest colour of
the scale from zero and white on the scale around zero, on light and dark pages alike.
"""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape

import numpy as np
from PIL import Image
from plotly import colors

from . import svg

_LEVELS = 32  # shades of a scale: five bits a pixel keep a page of 64 maps under 100 kB
_GAP = 2  # px between cells
Box = tuple[float, float, float, float]  # x, y, width, height in px


@dataclass(frozen=True)
class Scale:
    """The colours of numbers from `low` to `high`: from zero up where `low` is 0, else around zero."""

    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Scale":
        """A scale that holds all finite values: from zero where none is negative, else symmetric about zero."""
        finite = values[np.isfinite(values)] if values.size else values
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        if low >= 0:
            return cls(0.0, high or 1.0)
        return cls(-max(-low, high), max(-low, high))

    def shades(self, values: np.ndarray) -> np.ndarray:
        """The shade of each value, uint8 in 0 .. levels - 1; levels itself, which is clear, where it is not finite."""
        top = _LEVELS - 1 if self.low == 0 else _LEVELS - 2  # an even number of steps has a middle
        with np.errstate(invalid="ignore"):
            share = (values - self.low) / (self.high - self.low)
        shades = np.nan_to_num(np.rint(np.clip(share, 0, 1) * top)).astype(np.uint8)
        return np.where(np.isfinite(values), shades, np.uint8(_LEVELS))

    def table(self) -> list[tuple[int, int, int]]:
        """The colours of the shades."""
        return _colours("Viridis", _LEVELS) if self.low == 0 else _colours("RdBu_r", _LEVELS - 1)


@cache
def _colours(name: str, count: int) -> list[tuple[int, int, int]]:
    return [_rgb(text) for text in colors.sample_colorscale(name, count)]


def _rgb(text: str) -> tuple[int, int, int]:
    red, green, blue = colors.unlabel_rgb(text)
    return round(red), round(green), round(blue)


def png(shades: np.ndarray, table: Sequence[tuple[int, int, int]]) -> str:
    """A data URI of shades, uint8 (H, W), in the colours of a table; a shade past its end is clear."""
    image = Image.frombytes("P", shades.shape[::-1], np.ascontiguousarray(shades).tobytes())
    image.putpalette([part for colour in (*table, (0, 0, 0)) for part in colour])
    image.info["transparency"] = len(table)
    return _packed(image, "PNG")


def uri(pixels: np.ndarray, exact: bool = False) -> str:
    """A data URI of colour pixels (H, W, 3) uint8: a small picture as PNG in 64 colours of its own, others as JPEG.

    `exact` keeps every pixel, where the pixels themselves are looked at; it takes several times the room.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if exact:
        return _packed(image, "PNG")
    if max(image.size) <= 64:
        return _packed(image.quantize(64, Image.Quantize.FASTOCTREE), "PNG")  # seven times as fast as by median
    return _packed(image, "JPEG", quality=88)


def _packed(image: Image.Image, kind: str, **options: int) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def image(source: str, x: float, y: float, width: float, height: float, label: str = "") -> str:
    """A picture by its data URI in an SVG, its pixels as squares."""
    title = f"<title>{escape(label)}</title>" if label else ""
    box = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<image class="lab-pixels" {box} preserveAspectRatio="none" href="{source}">{title}</image>'


def fitted(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Maps (n, h, w) at (n, height, width): each pixel the nearest one, or the strongest of those it stands for."""
    h, w = pixels.shape[1:3]
    down, across = -(-h // height), -(-w // width)
    if down > 1 or across > 1:  # a map larger than its cell: a mean would hide a peak
        pixels = _strongest(pixels, down, across)
        h, w = pixels.shape[1:3]
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    return pixels[:, rows[:, None], columns[None, :]]


def _strongest(pixels: np.ndarray, down: int, across: int) -> np.ndarray:
    """The value farthest from zero of each block of down x across."""
    n, h, w = pixels.shape
    pad = ((0, 0), (0, -h % down), (0, -w % across))
    blocks = np.pad(pixels, pad, mode="edge").reshape(n, -(-h // down), down, -(-w // across), across)
    return np.where(blocks.max((2, 4)) >= -blocks.min((2, 4)), blocks.max((2, 4)), blocks.min((2, 4)))


def cells(count: int, columns: int, width: float, height: float, top: float = 0) -> list[Box]:
    """The boxes (x, y, width, height) of `count` cells in rows of `columns`, with a gap between them."""
    return [
        ((k % columns) * (width + _GAP), top + (k // columns) * (height + _GAP), width, height) for k in range(count)
    ]


def mosaic(maps: np.ndarray, columns: int, width: int, height: int, scale: Scale | None) -> str:
    """One PNG of maps (n, h, w) in cells of width x height px, `columns` a row; each its own scale if none is given."""
    rows = -(-len(maps) // columns)
    sheet = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP), _LEVELS, np.uint8)
    shared = scale or Scale.of(maps)
    values = fitted(maps, height, width)
    if scale is None:
        reach = np.abs(values).max((1, 2), keepdims=True)
        values = values / np.where(reach > 0, reach, 1)
        shared = Scale(-1.0 if shared.low else 0.0, 1.0)
    for shades, (x, y, _, _) in zip(shared.shades(values), cells(len(maps), columns, width, height), strict=True):
        sheet[int(y) : int(y) + height, int(x) : int(x) + width] = shades
    table = shared.table()
    return png(np.where(sheet == _LEVELS, np.uint8(len(table)), sheet), table)


def cell_size(h: int, w: int, longest: int = 40) -> tuple[int, int]:
    """The width and height in px of a cell for maps of h x w, its longer side `longest` px."""
    share = longest / max(h, w)
    return max(6, round(w * share)), max(6, round(h * share))


def legend(scale: Scale | None, x: float, y: float, unit: str, signed: bool = False, width: float = 160) -> str:
    """The colours with their numbers, 30 px high; without a scale, that each map has its own."""
    shown = scale or Scale(-1.0 if signed else 0.0, 1.0)
    table = shown.table()
    bar = png(np.arange(len(table), dtype=np.uint8)[None, :], table)
    ends = [svg.short(float(f"{value:.3g}")) for value in (shown.low, shown.high)]
    low, high = ends if scale is not None else ("-max" if signed else "0", "max of each")
    parts = [image(bar, x, y, width, 10), svg.text(x, y + 24, low, "num"), svg.text(x + width, y + 24, high, "end num")]
    if shown.low < 0:
        parts.append(svg.text(x + width / 2, y + 24, "0", "mid num"))
    parts.append(svg.text(x + width + 8, y + 10, unit))
    return "".join(parts)


def grid(
    maps: np.ndarray,
    title: str,
    unit: str,
    *,
    columns: int = 16,
    longest: int = 40,
    scale: Scale | None = None,
    names: Sequence[str] = (),
    press: Callable[[int], dict] | None = None,
    pressed: int = -1,
    beside: str = "",
) -> str:
    """Maps (n, h, w) as one picture: title, cells that can be pressed, and the scale they are read by.

    `press(k)` gives the values that a click on cell k sets, `names[k]` what it says; `beside` is SVG, 250 x 24 px, at
    the right of the legend. Without `scale` each map has its own, from zero to its strongest value.
    """
    width, height = cell_size(maps.shape[1], maps.shape[2], longest)
    columns = max(1, min(columns, len(maps)))
    rows = -(-len(maps) // columns)
    w, h, top = columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP, svg.HEAD
    shapes = [image(mosaic(maps, columns, width, height, scale), 0, top, w, h)] if len(maps) else []
    for k, box in enumerate(cells(len(maps), columns, width, height, top)):
        if press is not None:
            shapes.append(svg.target(box, names[k] if names else str(k), k == pressed, **press(k)))
    signed = scale.low < 0 if scale is not None else bool(maps.size and maps.min() < 0)
    shapes.append(legend(scale, 0, top + h + 8, unit, signed))
    if beside:
        shapes.append(f'<g transform="translate({max(w - 250, 300)} {top + h + 6})">{beside}</g>')
    broad = max(w, 176 + svg.text_width(unit), svg.title_width(title), 550 if beside else 0)
    return svg.document(broad, top + h + 8 + 30, title, title, shapes)


def as_picture(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of an input (C, H, W), `low` black, `high` white; other than 3 channels as their mean."""
    plain = x if x.shape[0] == 3 else np.repeat(x.mean(0, keepdims=True), 3, axis=0)
    share = np.nan_to_num((plain - low) / ((high - low) or 1))
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def photo(x: np.ndarray, title: str, low: float, high: float, longest: int = 160) -> str:
    """An input (C, H, W) as a picture with a title, its longer side `longest` px."""
    h, w = x.shape[1:]
    scale, top = longest / max(h, w), svg.HEAD
    drawing = image(uri(shrunk(as_picture(x, low, high), longest)), 0, top, w * scale, h * scale, title)
    return svg.document(max(w * scale, svg.title_width(title)), top + h * scale + 4, title, title, [drawing])


def area(mask: np.ndarray) -> str:
    """The true pixels of a mask (H, W) as an SVG path, a run of a row each."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return "".join(f"M{a} {y}h{b - a}v1h{a - b}z" for (y, a), (_, b) in zip(starts, ends, strict=True))


def outline(mask: np.ndarray) -> str:
    """The edges between the true and the other pixels of a mask (H, W) as an SVG path."""
    wide = np.pad(mask.astype(np.int8), 1)
    down = np.argwhere(np.diff(wide, axis=0)[:, 1:-1] != 0)  # edge above row y
    across = np.argwhere(np.diff(wide, axis=1)[1:-1] != 0)
    return "".join(f"M{x} {y}h1" for y, x in down) + "".join(f"M{x} {y}v1" for y, x in across)


def shrunk(pixels: np.ndarray, most: int) -> np.ndarray:
    """Pixels (H, W, 3) uint8 with no side longer than `most`; a small picture stays as it is."""
    h, w = pixels.shape[:2]
    share = most / max(h, w)
    if share >= 1:
        return pixels
    size = (max(1, math.floor(w * share)), max(1, math.floor(h * share)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
