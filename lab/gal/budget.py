"""How far the masks may close: a number of multiply-adds, counted on the network that they would leave (ours)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import cost
from ..core.batch import Example
from ..core.graph import surgery
from .layers import Fista
from .structures import Masked, fold, plan


class Budget:
    """The multiply-adds that the masks may leave: fewer from round to round, none for no limit.

    In a round the masks shrink, lam growing, and the weights stand still, which would undo every mask that shrinks. Where
    the masks leave as few as the round allows, lam is 0 and what is closed stays closed; the weights follow for `follow`
    updates of the masks, behind the last round to the end.
    """

    def __init__(self, masked: Masked, example: Example, limits: Sequence[float], follow: int) -> None:
        self.masked, self.example, self.limits, self.follow = masked, example, list(limits), follow
        self.closed: list[Tensor] | None = None  # of each mask the entries that stay closed
        self.round = self.updates = self.rested = 0  # rounds that are over; updates while closing, and since then
        self.last = self._masks()  # as they were at the last count
        self.prices = self._prices() if self.limits else []
        self.curvature: list[Tensor] = []  # of each mask entry, as this round began

    @property
    def is_closing(self) -> bool:
        """Whether masks shrink towards a limit now."""
        return self.round < len(self.limits) and self.rested >= self.follow * (self.round > 0)

    @property
    def is_over(self) -> bool:
        """Whether there are no more rounds."""
        return self.round >= len(self.limits)

    def update(self, fista: Fista) -> None:
        """Take note of an update of the masks, and count what they leave where more of them are closed than before."""
        if not self.is_closing:
            self.rested += 1
            return
        self.updates += 1
        masks = self._masks()
        if _zeros(masks) <= _zeros(self.last) or self._left(masks) > self.limits[self.round]:
            self.last = masks
            return
        self.closed = [m == 0 for m in self._opened(masks)]
        self.last = [(~closed).to(m) for closed, m in zip(self.closed, masks, strict=True)]
        self.round, self.rested, self.updates, self.curvature = self.round + 1, 0, 0, []
        fista.rest(self.last)

    def _prices(self) -> list[float]:
        """Of each mask the multiply-adds that go with one of its entries, in means over all entries."""
        whole = self._left(self.last)
        saved = []
        for index in range(len(self.last)):
            masks = [m.clone() for m in self.last]
            masks[index][0] = 0
            saved.append(whole - self._left(masks))
        self._left(self.last)
        mean = sum(s * len(m) for s, m in zip(saved, self.last, strict=True)) / sum(len(m) for m in self.last)
        return [s / mean for s in saved]

    def _opened(self, masks: list[Tensor]) -> list[Tensor]:
        """The masks with as many as the budget bears of those open again that have closed since the last count.

        Those that were widest open come first: without that, masks that close together overshoot it.
        """
        now, was = torch.cat(masks), torch.cat(self.last)
        order = torch.where(now == 0, was, 0.0).argsort(descending=True, stable=True)
        low, high = 0, int(((now == 0) & (was > 0)).sum())
        while low < high:  # the most that may open, by bisection: each more leaves more multiply-adds
            middle = (low + high + 1) // 2
            fits = self._left(self._split(now, was, order[:middle])) <= self.limits[self.round]
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
        names = ("closed", "round", "updates", "rested", "last", "curvature")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def _zeros(masks: list[Tensor]) -> int:
    return sum(int((m == 0).sum()) for m in masks)
