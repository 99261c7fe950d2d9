"""A grid of filters to click: what a filter answers to a picture, what it answers to most, what it is good for."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.batch import inputs
from ..ui import Control, Explorer, Frame, raster, svg
from .ablation import switched_off
from .activations import as_images, maps, named, over
from .atlas import PAGE, span, strip
from .strongest import Strongest, strongest_of

_SIDE = 56  # px, the longer side of a strongest picture
_LONGEST = 132  # px, of the picture and the map that are looked at
_TURN = (120, 22)  # px, width and height of a button that buttons the page
_PIXELS = 64  # the most that a side of a small picture is drawn from


def filters(
    model: nn.Module,
    layers: str | Sequence[str],
    batches: Iterable,
    *,
    k: int = 9,
    shown: int = 6,
    progress: bool = True,
) -> Explorer:
    """An explorer of filters to click: their maps on a picture, the k pictures they answer to most and what they see.

    `batches` give x or (x, y), (N, C, H, W), to be passed over again and again; the first `shown` pictures are those to
    choose from. Where they give labels, a button switches the filter off, measures the change of accuracy over all
    batches, and that of three other filters drawn at random. ValueError where a layer gives no feature maps.
    """
    names = named(model, layers)
    if not isinstance(shown, int) or isinstance(shown, bool) or shown < 1:
        raise ValueError(f"shown={shown!r}: give an integer number of pictures, 1 or more")
    first = _first(batches)
    x = as_images(inputs(first), "a batch")[:shown]
    maps_of = {name: out.float().cpu().numpy() for name, out in maps(model, x, names).items() if name in names}
    tops = strongest_of(model, names, batches, k, progress=progress)
    page = _Filters(model, batches, maps_of, tops, x.float().cpu().numpy())
    controls: dict[str, Control] = {"layer": Control(names)} if len(names) > 1 else {}
    controls["filter"] = Control(range(max(page.counts.values())))
    controls["image"] = Control(range(len(x)), label="picture")
    is_labelled = isinstance(first, (tuple, list)) and len(first) > 1 and isinstance(first[1], torch.Tensor)
    return Explorer(
        page.draw,
        controls,
        title=f"{type(model).__name__}: click a filter",
        actions={"Switch the filter off": page.switch_off} if is_labelled else {},
    )


class _Filters:
    """What the explorer shows: by layer the maps (N, C, h, w) of its images and the strongest pictures of all batches.

    `measured` keeps, by layer and filter, what switching it off has cost.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable,
        maps_of: dict[str, np.ndarray],
        tops: dict[str, Strongest],
        images: np.ndarray,
    ) -> None:
        self.model, self.batches, self.maps_of, self.tops, self.images = model, batches, maps_of, tops, images
        self.counts = {name: maps.shape[1] for name, maps in maps_of.items()}
        self.measured: dict[tuple[str, int], dict[str, str]] = {}
        self.range = span(*images, *(image.float().numpy() for top in tops.values() for image in top.kept.values()))

    def draw(self, filter: int, image: int, layer: str = "") -> Frame:
        """The page of a filter: the grid that it stands in, its map on the picture, its strongest pictures."""
        layer = layer or next(iter(self.counts))
        maps, top = self.maps_of[layer][image], self.tops[layer]  # (C, h, w)
        k = min(filter, len(maps) - 1)
        scale = raster.Scale.of(maps[k])
        parts = [
            strip(self.counts, layer),
            _grid(maps, k, layer, image),
            raster.photo(self.images[image], f"picture {image}", *self.range, longest=_LONGEST),
            raster.grid(maps[k : k + 1], f"filter {k}", "activation", longest=_LONGEST, scale=scale),
            row(top, k, *self.range),
        ]
        facts: dict[str, str | int | float] = {
            "filter": f"{layer} {k}",
            "highest here": round(float(maps[k].max()), 3),
            "highest of all": round(float(top.values[k, 0]), 3),
            "pictures": top.seen,
        }
        return Frame("".join(parts), {**facts, **self.measured.get((layer, k), {})})

    def switch_off(self, explorer: Explorer) -> None:
        """Measure what the present filter is good for, beside three others drawn at random."""
        layer = str(explorer.state.get("layer", next(iter(self.counts))))
        k = min(explorer.filter, self.counts[layer] - 1)
        frame = switched_off(self.model, layer, self.batches, [k], controls=3, progress=False)
        random = frame.loc[frame["kind"] == "random", "change"]
        texts = {"switched off": f"{frame['change'][0]:+.2f} points of accuracy"}
        if len(random):
            texts["random others"] = f"{random.mean():+.2f} on average of {len(random)}"
        self.measured[layer, k] = texts


def _first(batches: Iterable) -> Any:
    for batch in over(batches):
        return batch
    raise ValueError("the batches are empty: give at least one")


def _grid(maps: np.ndarray, filter: int, layer: str, image: int) -> str:
    """The page of maps that holds a filter, to be clicked, and the ways to the pages beside it."""
    start = filter // PAGE * PAGE
    page = maps[start : start + PAGE]
    title = f"{layer} on picture {image}: filters {start} to {start + len(page) - 1} of {len(maps)}"
    buttons = _turn(0, "← earlier filters", start - PAGE) if start else ""
    buttons += _turn(128, "later filters →", start + PAGE) if start + PAGE < len(maps) else ""
    return raster.grid(
        page,
        title,
        "activation",
        scale=raster.Scale.of(maps),
        names=[f"filter {start + i}" for i in range(len(page))],
        pressed=filter - start,
        press=lambda i: {"filter": start + i},
        beside=buttons,
    )


def _turn(x: float, text: str, to: int) -> str:
    width, height = _TURN
    box = (x + 1, 1, width, height)
    content = svg.rect(*box, "lab-track") + svg.text(x + 1 + width / 2, 16, text, "mid")
    return svg.target(box, text, False, content, filter=to)


def row(top: Strongest, filter: int, low: float, high: float) -> str:
    """The strongest pictures of a filter with a frame about what the unit sees, that part enlarged, the answers."""
    images, step = top.images(filter), _SIDE + 4
    shapes = []
    for rank, (image, crop) in enumerate(zip(images, top.crops(filter), strict=True)):
        x, scale = rank * step, _SIDE / max(image.shape[1:])
        shapes.append(_photo(image, x, svg.HEAD, low, high, f"picture {int(top.number[filter, rank])} of the stream"))
        t, left, b, right = top.box(filter, rank)
        box = (x + left * scale, svg.HEAD + t * scale, (right - left) * scale, (b - t) * scale)
        shapes.append(svg.rect(*box, "lab-frame"))
        shapes.append(_photo(crop, x, svg.HEAD + step, low, high, "what it sees"))
        value = svg.short(float(f"{float(top.values[filter, rank]):.3g}"))
        shapes.append(svg.text(x + _SIDE / 2, svg.HEAD + 2 * step + svg.BASE, value, "mid num"))
    title = f"strongest of {top.seen:,} pictures, and what the unit sees"
    width = max(len(images) * step, svg.title_width(title))
    return svg.document(width, svg.HEAD + 2 * step + svg.LINE, title, title, shapes)


def _photo(image: torch.Tensor, x: float, y: float, low: float, high: float, label: str) -> str:
    """An image (C, H, W) at x, y, its longer side _SIDE px."""
    pixels = raster.as_picture(image.float().numpy(), low, high)
    h, w = pixels.shape[:2]
    scale = _SIDE / max(h, w)
    return raster.image(raster.uri(raster.shrunk(pixels, _PIXELS)), x, y, w * scale, h * scale, label)
