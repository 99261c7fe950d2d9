"""How far the masks may close: multiply-adds, counted on the network that they leave, round after round (ours)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core import cost
from ..core.batch import Example
from ..core.graph import surgery
from ..core.graph.channels import Channels
from ..core.graph.tracing import propagate
from . import equations as eq
from .layers import Fista
from .structures import Masked, fold, plan

ROUNDS = 5  # each leaves the same share of the multiply-adds of the one before
GROWTH = 1.1  # of lam with an update of the masks as a round begins; its power rises by one each `follow` updates
LEAST = 1e-3  # of the mean curvature: the least that a rate is divided by


class Budget:
    """The multiply-adds that the masks may leave, fewer from round to round; no limit without a `macs_ratio`.

    In a round the masks shrink, lam growing, and the weights stand still: they would undo every mask that shrinks.
    Where the masks leave as few as the round allows, what is closed stays closed, what is open is 1 again, and the
    weights follow for `follow` updates of the masks; behind the last round to the end.
    """

    def __init__(self, masked: Masked, example: Example, macs_ratio: float | None, follow: int) -> None:
        self.masked, self.example, self.follow = masked, example, follow
        self.closed: list[Tensor] | None = None  # of each mask the entries that stay closed
        self.round = self.updates = self.rested = 0  # rounds that are over; updates while closing, and since then
        self.last = self._masks()  # as they were at the last count
        self.curvature: list[Tensor] = []  # of each mask entry, as this round began
        self.limits: list[float] = []
        if macs_ratio is not None:
            self.dense = self._left(self.last)
            self.limits = [self.dense / macs_ratio ** ((k + 1) / ROUNDS) for k in range(ROUNDS)]
            self.saved = self._saved()
            mean = sum(s * len(m) for s, m in zip(self.saved, self.last, strict=True)) / sum(map(len, self.last))
            self.prices = [s / mean for s in self.saved]

    @property
    def is_closing(self) -> bool:
        """Whether masks shrink towards a limit now."""
        return not self.is_over and self.rested >= self.follow * (self.round > 0)

    @property
    def is_over(self) -> bool:
        """Whether there are no more rounds."""
        return self.round >= len(self.limits)

    def begin(self, output: Callable[[], Tensor], mu: float) -> None:
        """At the beginning of a round, measure what each entry loses; `output()` is G's on a batch: (N, classes).

        Of a channel that is the curvature of the data loss, of a block or a branch the loss without it: a ReLU behind a
        sum may hide from any slope at 1 what is lost at 0.
        """
        if not self.is_closing or self.curvature:
            return
        masks = self.masked.masks()
        here = output()
        self.curvature = eq.curvature(here, masks, mu)
        for index, m in enumerate(masks):
            if len(m) == 1 and m > 0:
                with torch.no_grad():
                    was = m.clone()
                    m.zero_()
                    self.curvature[index].fill_(2 * mu * eq.data_loss(here, output()))
                    m.copy_(was)

    def lams(self, lam: float) -> list[float]:
        """lam of each mask. Towards a limit it grows, as along a lasso's path, and weighs what an entry would save.

        It is relative to the median of what entries lose for what they save; 0 while the weights follow.
        """
        if not self.limits:
            return [lam for _ in self.last]
        if not self.is_closing:
            return [0.0 for _ in self.last]
        lost = torch.cat([c / price for c, price in zip(self.curvature, self.prices, strict=True)])
        lam *= float(lost.median()) * GROWTH ** (self.updates + self.updates**2 / (2 * self.follow + 1))
        return [lam * price for price in self.prices]

    def rates(self, rate: float) -> list[Tensor | float]:
        """FISTA's rate for each mask; towards a limit for each entry, in units of its own curvature."""
        if not self.limits:
            return [rate for _ in self.last]
        least = LEAST * torch.cat(self.curvature).mean()
        return [rate / c.clamp(min=least) for c in self.curvature]

    def hold(self, weights: list[nn.Parameter]) -> None:
        """Let the weights stand still while masks close."""
        if self.is_closing:
            for p in weights:
                p.grad = None

    def update(self, fista: Fista) -> None:
        """Take note of an update of the masks, and count what they leave where more of them are closed than before."""
        if not self.is_closing:
            self.rested += 1
            return
        self.updates += 1
        masks = self._masks()
        if _zeros(masks) <= _zeros(self.last) or not self._fits(masks):
            self.last = masks
            return
        self.closed = [m == 0 for m in self._opened(masks)]
        self.last = [(~closed).to(m) for closed, m in zip(self.closed, masks, strict=True)]
        self.round, self.rested, self.updates, self.curvature = self.round + 1, 0, 0, []
        fista.rest(self.last)

    def _saved(self) -> list[float]:
        """Of each mask the multiply-adds that go with one of its entries where no other goes; at least 1."""
        saved = []
        for index in range(len(self.last)):
            masks = [m.clone() for m in self.last]
            masks[index][0] = 0
            saved.append(max(self.dense - self._left(masks), 1.0))
        self._left(self.last)
        return saved

    def _fits(self, masks: list[Tensor]) -> bool:
        """Whether masks leave as few multiply-adds as the round allows; counted only where that can be.

        Together, entries save less than one by one, for a layer may shrink on both sides.
        """
        most = sum(s * int((m == 0).sum()) for s, m in zip(self.saved, masks, strict=True))
        return self.dense - most <= self.limits[self.round] and self._left(masks) <= self.limits[self.round]

    def _opened(self, masks: list[Tensor]) -> list[Tensor]:
        """The masks with as many as the budget bears of those open again that have closed since the last count.

        Those that were widest open come first: without that, masks that close together overshoot it.
        """
        now, was = torch.cat(masks), torch.cat(self.last)
        order = torch.where(now == 0, was, 0.0).argsort(descending=True, stable=True)
        low, high = 0, int(((now == 0) & (was > 0)).sum())
        while low < high:  # the most that may open, by bisection: each more leaves more multiply-adds
            middle = (low + high + 1) // 2
            fits = self._fits(self._split(now, was, order[:middle]))
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
        graph = fold(self.masked).eval()  # traced already: `surgery.remove` would trace it anew at each count
        propagate(graph, self.example)
        channels = Channels(graph, embeddings=bool(removal.embedding))
        return cost.macs(surgery.remove_from(channels, removal, self.example), self.example)

    def _masks(self) -> list[Tensor]:
        return [m.detach().clamp(min=0) for m in self.masked.masks()]

    def state_dict(self) -> dict:
        names = ("closed", "round", "updates", "rested", "last", "curvature")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def _zeros(masks: list[Tensor]) -> int:
    return sum(int((m == 0).sum()) for m in masks)
