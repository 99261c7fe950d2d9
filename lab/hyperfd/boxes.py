"""A picture with its faces: which were found, which were missed, and what was taken for a face."""

import torch
from torch import Tensor

from ..ui import raster, svg
from .detector import iou

OVERLAP = 0.5  # from which on a detection finds a face, as average precision at 0.5 counts it
FOUND, MISSED, FALSE = "lab-edge c2", "lab-edge lab-dashed c4", "lab-edge c1"  # by colour and by dash
KEY = (("found", FOUND), ("missed", MISSED), ("false alarm", FALSE))


def hits(detected: Tensor, truth: Tensor, overlap: float = OVERLAP) -> Tensor:
    """(n,) the number of the face (m, 4) that each detection (n, 4), best first, finds; -1 for a false alarm.

    A detection takes the face that it overlaps most of those that are still free.
    """
    found = torch.full((len(detected),), -1)
    shared = iou(detected, truth)  # (n, m)
    for row in range(len(detected) if len(truth) else 0):
        face = int(shared[row].argmax())
        if shared[row, face] >= overlap:
            found[row], shared[:, face] = face, -1.0
    return found


def boxed(image: Tensor, truth: Tensor, detected: Tensor, title: str, width: int = 240) -> str:
    """A picture (3, H, W) uint8 with the detections (n, 4), best first, that find a face and those that do not, the
    faces (m, 4) that none finds, and a line that says which is which. Dark pictures are shown brighter.
    """
    scale, top = width / image.shape[2], float(svg.HEAD)
    tall = image.shape[1] * scale
    pixels = brighter(image).permute(1, 2, 0).contiguous().numpy()
    found = hits(detected, truth)
    missed = [face for face in range(len(truth)) if face not in set(found.tolist())]
    drawn = ((truth[missed], MISSED), (detected[found < 0], FALSE), (detected[found >= 0], FOUND))
    parts = [raster.image(raster.uri(pixels), 0, top, width, tall, title)]
    for boxes, kind in drawn:
        for left, upper, right, bottom in (boxes * scale).tolist():
            parts.append(svg.rect(left, top + upper, right - left, bottom - upper, kind))
    return svg.document(width, top + tall + svg.UNDER + 5, title, title, [*parts, *_key(top + tall + svg.UNDER)])


def _key(y: float) -> list[str]:
    """A line that says which box is what."""
    parts, x = [], 1.0
    for name, kind in KEY:
        parts += [svg.rect(x, y - 9, 12, 9, kind), svg.text(x + 18, y, name)]
        x += 30 + svg.text_width(name)
    return parts


def brighter(image: Tensor) -> Tensor:
    """A picture (3, H, W) uint8 whose brightest pixels are white."""
    top = image.float().quantile(0.995).clamp(min=1.0)
    return (image.float() * (255 / top)).clamp(max=255).to(torch.uint8)
