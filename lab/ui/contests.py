"""Contests as they were kept: every rival beside a method, with the interval of what lies between them."""

import json
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas
import plotly.graph_objects as go

from ..core import store
from ..core.errors import first_line
from .figures import figure


@dataclass(frozen=True, repr=False)
class Contest:
    """What `benchmarks/contest.py` kept: a record a cell (rival, budget, seed), and their summary."""

    kept: dict[str, Any]

    def to_frame(self) -> pandas.DataFrame:
        """A row a cell: rival, budget, seed, and all figures."""
        about = ("rival", "budget", "seed")
        return pandas.DataFrame([{k: r[k] for k in about} | r["figures"] for r in self.kept["records"]])

    def summary(self, budget: Any = None) -> pandas.DataFrame:
        """A row a rival at one budget, the first unless told: mean and standard deviation of each figure over seeds.

        'behind' is how far it is behind the method on the same seeds, between 'behind low' and 'behind high' with 95 %.
        """
        table = pandas.DataFrame(self.kept["summary"])
        budgets = list(dict.fromkeys(map(str, table.budget)))
        wanted = budgets[0] if budget is None else str(budget)
        if wanted not in budgets:
            raise ValueError(f"budget={budget!r}: this contest was held at {', '.join(budgets)}")
        return (
            table[table.budget.map(str) == wanted].drop(columns="budget").set_index("rival").dropna(axis=1, how="all")
        )

    def figure(self, budget: Any = None, unit: str = "points", title: str = "") -> go.Figure:
        """How far each rival is behind the method, a point with its interval of 95 %; left of the line it is ahead."""
        table = self.summary(budget).drop(index=self.kept["subject"]).sort_values("behind", ascending=False)
        whiskers = {
            "type": "data", "array": table["behind high"] - table["behind"],
            "arrayminus": table["behind"] - table["behind low"],
        }  # fmt: skip
        marks = go.Scatter(
            x=table["behind"], y=list(table.index), error_x=whiskers, mode="markers", marker_size=9, showlegend=False
        )
        plot = figure(marks, x=f"{unit} behind {self.kept['subject']} (left: ahead)", title=title)
        plot.add_vline(x=0, line_width=1, line_dash="dot")
        return plot.update_layout(height=150 + 24 * len(table))

    def __repr__(self) -> str:
        tables = [f"at {budget}\n{table.to_string()}" for budget, table in self._tables().items()]
        return "\n\n".join([f"{self.kept['contest']}: {self.kept['figure']}", *tables])

    def _repr_html_(self) -> str:
        tables = self._tables()
        if len(tables) == 1:
            return tables.popitem()[1].to_html()
        return "".join(f"<p>at {escape(budget)}</p>{table.to_html()}" for budget, table in tables.items())

    def _tables(self) -> dict[str, pandas.DataFrame]:
        """The table of each budget."""
        budgets = dict.fromkeys(str(row["budget"]) for row in self.kept["summary"])
        return {budget: self.table(budget) for budget in budgets}

    def table(self, budget: Any = None) -> pandas.DataFrame:
        """The figure of each rival at a budget with its spread, and how far it is behind with the interval, as text."""
        table, chosen, subject = self.summary(budget), self.kept["figure"], self.kept["subject"]
        unheard = pandas.Series(float("nan"), table.index)
        spread, low, high = (table.get(k, unheard) for k in (f"{chosen} sd", "behind low", "behind high"))
        means = [_shown(m, s) for m, s in zip(table[chosen], spread, strict=True)]
        behind = [_between(*values) for values in zip(table["behind"], low, high, strict=True)]
        behind[list(table.index).index(subject)] = ""
        columns = {"seeds": table["seeds"], chosen.replace("_", " "): means, f"behind {subject}": behind}
        return pandas.DataFrame(columns)


def _shown(mean: float, spread: float) -> str:
    return f"{mean:.2f}" if math.isnan(spread) else f"{mean:.2f} ± {spread:.2f}"


def _between(mean: float, low: float, high: float) -> str:
    return f"{mean:+.2f}" if math.isnan(low) else f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def contest(name: str | Path) -> Contest:
    """The contest of `data/<name>`, such as 'gal/fashion.json', or of a file of one's own by path."""
    path = Path(name)
    path = path if path.exists() else store.artefact(str(name))
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if missing := [name for name in ("subject", "figure", "summary", "records") if name not in kept]:
            raise ValueError(f"it has no {missing[0]}")
        return Contest(kept)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = first_line(error)[:80]
        raise ValueError(f"{path} holds no contest ({reason}): give a file that a benchmark has kept") from error
