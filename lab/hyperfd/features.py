"""A data set as its owner's side sees it: samples for the extractor, and 24 handcrafted meta-features."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.data.faces import Faces, FaceTask
from .detector import letterboxed

SIDE = 64  # px of the pictures that the extractor sees


@lru_cache(maxsize=32)
def samples(data: Any) -> Tensor:
    """All samples of a data set: (k, 4, 64, 64) in [-1, 1], colours and where faces are, or (k, F) numbers."""
    if isinstance(data, Tensor):
        return _checked(data.float())
    if not isinstance(data, FaceTask):
        raise TypeError(f"a data set is a {type(data).__name__}: give a FaceTask or a (k, F) tensor of numbers")
    rows = []
    for image, boxes in zip(data.learn.images, data.learn.boxes, strict=True):
        x, scale = letterboxed(image, SIDE)  # (3, SIDE, SIDE)
        filled = torch.full((1, SIDE, SIDE), -1.0)
        for left, top, right, bottom in (boxes * scale).round().int().tolist():
            filled[:, top : max(bottom, top + 1), left : max(right, left + 1)] = 1  # a pixel at least
        rows.append(torch.cat([x.float() / 127.5 - 1, filled]))
    return _checked(torch.stack(rows))


def _checked(x: Tensor) -> Tensor:
    """Two samples or more, for two subsets that share none; all finite."""
    if x.dim() not in (2, 4) or len(x) < 2:
        raise ValueError(f"a data set is {tuple(x.shape)}: give 2 pictures or more, or 2 rows of numbers (k, F)")
    odd = (~torch.isfinite(x.flatten(1)).all(1)).nonzero()
    if len(odd):
        raise ValueError(f"a data set has numbers that are not finite, first in row {int(odd[0])}: leave the row out")
    return x


def subsets(x: Tensor, count: int, size: int) -> Tensor:
    """(R, m, ...) random subsets of the samples, neighbours in pairs (1st and 2nd, 3rd and 4th ...) disjoint.

    Small data sets give as many as half of them have.
    """
    size = max(1, min(size, len(x) // 2))
    # one permutation a pair of subsets: its first and its second `size` numbers share none
    picks = [torch.randperm(len(x))[: 2 * size].view(2, size) for _ in range(-(-count // 2))]
    return x[torch.cat(picks)[:count]]


@lru_cache(maxsize=64)
def meta_features(data: Any) -> Tensor:
    """24 handcrafted meta-features of a data set, standardised: (24,), see `META_FEATURES`.

    A table gives quantiles and deviations of its columns as they are.
    """
    if isinstance(data, Tensor):
        x = samples(data)
        columns = torch.cat([x.quantile(torch.linspace(0, 1, 5), dim=0).flatten(), x.std(0)])  # (6 F,)
        return F.pad(columns, (0, max(0, len(META_FEATURES) - len(columns))))[: len(META_FEATURES)]
    values = [*_of_boxes(data.learn), *_of_images(data.learn.images)]
    mean, std = torch.tensor(list(META_FEATURES.values())).T
    return (torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in values]) - mean) / std


def _of_boxes(faces: Faces) -> list[Tensor]:
    """The fourteen of faces: their heights (shares of the longer side of the picture), counts and aspects."""
    boxes = torch.cat(list(faces.boxes))  # (n, 4), all faces of all pictures
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    pairs = zip(faces.images, faces.boxes, strict=True)
    share = height / torch.cat([torch.full((len(b),), float(max(image.shape[1:]))) for image, b in pairs])
    count = torch.tensor([float(len(b)) for b in faces.boxes])  # (k,)
    return [
        *share.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])),
        share.mean(),
        share.std(correction=0),
        *torch.stack([count.mean(), count.std(correction=0), count.max()]).log1p(),
        (count == 1).float().mean(),
        (count > 5).float().mean(),
        (width / height).mean(),
        (width / height).std(correction=0),
    ]


def _of_images(images: Sequence[Tensor]) -> list[Tensor]:
    """The ten of pixels: means of five statistics, deviations of three, the size and the number of pictures."""
    statistics = torch.tensor([_statistics(image) for image in images])  # (k, 5)
    sides = torch.tensor([[float(image.shape[1]), float(image.shape[2])] for image in images])
    return [
        *statistics.mean(0),
        *statistics[:, :3].std(0, correction=0),
        sides.mean().log() / 6,
        torch.tensor(float(len(images))).log() / 6,
    ]


META_FEATURES = {  # name: (mean, std) by which it is standardised, rounded ones of the domains of seed 1
    "face height 5 %": (0.13, 0.05), "face height 25 %": (0.15, 0.05), "face height 50 %": (0.17, 0.06),
    "face height 75 %": (0.20, 0.07), "face height 95 %": (0.23, 0.08), "face height mean": (0.17, 0.06),
    "face height spread": (0.03, 0.015), "log faces a picture": (1.4, 0.4), "its spread": (0.7, 0.15),
    "log most faces": (1.7, 0.4), "share with one face": (0.2, 0.15), "share with more than five": (0.1, 0.3),
    "aspect": (1.0, 0.05), "spread of aspect": (0.02, 0.07), "brightness": (0.4, 0.1), "contrast": (0.16, 0.05),
    "sharpness": (0.15, 0.1), "colourfulness": (0.09, 0.04), "noise": (0.06, 0.07),
    "spread of brightness": (0.15, 0.04), "spread of contrast": (0.04, 0.01), "spread of sharpness": (0.06, 0.03),
    "log side": (0.85, 0.1), "log pictures": (0.76, 0.15),
}  # fmt: skip


def _statistics(image: Tensor) -> list[float]:
    """Brightness, contrast, sharpness (the Laplacian's spread), colourfulness and noise of a picture."""
    x = image.float() / 255
    grey = x.mean(0)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    edges = F.conv2d(grey[None, None], kernel)[0, 0]
    colour = (x[0] - x[1]).std() + (0.5 * (x[0] + x[1]) - x[2]).std()
    return [float(grey.mean()), float(grey.std()), float(edges.std()), float(colour), float(edges.abs().median())]
