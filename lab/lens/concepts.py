"""What a filter, or a few filters together, stands for: the overlap of its strong answers with exact masks.

Network Dissection (Bau, Zhou, Khosla, Oliva, Torralba; CVPR 2017), on pictures whose masks are exact.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..core.models import checked
from ..core.progress import tqdm
from ..core.training import seeded
from .activations import as_images, labelled, named, reading

_POOL = 24  # filters that a set may be built from: those nearest to the concept by themselves


def unit_concepts(
    model: nn.Module,
    layer: str,
    batches: Iterable,
    names: Sequence[str],
    *,
    top: float = 0.005,
    seed: int = 0,
    progress: bool = True,
) -> Any:
    """The concept that each filter of a layer overlaps most: a pandas frame, one row a filter.

    `batches` give (x, masks), masks (N, len(names), H, W) bool. A filter's strong pixels are those of its map, brought
    to H x W (bilinear), at or above the answer that a share `top` of all its answers exceed; IoU is their overlap with
    the mask over all pictures. Columns: concept, iou, ceiling (the IoU that so many pixels could reach at best), and
    random: the best IoU of the same filter in the same network with fresh weights. The paper takes 0.005 and calls a
    unit a detector from an IoU of 0.04. The ceiling and the control are ours. Holds all maps of the layer in memory.
    """
    import pandas

    x, masks = concept_data(batches, names, top)
    tables = []
    for net in (model, with_fresh_weights(model, seed)):
        maps = all_maps(net, layer, x, progress)
        units = Units(maps, masks.shape[2:], thresholds(maps, top))
        tables.append(units.iou(masks, progress))
    iou, ceiling = tables[0]
    best = iou.argmax(1)
    rows = np.arange(len(best))
    columns = {"concept": [names[k] for k in best], "iou": iou[rows, best], "ceiling": ceiling[rows, best]}
    return pandas.DataFrame({**columns, "random": tables[1][0].max(1)}).rename_axis("filter")


def concept_sets(
    model: nn.Module,
    layer: str,
    batches: Iterable,
    names: Sequence[str],
    *,
    most: int = 4,
    top: float = 0.005,
    seed: int = 0,
    progress: bool = True,
) -> Any:
    """The few filters of a layer that together overlap each concept most: a pandas frame, one row a concept.

    Pixels strong in any filter of a set are the set's. Sets grow one filter at a time, each the one that raises the
    IoU most, up to `most`. Chosen on every second picture, measured on the others, so that a set is not praised for
    what it was picked by. Columns: filter, iou (the best single one), filters, set_iou, random_iou and random_set_iou
    (the same choice in the same network with fresh weights). Arguments as in `unit_concepts`; sets, halves and
    control are ours.
    """
    import pandas

    x, masks = concept_data(batches, names, top, most)
    sets = []
    for net in (model, with_fresh_weights(model, seed)):
        maps = all_maps(net, layer, x, progress)
        chosen, measured = halves(maps, masks, top)
        sets.append([best_set(chosen, measured, masks, k, most) for k in range(len(names))])
    rows = [
        {
            "concept": name,
            "filter": filters[0],
            "iou": iou,
            "filters": filters,
            "set_iou": set_iou,
            "random_iou": random_iou,
            "random_set_iou": random_set_iou,
        }
        for name, (filters, iou, set_iou), (_, random_iou, random_set_iou) in zip(names, *sets, strict=True)
    ]
    return pandas.DataFrame(rows).set_index("concept")


def with_fresh_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of the model as it was before it learned anything: the control of what is read out of one.

    Modules that can reset themselves do; parameters of others are permuted. The batch norms' statistics start anew.
    """
    fresh = deepcopy(checked(model))
    with seeded(seed), torch.no_grad():
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            else:
                for parameter in module.parameters(recurse=False):
                    parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
    return fresh


def thresholds(maps: torch.Tensor, top: float) -> torch.Tensor:
    """The value of each filter that a share `top` of its values reach: (N, F, h, w) -> (F,)."""
    values = maps.transpose(0, 1).flatten(1)  # (F, N h w)
    return values.topk(max(1, int(values.shape[1] * top)), 1).values[:, -1]


class Units:
    """The maps of a layer (N, F, h, w), brought to the size of masks, and where each filter is at its threshold."""

    def __init__(self, maps: torch.Tensor, size: Sequence[int], threshold: torch.Tensor) -> None:
        self.maps, self.size, self.threshold = maps, tuple(size), threshold
        self.lowest = maps.amin((0, 2, 3))

    def strong(self, filters: torch.Tensor | slice = slice(None), part: slice = slice(None)) -> torch.Tensor:
        """Which pixels are strong: (n, filters, H, W) bool; never those of a filter's lowest answer.

        A rectified filter that answers more rarely than `top` has the threshold 0, which all its pixels reach.
        """
        large = F.interpolate(self.maps[part][:, filters], size=self.size, mode="bilinear", align_corners=False)
        threshold, lowest = (value[filters].view(1, -1, 1, 1) for value in (self.threshold, self.lowest))
        return (large >= threshold) & (large > lowest)

    def iou(self, masks: torch.Tensor, progress: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """IoU of each filter and concept, and the most that their areas allow: (F, K) twice."""
        both = torch.zeros(self.maps.shape[1], masks.shape[1], dtype=torch.double)
        areas = torch.zeros(self.maps.shape[1], dtype=torch.double)  # (F,)
        of_masks = masks.sum((0, 2, 3)).double()  # (K,)
        for start in tqdm(range(0, len(masks), 32), desc="overlap", disable=not progress, leave=False):
            part = slice(start, start + 32)
            strong = self.strong(part=part).transpose(0, 1).flatten(1).float()
            both += strong @ masks[part].transpose(0, 1).flatten(1).float().T
            areas += strong.sum(1)
        union = areas[:, None] + of_masks[None, :] - both
        least = torch.minimum(areas[:, None], of_masks[None])
        largest = torch.maximum(areas[:, None], of_masks[None])
        return (both / union.clamp(min=1)).numpy(), (least / largest.clamp(min=1)).numpy()


def halves(maps: torch.Tensor, masks: torch.Tensor, top: float) -> tuple[Units, Units]:
    """The units on every second picture, and those of the others at the same thresholds."""
    threshold = thresholds(maps[::2], top)
    return Units(maps[::2], masks.shape[2:], threshold), Units(maps[1::2], masks.shape[2:], threshold)


def best_set(
    units: Units, held_out: Units, masks: torch.Tensor, concept: int, most: int
) -> tuple[list[int], float, float]:
    """The greedy set of filters for a concept, and the IoU of its first filter and of all on the held-out half."""
    mask = masks[::2, concept]
    alone = units.iou(masks[::2, concept : concept + 1])[0][:, 0]
    pool = torch.from_numpy(np.argsort(-alone, kind="stable")[:_POOL].copy())
    strong = units.strong(pool)  # (n, pool, H, W)
    area, picked, score = torch.zeros_like(mask), [], -1.0
    for _ in range(most):
        scores = [_iou(area | strong[:, k], mask) for k in range(len(pool))]
        best = int(np.argmax(scores))
        if scores[best] <= score:
            break
        score = scores[best]
        picked.append(best)
        area = area | strong[:, best]
    filters = pool[picked]
    measured = held_out.strong(filters)
    truth = masks[1::2, concept]
    return filters.tolist(), _iou(measured[:, 0], truth), _iou(measured.any(1), truth)


def _iou(a: torch.Tensor, b: torch.Tensor) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def all_maps(model: nn.Module, layer: str, x: list[torch.Tensor], progress: bool) -> torch.Tensor:
    """The maps of a layer on all pictures, (N, F, h, w)."""
    (layer,) = named(model, layer)
    parts = tqdm(x, desc="maps", disable=not progress, leave=False)
    maps = [reading(model, layer, part).float().cpu() for part in parts]
    if maps[0].ndim != 4:
        raise ValueError(f"{layer!r} gives {tuple(maps[0].shape)}, no feature maps (N, C, H, W): name a convolution")
    return torch.cat(maps)


def concept_data(
    batches: Iterable, names: Sequence[str], top: float, most: int = 1
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The pictures by batch and all masks, (N, K, H, W) bool; ValueError for what does not fit."""
    if not 0 < top < 1:
        raise ValueError(f"top={top!r}: give the share of the answers that count as strong, between 0 and 1")
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise ValueError(f"most={most!r}: give an integer number of filters, 1 or more")
    data = [(as_images(x, "a batch"), masks) for x, masks in labelled(batches, what="masks")]
    for x, masks in data:
        if masks.ndim != 4 or len(masks) != len(x) or masks.shape[1] != len(names):
            expected = f"({len(x)}, {len(names)}, H, W)"
            raise ValueError(f"masks are {tuple(masks.shape)}: give {expected}, a bool a picture, name and pixel")
    if sum(len(x) for x, _ in data) < 2:
        raise ValueError("there is one picture only: give two or more, half of which to measure on")
    return [x for x, _ in data], torch.cat([masks.bool().cpu() for _, masks in data])
