"""Which faces of a picture were found, which were missed, and what was taken for a face."""

import torch
from torch import Tensor

from .detector import iou

OVERLAP = 0.5  # from which on a detection finds a face, as average precision at 0.5 counts it


def hits(detected: Tensor, truth: Tensor, overlap: float = OVERLAP) -> Tensor:
    """(n,) the number of the face (m, 4) that each detection (n, 4), best first, finds; -1 for a false alarm.

    A detection takes the face that it overlaps most of those that are still free.
    """
    faces = torch.full((len(detected),), -1)
    shared = iou(detected, truth)  # (n, m)
    for row in range(len(detected) if len(truth) else 0):
        face = int(shared[row].argmax())
        if shared[row, face] >= overlap:
            faces[row], shared[:, face] = face, -1.0
    return faces


def judged(detected: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """The boxes by name: 'found' and 'false alarm' of detections (n, 4), best first, 'missed' of the faces (m, 4)."""
    faces = hits(detected, truth)
    free = [face for face in range(len(truth)) if face not in set(faces.tolist())]
    return {"found": detected[faces >= 0], "missed": truth[free], "false alarm": detected[faces < 0]}


def brighter(image: Tensor) -> Tensor:
    """A picture (3, H, W) uint8 whose brightest pixels are white."""
    top = image.float().quantile(0.995).clamp(min=1.0)
    return (image.float() * (255 / top)).clamp(max=255).to(torch.uint8)
