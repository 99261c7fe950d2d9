"""Concepts seen: the masks of a concept, and where the filters that stand for it are strong."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from ..ui import Control, Explorer, Frame, raster, svg
from .atlas import span
from .concepts import all_maps, best_set, concept_data, halves, with_fresh_weights

_SHOWN, _SIDE = 8, 104  # pictures, and px of each
ONE, SET = "the best filter", "the best set"


def dissect(
    model: nn.Module,
    layer: str,
    batches: Iterable,
    names: Sequence[str],
    *,
    most: int = 4,
    top: float = 0.005,
    seed: int = 0,
    progress: bool = True,
) -> Explorer:
    """An explorer of concepts to click: the filters nearest to each, and where they are strong on pictures of it.

    The numbers are those of `concept_sets`, with the same arguments: chosen on every second picture, measured and shown
    on the others, beside the same network with fresh weights.
    """
    x, masks = concept_data(batches, names, top, most)
    chosen, shown = halves(all_maps(model, layer, x, progress), masks, top)
    sets = [best_set(chosen, shown, masks, k, most) for k in range(len(names))]
    fresh = halves(all_maps(with_fresh_weights(model, seed), layer, x, progress), masks, top)
    random_sets = [best_set(*fresh, masks, k, most) for k in range(len(names))]
    held_out, truth = torch.cat(x)[1::2].float().cpu().numpy(), masks[1::2].numpy()
    low, high = span(held_out)

    def draw(concept: str, filters: str = SET) -> Frame:
        k = names.index(concept)
        used = sets[k][0] if filters == SET else sets[k][0][:1]
        ious, random_ious = ([s[2] if filters == SET else s[1] for s in of] for of in (sets, random_sets))
        bars = list(zip(names, ious, random_ious, strict=True))
        some = [int(i) for i in np.flatnonzero(truth[:, k].any((1, 2)))[:_SHOWN]]
        strong = [shown.strong(torch.tensor(used), slice(i, i + 1))[0].any(0).numpy() for i in some]
        views = [
            (held_out[i], raster.area(area), raster.outline(truth[i, k])) for i, area in zip(some, strong, strict=True)
        ]
        grid = gallery(views, f"pictures of {concept}, held out", low, high)
        facts: dict[str, str | int | float] = {"filters": ", ".join(map(str, used)), "IoU": round(ious[k], 3)}
        facts |= {"fresh weights": round(random_ious[k], 3), "measured on": f"{len(truth)} pictures"}
        return Frame(chart(bars, concept, f"IoU of {filters}") + grid, facts)

    controls = {"concept": Control(tuple(names)), "filters": Control([SET, ONE])}
    return Explorer(draw, controls, title=f"{layer}: where filters are strong (pink) and what is there (outlined)")


def chart(rows: Sequence[tuple[str, float, float]], chosen: str, title: str) -> str:
    """A bar a concept, over a hollow one of the control; to be clicked."""
    most = max((max(iou, random_iou) for _, iou, random_iou in rows), default=0) or 1
    left = max(svg.text_width(name) for name, _, _ in rows) + 8
    tall, room = 24, 150  # px, of a row and of its longest bar
    shapes = []
    for k, (name, iou, random_iou) in enumerate(rows):
        y = svg.HEAD + k * tall
        bars = svg.rect(left, y + 3, iou / most * room, 8, "lab-shade c0")
        bars += svg.rect(left, y + 12, random_iou / most * room, 6, "lab-track")
        end = left + max(iou, random_iou) / most * room + 6
        words = svg.text(4, y + 15, name) + svg.text(end, y + 15, f"{iou:.2f}", "num")
        hint = f"{name}: {iou:.3f}, with fresh weights {random_iou:.3f}"
        shapes.append(svg.target((1, y, left + room + 40, tall - 2), hint, name == chosen, bars + words, concept=name))
    bottom = svg.HEAD + len(rows) * tall
    shapes.append(svg.text(4, bottom + svg.BASE, "hollow: the same with fresh weights"))
    return svg.document(max(left + room + 46, 250), bottom + svg.LINE, title, title, shapes)


def gallery(views: Sequence[tuple[np.ndarray, str, str]], title: str, low: float, high: float) -> str:
    """Pictures (C, H, W) in rows of four, each with the path of what is strong and the path of what is there."""
    step = _SIDE + 6
    shapes = []
    for k, (x, strong, there) in enumerate(views):
        h, w = x.shape[1:]
        left, top, scale = k % 4 * step, svg.HEAD + k // 4 * step, _SIDE / max(h, w)
        source = raster.uri(raster.shrunk(raster.as_picture(x, low, high), _SIDE))
        shapes.append(raster.image(source, left, top, w * scale, h * scale))
        over = f'<path class="lab-strong" d="{strong}"/><path class="lab-frame" d="{there}"/>'
        shapes.append(f'<g transform="translate({left} {top}) scale({scale:.4f})">{over}</g>')
    width = max(min(4, len(views)) * step, svg.title_width(title))
    return svg.document(width, svg.HEAD + -(-len(views) // 4) * step, title, title, shapes)
