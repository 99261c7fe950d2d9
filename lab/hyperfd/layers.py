"""What is learned: the meta-feature extractor, the encoder of configurations, and the scorer of both."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from . import equations as eq

EMBEDDED, CODED = 64, 64  # numbers a picture, numbers a configuration
WIDTHS = (8, 16, 32, 64)


class Extractor(nn.Module):
    """Subsets (R, m, 4, S, S) of pictures, or (R, m, F) of rows of numbers, -> meta-vectors (R, d), Eq. (1).

    Beside what a picture's network says stands what is counted of it, Eq. (1a), which no learning changes.
    """

    def __init__(self, sample: torch.Size, spread: bool = True) -> None:
        super().__init__()
        self.counts = len(sample) == 3
        self.spread, self.each_width = spread, EMBEDDED + (len(eq.USUAL) if self.counts else 0)
        self.width = self.each_width * (2 if spread else 1)
        if self.counts:
            stages = [
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.GroupNorm(4, b), nn.ReLU())
                for a, b in pairwise((sample[0], *WIDTHS))
            ]
            self.each = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], EMBEDDED))
        else:
            self.each = nn.Sequential(nn.Linear(sample[0], 64), nn.ReLU(), nn.Linear(64, EMBEDDED))

    def counted(self, x: Tensor) -> Tensor:
        """What no learning changes of each picture: (n, 6), or (n, 0) of rows of numbers."""
        return eq.counted(x) if self.counts else x.new_zeros(len(x), 0)

    def picture(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """What stands for each picture, or row of numbers: (n, e); `counted` spares counting again."""
        return torch.cat([self.each(x), self.counted(x) if counted is None else counted], 1)

    def forward(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        R, m = x.shape[:2]
        known = None if counted is None else counted.flatten(0, 1)
        return eq.meta_vector(self.picture(x.flatten(0, 1), known).view(R, m, -1), self.spread)


class Given(nn.Module):
    """Stands where the extractor does when meta-vectors are counted by hand: normalises them, learns nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.spread = width, False

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


class Ranker(nn.Module):
    """Extractor, encoder and scorer: how promising each configuration is for a data set."""

    def __init__(self, extractor: nn.Module, codes: int) -> None:
        super().__init__()
        self.extractor = extractor
        width = int(extractor.width)  # type: ignore[arg-type]
        self.encoder = nn.Sequential(nn.Linear(codes, CODED), nn.ReLU(), nn.Linear(CODED, CODED))
        self.project = nn.Linear(width, CODED)
        self.common = nn.Linear(codes, 1, bias=False)
        self.scorer = nn.Sequential(nn.Linear(width + 2 * CODED, 64), nn.ReLU(), nn.Linear(64, 1))
        nn.init.normal_(self.common.weight, std=1e-2)  # before anything is learned, some order, not the table's
        for parameter in self.scorer[-1].parameters():
            nn.init.zeros_(parameter)  # what holds for all data sets is learned first, and what is of one on top of it

    def scores(self, v: Tensor, codes: Tensor) -> Tensor:
        """(R, n) scores of configurations (n, F), or each its own (R, n, F), for meta-vectors (R, d), Eq. (2)."""
        own = self.scorer(eq.joined(v, self.encoder(codes), self.project(v)))[..., 0]
        return self.common(codes)[..., 0] + own
