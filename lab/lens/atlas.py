"""The activation atlas: the feature maps of every layer for a picture, a page at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..ui import Control, Explorer, Frame, raster, svg
from .activations import maps, pictures

PAGE = 64  # maps a page: drawn in some 20 ms, under 100 kB
EACH, ONE = "each map its own", "one for the layer"


def atlas(model: nn.Module, x: torch.Tensor, layers: Sequence[str] | str | None = None) -> Explorer:
    """An explorer of feature maps: layer (also by a click on the strip), picture, page of 64 filters and colour scale.

    x is (N, C, H, W), a few pictures as the model takes them; `layers` are names, left out all that give feature maps.
    What they give is kept as it is computed once: N pictures of all layers. ValueError for a model without maps.
    """
    x = pictures(x)
    found = {name: answer.float().cpu().numpy() for name, answer in maps(model, x, layers).items()}
    seen = x.float().cpu().numpy()
    low, high = span(seen)
    names = list(found)
    pages = max(-(-answer.shape[1] // PAGE) for answer in found.values())

    def draw(layer: str, page: int, picture: int = 0, scale: str = ONE) -> Frame:
        answer = found[layer][picture]  # (C, h, w)
        parts = -(-len(answer) // PAGE)
        at = min(page, parts) - 1
        shown = range(at * PAGE, min((at + 1) * PAGE, len(answer)))
        colours = raster.Scale.of(answer) if scale == ONE else None
        title = f"{layer}: filters {shown[0]} to {shown[-1]} of {len(answer)}"
        grid = raster.grid(answer[shown.start : shown.stop], title, "activation", scale=colours)
        h, w = answer.shape[1:]
        facts: dict[str, str | int | float] = {
            "filters": len(answer), "map": f"{h} x {w}", "page": f"{at + 1} of {parts}",
            "never above 0 here": int((answer.max((1, 2)) <= 0).sum()),
        }  # fmt: skip
        photo = raster.photo(seen[picture], f"picture {picture}", low, high)
        return Frame(strip({n: a.shape[1] for n, a in found.items()}, layer) + photo + grid, facts)

    controls: dict[str, Control] = {"layer": Control(names), "page": Control(range(1, pages + 1))}
    if len(x) > 1:
        controls["picture"] = Control(range(len(x)))
    controls["scale"] = Control([ONE, EACH], label="colours")
    return Explorer(draw, controls, title=f"{type(model).__name__}: feature maps")


def span(*seen: np.ndarray) -> tuple[float, float]:
    """What is shown black and white: 0 and 1 for pictures within [0, 1], else their lowest and highest value."""
    low, high = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def strip(counts: dict[str, int], chosen: str) -> str:
    """The layers as bars to be clicked, in the order in which they run, as high as the root of their filters.

    Nothing where there is one layer only.
    """
    if len(counts) < 2:
        return ""
    pitch = max(6.0, min(26.0, 860 / len(counts)))
    most, high, top = max(counts.values()), 34.0, svg.LINE + 5
    drawn = []
    for k, (name, count) in enumerate(counts.items()):
        tall = max(3.0, high * (count / most) ** 0.5)
        shade = "" if name == chosen else " s4"
        bar = svg.rect(k * pitch + 1, top + high - tall, pitch - 2, tall, f"lab-shade c0{shade}")
        box = (k * pitch + 1, top, pitch - 2, high)
        drawn.append(svg.target(box, f"{name}: {count} filters", name == chosen, bar, layer=name))
    title = f"{len(counts)} layers, in the order in which they run"
    return svg.whole(max(len(counts) * pitch, 320), top + high + 4, title, title, drawn, alone=True)
