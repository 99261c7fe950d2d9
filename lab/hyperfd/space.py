"""The 216 configurations of a detector: what may be chosen, and in which order a part of them is trained."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from itertools import product
from typing import Any

import torch

from ..core.spaces.streams import DETECTORS


@dataclass(frozen=True)
class Configuration:
    """One way to build and train a detector.

    width multiplies its channels; side is the input's, in px; iou is from where on an anchor counts as a face; ratio
    is negatives to positives; weight is the localisation loss's; optimiser: 'sgd' begins at 1e-2, 'adamw' at 2e-3,
    both fall along a cosine.
    """

    width: float = 0.5
    side: int = 128
    iou: float = 0.35
    ratio: int = 3
    weight: float = 1.0
    optimiser: str = "sgd"

    def __post_init__(self) -> None:
        for name, allowed in DETECTORS.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"Configuration: {name}={getattr(self, name)!r} is not allowed: give one of {allowed}")

    @property
    def choice(self) -> tuple[float | int | str, ...]:
        """The decisions as a tuple, in the order of the fields."""
        return astuple(self)


NAMES = tuple(field.name for field in fields(Configuration))
DEFAULT = Configuration()  # the usual of face detectors, sizes in the middle: the fixed baseline


def configurations() -> tuple[Configuration, ...]:
    """All 216, always in the same order."""
    combinations: Iterable[Any] = product(*DETECTORS.values())
    return tuple(Configuration(*values) for values in combinations)


def even_part(count: int) -> list[int]:
    """The numbers of `count` configurations spread over the space: the first of one fixed shuffle, the default in."""
    everything = configurations()
    if not 1 <= count <= len(everything):
        raise ValueError(f"count={count}: give 1 to {len(everything)} configurations")
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0)).tolist()
    first = everything.index(DEFAULT)
    return [first, *(number for number in order if number != first)][:count]
