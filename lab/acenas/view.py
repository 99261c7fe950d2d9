"""AceNAS seen: how each round ranks the space, its best cells, what they cost, and what labels are worth."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from ..ui import Control, Explorer, Frame, figure, svg, view
from ..ui.svg import PALETTE
from . import metrics
from .outcome import AceNASOutcome
from .search import best

DOTS = 300  # of a large space, so many are drawn besides those that were trained
SHOWN = 3  # cells drawn
SHORT = {"nor_conv_3x3": "conv 3x3", "nor_conv_1x1": "conv 1x1", "avg_pool_3x3": "pool 3x3", "skip_connect": "skip"}

Points = list[tuple[float, float]]


def numbers(outcome: AceNASOutcome, index: int) -> dict[str, Points]:
    """After round `index`: (predicted rank, true rank) of what was trained, of the ten best predicted, of the others.

    Ranks begin at 1. Without a table, only what was trained has a rank besides the predicted one.
    """
    scores, rows = outcome.scores[index], outcome.rows[: outcome.learned[index]].tolist()
    predicted = _ranks(scores)
    truth = outcome.known["truth"]
    true = dict(zip(rows, _ranks(outcome.labels[: len(rows)]).tolist(), strict=True))
    if truth is not None:
        true = dict(enumerate(_ranks(truth).tolist()))
    pool = outcome.known["pool"].tolist()
    order = [row for row in best(scores, pool, len(pool)) if row in true]
    top, trained = set(order[:10]), set(rows)
    others = [row for row in order if row not in top and row not in trained]
    others = others[:: max(1, len(others) // DOTS)]
    return {
        name: [(float(predicted[row]), float(true[row])) for row in members]
        for name, members in (
            ("trained", sorted(trained - top)), ("ten best predicted", sorted(top)), ("others", others),
        )
    }  # fmt: skip


def costs(outcome: AceNASOutcome, cost: str) -> dict[str, Points]:
    """(cost, label) of all that was trained, and of the front that none of them beats in both."""
    values = outcome.known["costs"][cost]
    trained = [(float(values[row]), float(y)) for row, y in zip(outcome.rows.tolist(), outcome.labels, strict=True)]
    return {"trained": trained, "front": [(c, y) for _, c, y in outcome.front(cost)]}


@view.register
def explore(outcome: AceNASOutcome) -> Explorer:
    """The search replayed: predicted against true rank, the best cells of the round, what the trained ones cost."""
    rounds = list(range(1, len(outcome.learned) + 1))
    known = outcome.known

    def draw(round: int, cost: str = "") -> Frame:
        index = round - 1
        points = numbers(outcome, index)
        pictures = [
            svg.lines([svg.Series(name, found, joined=False) for name, found in points.items()], "predicted rank",
                      "true rank", title=f"after {outcome.learned[index]} trainings"),
            *_progress(outcome, round), *_front(outcome, cost), *_best(outcome, index),
        ]  # fmt: skip
        return Frame("".join(pictures), _facts(outcome, index))

    controls = {"round": Control(rounds, label="round", start=rounds[-1])}
    if known["costs"]:
        names = list(known["costs"])
        preferred = next((name for name in names if "latency" in name), names[0])
        controls["cost"] = Control(names, label="cost", start=preferred)
    recipe = outcome.recipe
    return Explorer(draw, controls, title=f"AceNAS on {known['space']}: {recipe.scorer}, budget {recipe.budget}")


def curves(results: Any, measure: str = "ndcg10", title: str = "") -> go.Figure:
    """A measure against the budget, one line a scorer with its 95 % band over seeds.

    `results` is a DataFrame with the columns scorer, budget, seed and the measure, as `benchmarks/acenas.py` writes.
    """
    missing = {"scorer", "budget", "seed", measure} - set(results.columns)
    if missing:
        raise ValueError(f"results have no column {sorted(missing)[0]!r}: they have {', '.join(results.columns)}")
    traces: list[Any] = []
    for colour, (name, rows) in zip(PALETTE * 3, results.groupby("scorer", sort=False), strict=False):
        found = {budget: metrics.interval(part[measure]) for budget, part in rows.groupby("budget")}
        x, low, high = list(found), [i.low for i in found.values()], [i.high for i in found.values()]
        traces.append(go.Scatter(x=[*x, *x[::-1]], y=[*high, *low[::-1]], fill="toself", fillcolor=colour, opacity=0.18,
                                 line={"width": 0}, hoverinfo="skip", showlegend=False))  # fmt: skip
        traces.append(go.Scatter(x=x, y=[i.mean for i in found.values()], name=name, mode="lines+markers",
                                 line={"color": colour}))  # fmt: skip
    return figure(*traces, x="trained architectures to learn from", y=measure, title=title)


# -- pictures ----------------------------------------------------------------------------------------------------------


def _ranks(values: Tensor) -> Tensor:
    """1 for the largest; equal ones have one rank."""
    return 1 + len(values) - torch.searchsorted(values.sort().values, values, right=True)


def _progress(outcome: AceNASOutcome, round: int) -> list[str]:
    """Both measures of the ranking over the rounds."""
    steps = [step for step in outcome.trace if step.stage == "rounds"]
    if len(steps) < 2 or "ndcg@10" not in steps[0].terms:
        return []
    series = [svg.Series(name, [(s.index + 1, s.terms[name]) for s in steps]) for name in ("ndcg@10", "kendall tau")]
    return [svg.lines(series, "round", title="how well it ranks", at=round)]


def _front(outcome: AceNASOutcome, cost: str) -> list[str]:
    """What was trained, label against cost."""
    if not cost:
        return []
    found = costs(outcome, cost)
    series = [svg.Series("trained", found["trained"], joined=False), svg.Series("front", found["front"])]
    return [svg.lines(series, cost, f"{outcome.known['metric']} ({outcome.known['unit']})", title="what it costs")]


def _best(outcome: AceNASOutcome, index: int) -> list[str]:
    """The best predicted ones of the round as graphs."""
    known = outcome.known
    shown = best(outcome.scores[index], known["pool"].tolist(), SHOWN)
    return [
        graph(known["graphs"][known["names"][row]], _place(known, row, place)) for place, row in enumerate(shown, 1)
    ]


def _place(known: dict[str, Any], row: int, place: int) -> str:
    truth = known["truth"]
    return f"predicted rank {place}" + (f", true rank {metrics.rank(row, truth)}" if truth is not None else "")


def graph(parts: Sequence[tuple[Sequence[str], Sequence[Sequence[int]]]], title: str, width: int = 380) -> str:
    """Graphs (operators, edges), one below the other; data flows from left to right."""
    pictures, top = [], svg.LINE + 8.0
    for operators, edges in parts:
        drawn, tall = _dag(operators, edges, top, width)
        pictures += drawn
        top += tall
    return svg.document(width, top, title, title, pictures)


def _dag(operators, edges, top: float, width: int) -> tuple[list[str], float]:
    """Nodes in columns by the longest way to them, edges as curves; without what does nothing."""
    used = {v for u, v in edges} | {u for u, v in edges}
    alive = [i for i in range(len(operators)) if operators[i] != "none" and (i in used or len(operators) == 1)]
    links = [(u, v) for u, v in edges if u in alive and v in alive]
    alive = [i for i in alive if _reaches(i, links, alive)]
    links = [(u, v) for u, v in links if u in alive and v in alive]
    depth = {i: 0 for i in alive}
    for u, v in sorted(links):
        depth[v] = max(depth[v], depth[u] + 1)
    columns = max(depth.values(), default=0) + 1
    places, tall, pitch = {}, 0, width / columns
    for column in range(columns):
        for row, node in enumerate([i for i in alive if depth[i] == column]):
            places[node] = (column * pitch + 2, top + row * 34)
            tall = max(tall, row + 1)
    w = min(pitch - 10, 96.0)
    curves = []
    for u, v in links:
        (a, b), (c, d) = places[u], places[v]
        curves.append(f'<path class="lab-skip" d="M{a + w:.0f} {b + 11:.0f}C{a + w + 12:.0f} {b + 11:.0f} '
                      f'{c - 12:.0f} {d + 11:.0f} {c:.0f} {d + 11:.0f}"/>')  # fmt: skip
    boxes = []
    for node, (x, y) in places.items():
        name = SHORT.get(operators[node], operators[node])
        boxes += [svg.rect(x, y, w, 22, "lab-track"), svg.text(x + w / 2, y + 15, svg.fit(name, w), "mid", name)]
    return [*curves, *boxes], tall * 34 + 6.0


def _reaches(node: int, links, alive) -> bool:
    """Whether data from the first node comes here and goes on to the last one."""
    first, last = min(alive), max(alive)

    def seen(start: int, forward: bool) -> set[int]:
        found, todo = {start}, [start]
        while todo:
            here = todo.pop()
            for u, v in links:
                a, b = (u, v) if forward else (v, u)
                if a == here and b not in found:
                    found.add(b)
                    todo.append(b)
        return found

    return node in seen(first, True) and node in seen(last, False)


def _facts(outcome: AceNASOutcome, index: int) -> dict[str, Any]:
    known, scores = outcome.known, outcome.scores[index]
    facts: dict[str, Any] = {"trained": outcome.learned[index]}
    if known["truth"] is not None:
        pool = known["pool"]
        truth = known["truth"]
        facts |= {
            "ndcg@10": f"{metrics.ndcg(scores[pool], truth[pool]):.3f}",
            "kendall tau": f"{metrics.kendall_tau(scores[pool], truth[pool]):.3f}",
            "best rank in the top ten": min(metrics.rank(row, truth) for row in best(scores, pool.tolist(), 10)),
        }
    if index == len(outcome.learned) - 1:
        facts["picked"] = outcome.pick
    return facts
