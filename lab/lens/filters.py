"""A grid of filters to click: what a filter answers to a picture, what it answers to most, what it is good for."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.task import inputs
from ..ui import Control, Explorer, Frame, raster, svg
from .ablation import switched_off
from .activations import maps, named, over, pictures
from .atlas import PAGE, span, strip
from .strongest import Strongest, strongest_of

_SIDE = 56  # px of a strongest picture


def filters(
    model: nn.Module, layers: str | Sequence[str], batches: Iterable, *,
    k: int = 9, shown: int = 6, progress: bool = True,
) -> Explorer:  # fmt: skip
    """An explorer of filters to click: their maps on a picture, the k pictures they answer to most and what they see.

    `batches` give x or (x, y), (N, C, H, W), to be passed over again and again; the first `shown` pictures are those to
    choose from. Where they give labels, a button switches the filter off, measures the change of accuracy over all
    batches, and that of three other filters drawn at random. ValueError where a layer gives no feature maps.
    """
    names = named(model, layers)
    if not isinstance(shown, int) or isinstance(shown, bool) or shown < 1:
        raise ValueError(f"shown={shown!r}: give an integer number of pictures, 1 or more")
    first = _first(batches)
    x = pictures(inputs(first), "a batch")[:shown]
    found = {name: answer.float().cpu().numpy() for name, answer in maps(model, x, names).items() if name in names}
    tops = strongest_of(model, names, batches, k, progress=progress)
    seen, measured = x.float().cpu().numpy(), dict[tuple[str, int], Any]()
    low, high = span(*seen, *(picture.float().numpy() for top in tops.values() for picture in top.pictures.values()))

    def draw(filter: int, picture: int, layer: str = names[0]) -> Frame:
        answer, top = found[layer][picture], tops[layer]
        one = min(filter, len(answer) - 1)
        parts = [strip({n: a.shape[1] for n, a in found.items()}, layer), _grid(answer, one, layer, picture)]
        parts.append(raster.photo(seen[picture], f"picture {picture}", low, high, longest=132))
        scale = raster.Scale.of(answer[one])
        parts.append(raster.grid(answer[one : one + 1], f"filter {one}", "activation", longest=132, scale=scale))
        parts.append(row(top, one, low, high))
        facts: dict[str, str | int | float] = {
            "filter": f"{layer} {one}",
            "highest here": round(float(answer[one].max()), 3),
        }
        facts |= {"highest of all": round(float(top.values[one, 0]), 3), "pictures": top.seen}
        return Frame("".join(parts), {**facts, **measured.get((layer, one), {})})

    def silence(explorer: Explorer) -> None:
        layer = str(explorer.state.get("layer", names[0]))
        one = min(explorer.filter, found[layer].shape[1] - 1)
        frame = switched_off(model, layer, batches, [one], controls=3, progress=False)
        random = frame.loc[frame["kind"] == "random", "change"]
        texts = {"switched off": f"{frame['change'][0]:+.2f} points of accuracy"}
        if len(random):
            texts["random others"] = f"{random.mean():+.2f} on average of {len(random)}"
        measured[layer, one] = texts

    controls: dict[str, Control] = {"layer": Control(names)} if len(names) > 1 else {}
    controls["filter"] = Control(range(max(answer.shape[1] for answer in found.values())))
    controls["picture"] = Control(range(len(x)))
    labelled = isinstance(first, (tuple, list)) and len(first) > 1 and isinstance(first[1], torch.Tensor)
    return Explorer(
        draw,
        controls,
        title=f"{type(model).__name__}: click a filter",
        actions={"Switch the filter off": silence} if labelled else {},
    )


def _first(batches: Iterable) -> Any:
    for batch in over(batches):
        return batch
    raise ValueError("the batches are empty: give at least one")


def _grid(answer: np.ndarray, one: int, layer: str, picture: int) -> str:
    """The page of maps that holds a filter, to be clicked, and the ways to the pages beside it."""
    start = one // PAGE * PAGE
    page = answer[start : start + PAGE]
    title = f"{layer} on picture {picture}: filters {start} to {start + len(page) - 1} of {len(answer)}"
    names = [f"filter {start + i}" for i in range(len(page))]
    turns = _turn(0, "← earlier filters", start - PAGE) if start else ""
    turns += _turn(128, "later filters →", start + PAGE) if start + PAGE < len(answer) else ""
    return raster.grid(
        page, title, "activation", scale=raster.Scale.of(answer), names=names, pressed=one - start,
        press=lambda i: {"filter": start + i}, beside=turns,
    )  # fmt: skip


def _turn(x: float, text: str, to: int) -> str:
    box = (x + 1, 1, 120, 22)
    content = svg.rect(*box, "lab-track") + svg.text(x + 61, 16, text, "mid")
    return svg.target(box, text, False, content, filter=to)


def row(top: Strongest, filter: int, low: float, high: float) -> str:
    """The strongest pictures of a filter with a frame about what the unit sees, that part enlarged, the answers."""
    images, step, head = top.images(filter), _SIDE + 4, svg.LINE + 5
    drawn = []
    for rank, (picture, crop) in enumerate(zip(images, top.crops(filter), strict=True)):
        x, pixels = rank * step, raster.as_picture(picture.float().numpy(), low, high)
        h, w = pixels.shape[:2]
        scale = _SIDE / max(h, w)
        t, left, b, right = top.box(filter, rank)
        label = f"picture {int(top.number[filter, rank])} of the stream"
        drawn.append(raster.image(raster.uri(raster.shrunk(pixels, 64)), x, head, w * scale, h * scale, label))
        box = (x + left * scale, head + t * scale, (right - left) * scale, (b - t) * scale)
        drawn.append(svg.rect(*box, "lab-frame"))
        part = raster.as_picture(crop.float().numpy(), low, high)
        zoom = _SIDE / max(part.shape[:2])
        source = raster.uri(raster.shrunk(part, 64))
        drawn.append(raster.image(source, x, head + step, part.shape[1] * zoom, part.shape[0] * zoom, "what it sees"))
        value = svg.short(float(f"{float(top.values[filter, rank]):.3g}"))
        drawn.append(svg.text(x + _SIDE / 2, head + 2 * step + 12, value, "mid num"))
    title = f"strongest of {top.seen:,} pictures, and what the unit sees"
    width = max(len(images) * step, svg.text_width(title) * 1.1)
    return svg.whole(width, head + 2 * step + svg.LINE, title, title, drawn)
