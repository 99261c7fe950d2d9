"""Weights that are exactly 0 where training begins, and stay so: what pruning has removed, nothing brings back."""

from collections.abc import Iterable

import torch
from torch import Tensor


def pruned(weight: Tensor) -> Tensor | None:
    """Which entries of a weight are pruned, in its shape; None where none are.

    Those that are 0 in a tensor of two or more axes that holds others too: one of zeros alone, as an adapter begins,
    has yet to learn, and a bias or a scale that is 0 is a number like any other.
    """
    if weight.dim() < 2:
        return None
    gone = weight.detach() == 0
    return gone if gone.any() and not gone.all() else None


class Zeros:
    """The pruned entries of some weights as they are now, by identity; `apply` makes them 0 again."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.gone = [(weight, gone) for weight in weights if (gone := pruned(weight)) is not None]

    @torch.no_grad()
    def apply(self) -> None:
        """Make every pruned entry exactly 0, whatever an update has put there."""
        for weight, gone in self.gone:
            weight.masked_fill_(gone, 0)
