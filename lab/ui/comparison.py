"""Several outcomes side by side: a table, and which of them nobody beats."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import plotly.graph_objects as go

from ..core.report import Report, Row
from . import still, svg
from .figures import figure

# What counts as how well it does, in the order in which `compare` looks for it.
SCORES = ("accuracy", "psnr", "perplexity", "ndcg@10", "semantic accuracy", "regret")
COSTS = ("latency", "bytes", "macs")  # what chains are compared in, where they share it
_LOW_IS_GOOD = {
    "perplexity", "regret", "loss", "error", "mae", "rmse", "latency", "parameters", "macs", "bytes", "packed bytes",
}  # fmt: skip


def compare(
    outcomes: Iterable[Any],
    x: str | Sequence[str] | None = None,
    y: str | None = None,
    higher_is_better: bool | None = None,
) -> "Comparison":
    """Outcomes as a table and a Pareto picture of report row `y` (the task's score if left out) against row `x`.

    x: one row, or several, each with a picture: then an outcome is dominated that another is as good as in all of them
    and in `y`, and better in one. Left out, it is 'macs', of chains latency, bytes and macs, as far as they know them.
    Small `x` is good; whether high `y` is good follows from its name unless said. ValueError for a row not shared.
    """
    outcomes = tuple(outcomes) if isinstance(outcomes, Iterable) else (outcomes,)
    if not outcomes:
        raise ValueError("there is nothing to compare: give at least one outcome")
    for outcome in outcomes:
        if not isinstance(getattr(outcome, "report", None), Report):
            raise TypeError(
                f"compare() takes outcomes of runs, not a {type(outcome).__name__}: give [lab.GAL().run(), ...]"
            )
    shared = [row.name for row in outcomes[0].report if all(row.name in _rows(other) for other in outcomes)]
    y = _score(outcomes[0], shared) if y is None else y
    costs = (x,) if isinstance(x, str) else tuple(_costs(outcomes, shared) if x is None else x)
    for name in (*costs, y):
        if name not in shared:
            raise ValueError(f"the outcomes do not share a row {name!r}: they share {', '.join(shared) or 'none'}")
    if not costs:
        raise ValueError("x names no row: give 'macs', or several")
    is_high = y not in _LOW_IS_GOOD if higher_is_better is None else higher_is_better
    return Comparison(outcomes, costs[0], y, is_high, costs[1:])


def _costs(outcomes: Sequence[Any], shared: Sequence[str]) -> Sequence[str]:
    """Multiply-adds; of chains all costs that each of them knows."""
    if not all(hasattr(outcome.recipe, "stages") for outcome in outcomes):
        return ("macs",)
    return [name for name in COSTS if name in shared and all(o.report[name].after is not None for o in outcomes)] or (
        "macs",
    )


def settings(recipes: Iterable[Any]) -> list[dict[str, Any]]:
    """For each recipe its class, where they differ in it, and the fields in which they differ."""
    rows = [_fields(recipe) for recipe in recipes]
    names = dict.fromkeys(name for row in rows for name in row)
    differing = [name for name in names if len({repr(row.get(name)) for row in rows}) > 1]
    return [{name: row[name] for name in differing if name in row} for row in rows]


def _fields(recipe: Any) -> dict[str, Any]:
    """The class of a recipe and its fields; of a chain its stages, and as '1 GAL.lam' what is not at its default."""
    if not hasattr(recipe, "stages"):
        return {"recipe": type(recipe).__name__, **asdict(recipe)}
    changed: dict[str, Any] = {"recipe": ", ".join(recipe.names())}
    for i, (name, stage) in enumerate(zip(recipe.names(), recipe.stages, strict=True), 1):
        parts = ((field.name, field.default, getattr(stage, field.name)) for field in fields(stage))
        changed |= {f"{i} {name}.{key}": value for key, default, value in parts if MISSING != default != value}
    return changed


def front(points: list[tuple[float, float]], higher_is_better: bool = True) -> list[int]:
    """The indices of the points that no other beats in both (small x, good y), by growing x."""
    sign = 1 if higher_is_better else -1
    best, kept = float("-inf"), []
    finite = [i for i, point in enumerate(points) if all(map(math.isfinite, point))]
    for i in sorted(finite, key=lambda i: (points[i][0], -sign * points[i][1])):
        if sign * points[i][1] > best:
            best = sign * points[i][1]
            kept.append(i)
    return kept


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """Outcomes side by side: `to_frame()` for the numbers, `figure()` for the picture, `best()` for the front.

    others: further costs beside `x`, each with a picture of its own.
    """

    outcomes: tuple[Any, ...]
    x: str
    y: str
    higher_is_better: bool = True
    others: tuple[str, ...] = ()

    def best(self, x: str | None = None) -> list[int]:
        """The indices in `outcomes` of those that no other beats in both `x` and `y`; `x` may be another cost."""
        return front(self._points(self.x if x is None else x), self.higher_is_better)

    def dominated(self) -> dict[int, int]:
        """Of each outcome that another is as good as in all costs and in `y`, and better in one: both indices."""
        sign = -1 if self.higher_is_better else 1  # all small is good
        costs = [self._points(x) for x in (self.x, *self.others)]
        rows = [(*(points[i][0] for points in costs), sign * costs[0][i][1]) for i in range(len(self.outcomes))]
        beaten = {}
        for i, row in enumerate(rows):
            better = [k for k, other in enumerate(rows) if other != row and _is_as_good(other, row)]
            if better:
                beaten[i] = min(better, key=lambda k: rows[k])
        return beaten

    def names(self) -> list[str]:
        """Each outcome by the settings in which it differs, or by its number."""
        chosen = settings(outcome.recipe for outcome in self.outcomes)
        texts = [", ".join(f"{k}={v}" if k != "recipe" else v for k, v in row.items()) for row in chosen]
        return [text or f"run {i + 1}" for i, text in enumerate(texts)]

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row per outcome: the settings that differ, and every report row after the run."""
        import pandas

        chosen = settings(outcome.recipe for outcome in self.outcomes)
        after = [{row.name: row.after for row in outcome.report} for outcome in self.outcomes]
        return pandas.DataFrame([{**left, **right} for left, right in zip(chosen, after, strict=True)])

    def figure(self, x: str | None = None) -> go.Figure:
        """The Pareto picture as a plotly figure; the front is joined, the model before is a hollow mark."""
        x = self.x if x is None else x
        points, names, best = self._points(x), self.names(), self.best(x)
        across, up = zip(*points, strict=True)
        mark = {"mode": "markers", "marker_size": 10}
        dots = go.Scatter(x=across, y=up, text=names, name="outcomes", **mark)
        line = go.Scatter(x=[across[i] for i in best], y=[up[i] for i in best], name="Pareto front", mode="lines")
        traces = [line, dots]
        if before := self._before(x):
            a, b = before
            traces.append(go.Scatter(x=[a], y=[b], name="before", **mark, marker_symbol="circle-open"))
        return figure(*traces, x=self._axis(x), y=self._axis(self.y))

    def picture(self) -> str:
        """The Pareto picture of each cost as SVG, with the front joined and the model before."""
        return "".join(self._front_of(x) for x in (self.x, *self.others))

    def _front_of(self, x: str) -> str:
        points, best = self._points(x), self.best(x)
        rest = [point for i, point in enumerate(points) if i not in best]
        series = [svg.Series("Pareto front", [points[i] for i in best]), svg.Series("others", rest, joined=False)]
        if before := self._before(x):
            series.append(svg.Series("before", [before], joined=False))
        return svg.lines([s for s in series if s.points], x=self._axis(x), y=self._axis(self.y), width=520)

    def __repr__(self) -> str:
        table = self._table()
        wide = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = ["  ".join(f"{c:>{w}}" for c, w in zip(line, wide, strict=True)).rstrip() for line in table]
        return "\n".join([*lines, *self._notes()])

    def _repr_html_(self) -> str:
        cell = '<{0} style="text-align:right">{1}</{0}>'
        head, *body = [
            "".join(cell.format("td" if i else "th", html.escape(text)) for text in line)
            for i, line in enumerate(self._table())
        ]
        rows = "".join(f"<tr>{line}</tr>" for line in body)
        image = f"<!--lab picture-->{still.images(self.picture())}<!--end-->"
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}{image}"

    def _notes(self) -> list[str]:
        """What is dominated in all costs, and by whom."""
        names, costs = self.names(), f"{', '.join((self.x, *self.others))} and {self.y}"
        beaten = self.dominated() if self.others else {}
        return [f"dominated in {costs}: {names[i]} (by {names[k]})" for i, k in beaten.items()]

    def _table(self) -> list[list[str]]:
        """The cells as shown: a star for the front, the settings, then the report; a dash where there is nothing."""
        chosen = settings(outcome.recipe for outcome in self.outcomes)
        fields = list(dict.fromkeys(name for row in chosen for name in row))
        rows = list({row.name: row for outcome in self.outcomes for row in outcome.report}.values())
        head = ["", *fields, *(f"{row.name} ({row.unit})" if row.unit else row.name for row in rows)]
        best = set(self.best()) if not self.others else {*range(len(self.outcomes))} - {*self.dominated()}
        table = [head]
        for i, (outcome, fields_of) in enumerate(zip(self.outcomes, chosen, strict=True)):
            has = _rows(outcome)
            values = [has[row.name].shown(has[row.name].after) if row.name in has else "-" for row in rows]
            table.append(["*" if i in best else "", *(str(fields_of.get(name, "-")) for name in fields), *values])
        return table

    def _points(self, x: str) -> list[tuple[float, float]]:
        rows = [(outcome.report[x].after, outcome.report[self.y].after) for outcome in self.outcomes]
        return [(math.nan if a is None else a, math.nan if b is None else b) for a, b in rows]

    def _before(self, x: str) -> tuple[float, float] | None:
        """Where the model was, if the outcomes agree on it."""
        start = {(outcome.report[x].before, outcome.report[self.y].before) for outcome in self.outcomes}
        return start.pop() if len(start) == 1 and None not in next(iter(start)) else None

    def _axis(self, name: str) -> str:
        unit = self.outcomes[0].report[name].unit
        return f"{name} ({unit})" if unit else name


def _is_as_good(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether no number of a is above that of b; a number that is unknown is none to compare."""
    return all(p <= q for p, q in zip(a, b, strict=True))


def _rows(outcome: Any) -> dict[str, Row]:
    return {row.name: row for row in outcome.report}


def _score(outcome: Any, shared: list[str]) -> str:
    scores = [name for name in SCORES if name in shared]
    learned = [name for name in shared if outcome.report[name].kind == "learned"]
    if not scores and not learned:
        raise ValueError(f"no row says how well the outcomes do: name y, one of {', '.join(shared) or 'none'}")
    return (scores or learned)[0]
