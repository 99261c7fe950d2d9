"""Average precision of detections as COCO counts it: 101 recalls, overlaps from 0.5 to 0.95, a hundred a picture."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100


def average_precision(detections: Sequence[tuple[Tensor, Tensor]], truth: Sequence[Tensor]) -> dict[str, float]:
    """{'ap50', 'ap'} in percent of (boxes (n, 4), scores (n,)) a picture against its true boxes (m, 4).

    A detection takes the free true box that it overlaps most, best score first. ValueError where nothing is true.
    """
    if len(detections) != len(truth):
        raise ValueError(
            f"{len(detections)} pictures were searched, {len(truth)} have true boxes: give one list a picture"
        )
    total = sum(map(len, truth))
    if not total:
        raise ValueError("no picture has a true box: precision is not defined")
    scores, hits = [], []
    for (boxes, score), true in zip(detections, truth, strict=True):
        order = np.argsort(-score.numpy(), kind="stable")[:MOST]
        scores.append(score.numpy()[order])
        hits.append(_hits(_overlap(boxes.numpy()[order].astype(float), true.numpy().astype(float))))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = np.concatenate(hits, 1)[:, order]  # (overlaps, detections), of all pictures together, best score first
    each = [_area(row, total) for row in hit]
    return {"ap50": 100 * each[0], "ap": 100 * float(np.mean(each))}


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union, (n, 4), (m, 4) -> (n, m)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(0).prod(-1)
    area = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    return shared / np.maximum(area[0][:, None] + area[1] - shared, 1e-12)


def _hits(overlap: np.ndarray) -> np.ndarray:
    """(overlaps, n) whether each detection, best first, takes a true box."""
    hit: np.ndarray = np.zeros((len(OVERLAPS), len(overlap)), bool)
    for row, least in enumerate(OVERLAPS):
        free = np.ones(overlap.shape[1], bool)
        for detection, overlaps in enumerate(overlap):
            available = np.where(free, overlaps, -1.0)  # (true boxes,)
            if len(available) and available.max() >= min(least, 1 - 1e-10):
                best = len(available) - 1 - int(available[::-1].argmax())  # the last of equal ones, as in COCO's code
                free[best], hit[row, detection] = False, True
    return hit


def _area(hit: np.ndarray, total: int) -> float:
    """The mean over 101 recalls of the best precision at this recall or a higher one."""
    true = hit.cumsum()
    recall, precision = true / total, true / np.arange(1, len(hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, RECALLS, side="left")  # detections until each recall is reached, (101,)
    reached = first < len(hit)
    best = envelope[np.minimum(first, len(hit) - 1)] if len(hit) else 0.0
    return float(np.where(reached, best, 0.0).mean())
