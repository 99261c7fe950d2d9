"""What segmenters name, pixel by pixel, beside the labels."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from ..core.batch import IGNORED, call, device_for, logits_of
from ..core.task import evaluating
from ..ui import Control, Explorer, Frame, raster, svg
from .activations import as_images
from .atlas import span

_PAGE = 6  # pictures side by side
_GAP = 6  # px between pictures
_OUTSIDE = "#b0b0b0"  # labels that do not count


def segmentation(
    models: Mapping[str, nn.Module], x: torch.Tensor, y: torch.Tensor, colours: Sequence[str] = svg.PALETTE
) -> Explorer:
    """Pictures (N, C, H, W), their labels (N, H, W), and below them the classes that each model names.

    models: {name: model}, such as one before and one after, each (N, C, H, W) -> (N, classes, H, W). colours: one a
    class, as '#rrggbb'. Pixels whose label is -100 are grey among the labels. ValueError for a class without a colour.
    """
    if not models:
        raise ValueError("models={}: give {name: model} of one model or more")
    x = as_images(x)
    rows = {"labels": y.cpu().numpy(), **{name: _named(model, x) for name, model in models.items()}}
    most = max(int(classes.max()) for classes in rows.values())
    if most >= len(colours):
        raise ValueError(f"colours: {len(colours)} for classes 0 to {most}: give {most + 1}")
    table = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (*colours, _OUTSIDE)], np.uint8)
    images = x.float().cpu().numpy()
    low, high = span(images)

    def draw(page: int = 1) -> Frame:
        shown = range((page - 1) * _PAGE, min(page * _PAGE, len(x)))
        pixels = {"pictures": [raster.as_picture(images[k], low, high) for k in shown]}
        pixels |= {
            name: [table[np.where(c == IGNORED, -1, c)] for c in classes[shown]] for name, classes in rows.items()
        }
        counts = (rows["labels"] != IGNORED)[shown]
        right = {name: (classes == rows["labels"])[shown][counts].mean() for name, classes in rows.items()}
        return Frame(_sheet(pixels), {f"pixels right, {name}": f"{right[name]:.1%}" for name in models})

    pages = -(-len(x) // _PAGE)
    return Explorer(draw, {"page": Control(range(1, pages + 1))} if pages > 1 else {}, title="segmentation")


def _named(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    """The class that a model names at each pixel, (N, H, W)."""
    with torch.no_grad(), evaluating(model):
        return logits_of(call(model, x.to(device_for(model, x)))).argmax(1).cpu().numpy()


def _sheet(rows: Mapping[str, Sequence[np.ndarray]], side: int = 84) -> str:
    """Rows of pictures (H, W, 3) uint8 with their names at the left, as one SVG."""
    left = max(map(svg.text_width, rows)) + _GAP
    parts, top = [], 0.0
    for name, images in rows.items():
        tall = side * images[0].shape[0] / images[0].shape[1]
        parts.append(svg.text(0, top + tall / 2, name))
        for k, pixels in enumerate(images):
            parts.append(raster.image(raster.uri(pixels), left + k * (side + _GAP), top, side, tall, name))
        top += tall + _GAP
    width = left + len(next(iter(rows.values()))) * (side + _GAP)
    return svg.document(width, top, "", "pictures, labels and what is named", parts)
