"""The activation atlas: the feature maps of every layer for a picture, a page at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..ui import Control, Explorer, Frame, raster, svg
from .activations import as_images, left_out, maps

PAGE = 64  # maps a page: drawn in some 20 ms, under 100 kB
EACH, ONE = "each map its own", "one for the layer"


def atlas(model: nn.Module, x: torch.Tensor, layers: Sequence[str] | str | None = None) -> Explorer:
    """An explorer of feature maps: layer (also by a click on the strip), picture, page of 64 filters and colour scale.

    x is (N, C, H, W), a few pictures as the model takes them; `layers` are names, left out all that give feature maps.
    What they give is kept as it is computed once: N pictures of all layers. ValueError for a model without maps.
    """
    x = as_images(x)
    by_layer = {name: output.float().cpu().numpy() for name, output in maps(model, x, layers).items()}
    without_patch = left_out(model, x[:1], layers)
    images = x.float().cpu().numpy()  # (N, C, H, W)
    low, high = span(images)
    filters = {name: output.shape[1] for name, output in by_layer.items()}
    pages = max(-(-count // PAGE) for count in filters.values())

    def draw(layer: str, page: int, image: int = 0, scale: str = ONE) -> Frame:
        maps = by_layer[layer][image]  # (C, h, w)
        parts = -(-len(maps) // PAGE)
        at = min(page, parts) - 1
        shown = range(at * PAGE, min((at + 1) * PAGE, len(maps)))
        colours = raster.Scale.of(maps) if scale == ONE else None
        title = f"{layer}: filters {shown[0]} to {shown[-1]} of {len(maps)}"
        grid = raster.grid(maps[shown.start : shown.stop], title, "activation", scale=colours)
        h, w = maps.shape[1:]
        facts: dict[str, str | int | float] = {
            "filters": len(maps),
            "map": f"{h} x {w}",
            "page": f"{at + 1} of {parts}",
            "never above 0 here": int((maps.max((1, 2)) <= 0).sum()),
        }
        if without_patch[layer]:
            facts["tokens without a patch, left out"] = without_patch[layer]
        photo = raster.photo(images[image], f"picture {image}", low, high)
        return Frame(strip(filters, layer) + photo + grid, facts)

    controls: dict[str, Control] = {"layer": Control(list(filters)), "page": Control(range(1, pages + 1))}
    if len(x) > 1:
        controls["image"] = Control(range(len(x)), label="picture")
    controls["scale"] = Control([ONE, EACH], label="colours")
    return Explorer(draw, controls, title=f"{type(model).__name__}: feature maps")


def span(*images: np.ndarray) -> tuple[float, float]:
    """What is shown black and white: 0 and 1 for pictures within [0, 1], else their lowest and highest value."""
    low, high = min(float(x.min()) for x in images), max(float(x.max()) for x in images)
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def strip(counts: dict[str, int], chosen: str) -> str:
    """The layers as bars to be clicked, in the order in which they run, as high as the root of their filters.

    Nothing where there is one layer only.
    """
    if len(counts) < 2:
        return ""
    pitch = max(6.0, min(26.0, 860 / len(counts)))
    most, high, top = max(counts.values()), 34.0, svg.HEAD
    shapes = []
    for k, (name, count) in enumerate(counts.items()):
        tall = max(3.0, high * (count / most) ** 0.5)
        shade = "" if name == chosen else " s4"
        bar = svg.rect(k * pitch + 1, top + high - tall, pitch - 2, tall, f"lab-shade c0{shade}")
        box = (k * pitch + 1, top, pitch - 2, high)
        shapes.append(svg.target(box, f"{name}: {count} filters", name == chosen, bar, layer=name))
    title = f"{len(counts)} layers, in the order in which they run"
    return svg.document(max(len(counts) * pitch, 320), top + high + 4, title, title, shapes, alone=True)
