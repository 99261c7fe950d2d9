"""Curves of repeated runs: the mean of each group, and its confidence band."""

import math
from typing import Any

import plotly.graph_objects as go

from ..core import ranking_metrics
from .figures import figure
from .svg import PALETTE


def interval_curves(
    results: Any, by: str, x: str, measure: str, label: str, title: str = "", least: float = -math.inf
) -> go.Figure:
    """A measure against x, one line a group with its 95 % band over seeds, which does not reach below `least`.

    `results` is a DataFrame with the columns by (the groups), x, seed and the measure; `label` names the axis of x.
    ValueError names the first column that is missing.
    """
    missing = {by, x, "seed", measure} - set(results.columns)
    if missing:
        raise ValueError(f"results have no column {sorted(missing)[0]!r}: they have {', '.join(results.columns)}")
    traces: list[Any] = []
    for colour, (name, rows) in zip(PALETTE * 3, results.groupby(by, sort=False), strict=False):
        intervals = {at: ranking_metrics.interval(part[measure]) for at, part in rows.groupby(x)}
        traces += [_band(intervals, colour, least), _line(intervals, colour, name)]
    return figure(*traces, x=label, y=measure, title=title)


def _band(intervals: dict[Any, ranking_metrics.Interval], colour: str, least: float) -> go.Scatter:
    """Along the upper ends and back along the lower ones."""
    x, low, high = (
        list(intervals),
        [max(i.low, least) for i in intervals.values()],
        [i.high for i in intervals.values()],
    )
    return go.Scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=colour,
        opacity=0.18,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def _line(intervals: dict[Any, ranking_metrics.Interval], colour: str, name: str) -> go.Scatter:
    means = [i.mean for i in intervals.values()]
    return go.Scatter(x=list(intervals), y=means, name=name, mode="lines+markers", line={"color": colour})
