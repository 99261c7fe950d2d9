"""What a search leaves behind: what was trained, how every round scored the space, and what was picked."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.outcome import Outcome


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class AceNASOutcome(Outcome):
    """A ranking of a space and the best that was trained.

    rows (m,), labels (m,): what was trained, in order; learned: how many of them each of the T rounds had; scores
    (T, n) of the space after each round; pick: the name of the best that was trained; ranking: the names of the 100 of
    the highest scores. context: names, costs and, of a table, truth, for the views.
    """

    rows: Tensor
    labels: Tensor
    learned: list[int]
    scores: Tensor
    pick: str
    ranking: list[str]
    context: dict[str, Any]

    def found(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "labels": self.labels,
            "learned": self.learned,
            "scores": self.scores,
            "pick": self.pick,
            "ranking": self.ranking,
            "known": self.context,
        }

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: Any = None) -> "AceNASOutcome":
        """The outcome that `save` stored."""
        fields = {"context" if name == "known" else name: value for name, value in saved["found"].items()}
        return cls(recipe=recipe, **cls.records(saved), **fields)

    def regret(self) -> float:
        """How far the pick is below the best of the table, in the label's unit; ValueError where no table is known."""
        truth = self.context["truth"]
        if truth is None:
            raise ValueError("regret is known for tables only: here every label was trained")
        return float(truth[self.context["pool"]].max() - truth[self.context["names"].index(self.pick)])

    def front(self, cost: str) -> list[tuple[str, float, float]]:
        """The trained ones that no other beats in both cost and label: (name, cost, label), cheapest first."""
        if cost not in self.context["costs"]:
            raise ValueError(f"cost={cost!r}: this space knows {', '.join(self.context['costs']) or 'no costs'}")
        costs = self.context["costs"][cost][self.rows]
        order = sorted(range(len(self.rows)), key=lambda i: (float(costs[i]), -float(self.labels[i])))
        front, best = [], -torch.inf
        for i in order:
            if float(self.labels[i]) > best:
                best = float(self.labels[i])
                front.append((self.context["names"][int(self.rows[i])], float(costs[i]), best))
        return front
