"""What stored vectors have lost, measured where their pictures are: at home, by the clients who sent them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import equations as eq
from .features import subsets
from .layers import Extractor, Ranker
from .learning import CHECKED_ON, RoundConfig

MOST_DRIFT = 0.05  # 1 - cos: the vectors of two tasks are 0.01 to 0.35 apart, what is lost in twelve is 0.0025 at most


@dataclass(frozen=True)
class HeldBack:
    """What a client keeps at home after its upload: subsets (R, m) of its pictures, and their meta-vectors (R, d),
    which nobody is sent, carried through the maps as the platform carries those that it was sent.
    """

    picks: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, ranker: Ranker, x: Tensor, config: RoundConfig) -> "HeldBack":
        """Of a data set's samples x (k, ...), as the version sees them that the client's upload made."""
        picks = subsets(torch.arange(len(x)), CHECKED_ON, config.m)
        return cls(picks, _vectors(ranker, x, picks))

    def carried(self, D: Tensor, ranker: Ranker, x: Tensor) -> tuple["HeldBack", float]:
        """After another's upload: the vectors through its map D (d, d), and how far they are from what its version sees
        in the same pictures, Card (11); all maps since the client's own upload have their part in that.
        """
        later = replace(self, vectors=eq.transformed(self.vectors, D))
        away = 1 - torch.cosine_similarity(later.vectors, _vectors(ranker, x, self.picks), dim=-1)  # (R,)
        return later, float(away.mean().clamp_min(0))


def _vectors(ranker: Ranker, x: Tensor, picks: Tensor) -> Tensor:
    """Meta-vectors (R, d) of subsets (R, m), each sample passed through the extractor once."""
    assert isinstance(ranker.extractor, Extractor)
    with torch.no_grad():
        return eq.meta_vector(ranker.extractor.features(x)[picks], ranker.extractor.spread)
