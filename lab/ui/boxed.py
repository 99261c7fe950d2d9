"""A picture with boxes on it, each kind in its own colour, and a line that names them."""

from collections.abc import Mapping, Sequence

import numpy as np

from . import raster, svg

KINDS = ("lab-edge c2", "lab-edge lab-dashed c4", "lab-edge c1")  # of the first kind, the second and the third


def boxed(
    pixels: np.ndarray, boxes: Mapping[str, Sequence[Sequence[float]]], title: str, width: int = 240
) -> str:  # fmt: skip
    """Pixels (H, W, 3) uint8 with up to three kinds of boxes, (left, top, right, bottom) in px, by name; the first kind
    lies above the others.
    """
    scale, top = width / pixels.shape[1], float(svg.HEAD)
    tall = pixels.shape[0] * scale
    parts = [raster.image(raster.uri(pixels), 0, top, width, tall, title)]
    for (_, some), kind in reversed(list(zip(boxes.items(), KINDS, strict=False))):
        for box in some:
            left, upper, right, bottom = (scale * side for side in box)
            parts.append(svg.rect(left, top + upper, right - left, bottom - upper, kind))
    y = top + tall + svg.UNDER
    return svg.document(width, y + 5, title, title, [*parts, *_key(list(boxes), y)])


def _key(names: Sequence[str], y: float) -> list[str]:
    """A line that says which box is what."""
    parts, x = [], 1.0
    for name, kind in zip(names, KINDS, strict=False):
        parts += [svg.rect(x, y - 9, 12, 9, kind), svg.text(x + 18, y, name)]
        x += 30 + svg.text_width(name)
    return parts
