"""How far the masks may close: a number of multiply-adds, counted on the network that they would leave (ours)."""

import torch
from torch import Tensor

from ..core import cost
from ..core.batch import Example
from ..core.graph import surgery
from .layers import Fista
from .structures import Masked, fold, plan


class Budget:
    """The multiply-adds that the masks may leave, None for no limit.

    Until they leave no more, the masks shrink by lam. From then on lam is 0, what is closed stays closed, and the
    weights have the rest of the stage to follow.
    """

    def __init__(self, masked: Masked, example: Example, macs: float | None) -> None:
        self.masked, self.example, self.macs = masked, example, macs
        self.closed: list[Tensor] | None = None  # of each mask the entries that stay closed, once the budget is reached
        self.last = self._masks()  # as they were at the last count

    @property
    def is_reached(self) -> bool:
        return self.closed is not None

    def count(self, fista: Fista) -> None:
        """Look whether the masks leave few enough, where more of them are closed than at the last count."""
        masks = self._masks()
        if self.macs is None or self.is_reached or _zeros(masks) <= _zeros(self.last):
            self.last = masks
        elif self._left(masks) > self.macs:
            self.last = masks
        else:
            masks = self._opened(masks)
            self.closed = [m == 0 for m in masks]
            fista.rest(masks)

    def _opened(self, masks: list[Tensor]) -> list[Tensor]:
        """The masks with as many as the budget bears of those open again that have closed since the last count.

        Those that were widest open come first: without that, masks that close together overshoot it.
        """
        now, was = torch.cat(masks), torch.cat(self.last)
        order = torch.where(now == 0, was, 0.0).argsort(descending=True, stable=True)
        low, high = 0, int(((now == 0) & (was > 0)).sum())
        while low < high:  # the most that may open, by bisection: each more leaves more multiply-adds
            middle = (low + high + 1) // 2
            fits = self._left(self._split(now, was, order[:middle])) <= self.macs
            low, high = (middle, high) if fits else (low, middle - 1)
        return self._split(now, was, order[:low])

    def _split(self, now: Tensor, was: Tensor, opened: Tensor) -> list[Tensor]:
        """Masks as they are now, but `opened` entries as they were."""
        flat = now.clone()
        flat[opened] = was[opened]
        return list(flat.split([len(m) for m in self.last]))

    @torch.no_grad()
    def _left(self, masks: list[Tensor]) -> float:
        """The multiply-adds of the network that these masks leave."""
        for parameter, m in zip(self.masked.masks(), masks, strict=True):
            parameter.copy_(m)
        removal, _ = plan(self.masked)
        return cost.macs(surgery.remove(fold(self.masked), removal, self.example), self.example)

    def _masks(self) -> list[Tensor]:
        return [m.detach().clamp(min=0).clone() for m in self.masked.masks()]

    def state_dict(self) -> dict:
        return {"closed": self.closed, "last": self.last}

    def load_state_dict(self, state: dict) -> None:
        self.closed, self.last = state["closed"], state["last"]


def _zeros(masks: list[Tensor]) -> int:
    return sum(int((m == 0).sum()) for m in masks)
