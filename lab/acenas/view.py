"""AceNAS seen: how each round ranks the space, its best cells, what they cost, and what labels are worth."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from ..core import ranking_metrics
from ..core.training import Step
from ..ui import Control, Explorer, Frame, svg, view
from ..ui.curves import interval_curves
from . import equations as eq
from . import metrics
from .outcome import AceNASOutcome
from .search import best

DOTS = 300  # of a large space, so many are drawn besides those that were trained
SHOWN = 3  # cells drawn
ROW, BOX = 34, 22  # px from a node to the one below it, and of a node's height
UNITS = ("ms", "s", "mb", "kb")
SHORT = {"nor_conv_3x3": "conv 3x3", "nor_conv_1x1": "conv 1x1", "avg_pool_3x3": "pool 3x3", "skip_connect": "skip"}

Points = list[tuple[float, float]]


def numbers(outcome: AceNASOutcome, index: int) -> dict[str, Points]:
    """After round `index`: (predicted rank, true rank) of what was trained, of the ten best predicted, of the others.

    Ranks begin at 1. Without a table, only what was trained has a rank besides the predicted one.
    """
    scores, rows = outcome.scores[index], outcome.rows[: outcome.learned[index]].tolist()
    predicted = _ranks(scores)
    truth = outcome.context["truth"]
    true = dict(zip(rows, _ranks(outcome.labels[: len(rows)]).tolist(), strict=True))
    if truth is not None:
        true = dict(enumerate(_ranks(truth).tolist()))
    pool = outcome.context["pool"].tolist()
    order = [row for row in best(scores, pool, len(pool)) if row in true]
    top, trained = set(order[:10]), set(rows)
    others = [row for row in order if row not in top and row not in trained]
    others = others[:: max(1, len(others) // DOTS)]
    groups = {"trained": sorted(trained - top), "ten best predicted": sorted(top), "others": others}
    return {name: [(float(predicted[row]), float(true[row])) for row in rows] for name, rows in groups.items()}


def costs(outcome: AceNASOutcome, cost: str) -> dict[str, Points]:
    """(cost, label) of all that was trained, and of the front that none of them beats in both; of a table that was
    searched for this cost also its own front, by truth.
    """
    context = outcome.context
    values, truth = context["costs"][cost], context["truth"]
    trained = [(float(values[row]), float(y)) for row, y in zip(outcome.rows.tolist(), outcome.labels, strict=True)]
    points = {"trained": trained, "front": [(c, y) for _, c, y in outcome.front(cost)]}
    if truth is not None and context.get("objective") == cost:
        pool = context["pool"]
        best_rows = pool[eq.layers(truth[pool], values[pool]) == 0]
        points["the table's front"] = sorted((float(values[row]), float(truth[row])) for row in best_rows.tolist())
    return points


@view.register
def explore(outcome: AceNASOutcome) -> Explorer:
    """The search replayed: predicted against true rank, the best cells of the round, what the trained ones cost."""
    rounds = list(range(1, len(outcome.learned) + 1))
    context = outcome.context

    def draw(round: int, cost: str = "") -> Frame:
        index = round - 1
        series = [svg.Series(name, points, joined=False) for name, points in numbers(outcome, index).items()]
        ranks = svg.lines(series, "predicted rank", "true rank", title=f"after {outcome.learned[index]} trainings")
        panels = [ranks, *_progress(outcome, round), *_front(outcome, cost), *_best(outcome, index)]
        return Frame("".join(panels), _facts(outcome, index))

    controls = {"round": Control(rounds, label="round", start=rounds[-1])}
    if context["costs"]:
        names = list(context["costs"])
        latency = next((name for name in names if "latency" in name), names[0])
        controls["cost"] = Control(names, label="cost", start=context.get("objective") or latency)
    recipe = outcome.recipe
    return Explorer(draw, controls, title=f"AceNAS on {context['space']}: {recipe.scorer}, budget {recipe.budget}")


def curves(results: Any, measure: str = "ndcg10", title: str = "") -> go.Figure:
    """A measure against the budget, one line a scorer with its 95 % band over seeds.

    `results` is a DataFrame with the columns scorer, budget, seed and the measure, as `benchmarks/acenas.py` writes.
    """
    return interval_curves(results, "scorer", "budget", measure, "trained architectures to learn from", title)


# -- pictures ----------------------------------------------------------------------------------------------------------


def _ranks(values: Tensor) -> Tensor:
    """1 for the largest; equal ones have one rank."""
    return 1 + len(values) - torch.searchsorted(values.sort().values, values, right=True)


def _progress(outcome: AceNASOutcome, round: int) -> list[str]:
    """Both measures of the ranking over the rounds, and where two objectives were sought what the front covers."""
    steps = [step for step in outcome.trace if step.stage == "rounds"]
    if len(steps) < 2 or "ndcg@10" not in steps[0].terms:
        return []
    panels = [_curves(steps, ("ndcg@10", "kendall tau"), "how well it ranks", "1 is best", round)]
    if "hypervolume" in steps[0].terms:
        panels.append(_curves(steps, ("hypervolume",), "what the front covers", "hypervolume (%)", round))
    return panels


def _curves(steps: Sequence[Step], names: Sequence[str], title: str, y: str, round: int) -> str:
    """What was noted of the rounds, against the round."""
    series = [svg.Series(name, [(s.index + 1, s.terms[name]) for s in steps]) for name in names]
    return svg.lines(series, "round", y, title=title, at=round)


def _front(outcome: AceNASOutcome, cost: str) -> list[str]:
    """What was trained, label against cost."""
    if not cost:
        return []
    points = costs(outcome, cost)
    series = [svg.Series(name, some, joined=name != "trained") for name, some in points.items()]
    return [
        svg.lines(
            series, _axis(cost), f"{outcome.context['metric']} ({outcome.context['unit']})", title="what it costs"
        )
    ]


def _axis(cost: str) -> str:
    """The name of a column with its unit: 'latency_ms' is 'latency (ms)'."""
    name, _, unit = cost.rpartition("_")
    return f"{name.replace('_', ' ')} ({unit})" if unit in UNITS and name else cost.replace("_", " ")


def _best(outcome: AceNASOutcome, index: int) -> list[str]:
    """The best predicted ones of the round as graphs."""
    context = outcome.context
    shown = best(outcome.scores[index], context["pool"].tolist(), SHOWN)
    graphs = [context["graphs"][context["names"][row]] for row in shown]
    titles = [_ranks_of(context["truth"], row, predicted) for predicted, row in enumerate(shown, 1)]
    return [graph(parts, title) for parts, title in zip(graphs, titles, strict=True)]


def _ranks_of(truth: Tensor | None, row: int, predicted: int) -> str:
    true = f", true rank {ranking_metrics.rank(row, truth)}" if truth is not None else ""
    return f"predicted rank {predicted}{true}"


def graph(parts: Sequence[tuple[Sequence[str], Sequence[Sequence[int]]]], title: str, width: int = 380) -> str:
    """Graphs (operators, edges), one below the other; data flows from left to right."""
    elements, top = [], svg.LINE + 8.0
    for operators, edges in parts:
        dag, tall = _dag(operators, edges, top, width)
        elements += dag
        top += tall
    return svg.document(width, top, title, title, elements)


def _dag(operators: Sequence[str], edges: Sequence[Sequence[int]], top: float, width: int) -> tuple[list[str], float]:
    """Nodes in columns by the longest way to them, edges as curves; without what does nothing. With the height."""
    nodes, links = _alive(operators, edges)
    depth = dict.fromkeys(nodes, 0)
    for u, v in sorted(links):
        depth[v] = max(depth[v], depth[u] + 1)
    columns = [[i for i in nodes if depth[i] == column] for column in range(max(depth.values(), default=0) + 1)]
    pitch = width / len(columns)
    xy = {i: (c * pitch + 2, top + r * ROW) for c, column in enumerate(columns) for r, i in enumerate(column)}
    box = min(pitch - 10, 96.0)
    curves = [_link(*xy[u], *xy[v], box) for u, v in links]
    boxes = [part for i, (x, y) in xy.items() for part in _node(operators[i], x, y, box)]
    return [*curves, *boxes], max(map(len, columns)) * ROW + 6.0


def _alive(operators: Sequence[str], edges: Sequence[Sequence[int]]) -> tuple[list[int], list[tuple[int, int]]]:
    """The nodes through which data flows from the first to the last of those that do anything, and their links."""
    linked = {node for edge in edges for node in edge}
    doing = [i for i, name in enumerate(operators) if name != "none" and (i in linked or len(operators) == 1)]
    if not doing:
        return [], []
    links = [(u, v) for u, v in edges if u in doing and v in doing]
    after = _reached(min(doing), links)
    before = _reached(max(doing), [(v, u) for u, v in links])
    alive = after & before
    return sorted(alive), [(u, v) for u, v in links if u in alive and v in alive]


def _reached(start: int, links: Sequence[tuple[int, int]]) -> set[int]:
    """The nodes to which data from the start comes, itself among them."""
    reached, todo = {start}, [start]
    while todo:
        here = todo.pop()
        fresh = {v for u, v in links if u == here} - reached
        reached |= fresh
        todo += fresh
    return reached


def _link(x1: float, y1: float, x2: float, y2: float, box: float) -> str:
    """A curve from the right side of one box to the left side of another."""
    start, middle1, middle2 = x1 + box, y1 + BOX / 2, y2 + BOX / 2
    curve = f"{start + 12:.0f} {middle1:.0f} {x2 - 12:.0f} {middle2:.0f} {x2:.0f} {middle2:.0f}"
    return f'<path class="lab-skip" d="M{start:.0f} {middle1:.0f}C{curve}"/>'


def _node(operator: str, x: float, y: float, box: float) -> list[str]:
    """A box with the operator's short name in it."""
    name = SHORT.get(operator, operator)
    return [svg.rect(x, y, box, BOX, "lab-box"), svg.text(x + box / 2, y + 15, svg.fit(name, box), "mid", name)]


def _facts(outcome: AceNASOutcome, index: int) -> dict[str, Any]:
    context, scores = outcome.context, outcome.scores[index]
    truth, pool = context["truth"], context["pool"]
    facts: dict[str, Any] = {"trained": outcome.learned[index]}
    if truth is not None:
        facts |= {
            "ndcg@10": f"{metrics.ndcg(scores[pool], truth[pool]):.3f}",
            "kendall tau": f"{ranking_metrics.kendall_tau(scores[pool], truth[pool]):.3f}",
            "best rank in the top ten": min(
                ranking_metrics.rank(row, truth) for row in best(scores, pool.tolist(), 10)
            ),
        }
    if index == len(outcome.learned) - 1:
        facts["picked"] = outcome.pick
        if context.get("objective"):
            facts["front"] = f"{len(outcome.front())} architectures"
    return facts
