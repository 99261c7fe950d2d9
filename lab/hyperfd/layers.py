"""What is learned: the meta-feature extractor, the encoder of configurations, and the scorer of both."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from . import equations as eq

EMBEDDED, CODED = 64, 64  # numbers a picture, numbers a configuration
WIDTHS = (8, 16, 32, 64)


class Extractor(nn.Module):
    """Subsets (R, m, 4, S, S) of pictures, or (R, m, F) of rows of numbers, -> meta-vectors (R, d), Card (1).

    Beside the learned features of a picture stand six handcrafted ones, Card (1a), which no learning changes.
    """

    def __init__(self, sample: torch.Size, spread: bool = True) -> None:
        super().__init__()
        self.sees_images = len(sample) == 3
        self.spread = spread
        self.width = (EMBEDDED + (len(eq.MEAN) if self.sees_images else 0)) * (2 if spread else 1)  # d
        if self.sees_images:
            stages = [  # each halves the side: 64 -> 32 -> 16 -> 8 -> 4 px
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.GroupNorm(4, b), nn.ReLU())
                for a, b in pairwise((sample[0], *WIDTHS))
            ]
            self.each = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], EMBEDDED))
        else:
            self.each = nn.Sequential(nn.Linear(sample[0], 64), nn.ReLU(), nn.Linear(64, EMBEDDED))

    def handcrafted(self, x: Tensor) -> Tensor:
        """The features that no learning changes: (n, 6) of pictures, (n, 0) of rows of numbers."""
        return eq.handcrafted_features(x) if self.sees_images else x.new_zeros(len(x), 0)

    def features(self, x: Tensor, handcrafted: Tensor | None = None) -> Tensor:
        """All features of each picture, or row of numbers: (n, e); `handcrafted` spares computing these again."""
        return torch.cat([self.each(x), self.handcrafted(x) if handcrafted is None else handcrafted], 1)

    def forward(self, x: Tensor, handcrafted: Tensor | None = None) -> Tensor:
        R, m = x.shape[:2]
        fixed = None if handcrafted is None else handcrafted.flatten(0, 1)  # (R m, 6)
        return eq.meta_vector(self.features(x.flatten(0, 1), fixed).view(R, m, -1), self.spread)


class FixedExtractor(nn.Module):
    """Stands where the extractor does when meta-vectors are handcrafted: normalises them, learns nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.spread = width, False

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


class Ranker(nn.Module):
    """Extractor, encoder and scorer: how promising each configuration is for a data set."""

    def __init__(self, extractor: Extractor | FixedExtractor, codes: int) -> None:
        super().__init__()
        self.extractor = extractor
        width = extractor.width  # d
        self.encoder = nn.Sequential(nn.Linear(codes, CODED), nn.ReLU(), nn.Linear(CODED, CODED))
        self.project = nn.Linear(width, CODED)
        self.common = nn.Linear(codes, 1, bias=False)  # of the configuration alone: what holds for all data sets
        self.scorer = nn.Sequential(nn.Linear(width + 2 * CODED, 64), nn.ReLU(), nn.Linear(64, 1))
        nn.init.normal_(self.common.weight, std=1e-2)  # before anything is learned, some order, not the table's
        for parameter in self.scorer[-1].parameters():
            nn.init.zeros_(parameter)  # what holds for all data sets is learned first, and what is of one on top of it

    def scores(self, v: Tensor, codes: Tensor) -> Tensor:
        """(R, n) scores of configurations (n, F), or each its own (R, n, F), for meta-vectors (R, d), Card (2)."""
        specific = self.scorer(eq.joined(v, self.encoder(codes), self.project(v)))[..., 0]  # (R, n), of this data set
        return self.common(codes)[..., 0] + specific
