"""What a search leaves behind: what was trained, how every round scored the space, and what was picked."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.outcome import Outcome
from ..core.rooms import at_first_use
from . import equations as eq

_above, _ = at_first_use({"__name__": __package__}, "view")


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

    def explain(self, task: Any = None, batches: Any = None, **options: Any) -> Any:
        """The pick beside its alternatives, on one page: see `lab.acenas.view.explained`; the search keeps no network.

        TypeError for any argument: there is nothing to be asked.
        """
        given = [name for name, value in (("task", task), ("batches", batches)) if value is not None]
        for name in (*given, *options):
            raise TypeError(f"explain() of a search takes no {name!r}: it keeps no network that could be asked")
        return _above("view").explained(self)

    def regret(self) -> float:
        """How far the pick is below the best of the table, in the label's unit; ValueError where no table is known."""
        truth = self.context["truth"]
        if truth is None:
            raise ValueError("regret is known for tables only: here every label was trained")
        return float(truth[self.context["pool"]].max() - truth[self.context["names"].index(self.pick)])

    def front(self, cost: str | None = None) -> list[tuple[str, float, float]]:
        """The trained ones that no other beats in both cost and label: (name, cost, label), cheapest first.

        `cost` left out is that of the recipe's objectives; ValueError where it has none, or the space no such cost.
        """
        cost = self.context.get("objective") if cost is None else cost
        if cost is None:
            raise ValueError(f"front of what? give cost, one of {', '.join(self.context['costs']) or 'none'}")
        if cost not in self.context["costs"]:
            raise ValueError(f"cost={cost!r}: this space knows {', '.join(self.context['costs']) or 'no costs'}")
        costs = self.context["costs"][cost][self.rows]  # (m,)
        front = (eq.layers(self.labels, costs) == 0).nonzero()[:, 0].tolist()
        names = [self.context["names"][int(self.rows[i])] for i in front]
        return sorted(
            ((name, float(costs[i]), float(self.labels[i])) for name, i in zip(names, front, strict=True)),
            key=lambda point: point[1],
        )
