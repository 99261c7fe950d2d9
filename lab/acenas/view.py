"""AceNAS seen: how each round ranks the space, its best cells, what they cost, and what labels are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import torch
from scipy import stats
from torch import Tensor

from ..core import ranking_metrics
from ..core.training import Step
from ..lens.changes import Section
from ..lens.explanation import Explanation
from ..lens.sanity import LEVEL, Check
from ..ui import Control, Explorer, Frame, svg, view
from ..ui.curves import interval_curves
from ..ui.figures import figure
from . import equations as eq
from . import metrics
from .outcome import AceNASOutcome
from .recipe import BASELINES
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


def intervals(runs: Mapping[str, Sequence[float]], x: str, title: str = "") -> go.Figure:
    """A mark a searcher, at the mean of its runs, with the 95 % interval of that mean; `x` names measure and unit."""
    ends = {name: ranking_metrics.interval(values) for name, values in reversed([*runs.items()])}
    whiskers: dict[str, Any] = {
        "type": "data",
        "array": [i.high - i.mean for i in ends.values()],
        "arrayminus": [i.mean - i.low for i in ends.values()],
    }
    marks = go.Scatter(x=[i.mean for i in ends.values()], y=list(ends), error_x=whiskers, mode="markers", marker_size=9)
    return figure(marks, x=x, title=title).update_layout(height=140 + 24 * len(ends))


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
    """What was trained, label against cost, without the lowest fifth of the space, which would flatten all others."""
    if not cost:
        return []
    context = outcome.context
    judged = outcome.labels if context["truth"] is None else context["truth"]
    least = float(judged.double().quantile(metrics.LOW))
    series = [
        svg.Series(name, [(c, y) for c, y in some if y >= least], joined=name != "trained")
        for name, some in costs(outcome, cost).items()
    ]
    y = f"{context['metric']} ({context['unit']}), from {least:.4g} upwards"
    return [svg.lines(series, _axis(cost), y, title="what it costs")]


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


# -- the pick and its alternatives -------------------------------------------------------------------------------------

WORTH = (
    f"Scores that know nothing pass the check of their order at most once in {1 / LEVEL:,.0f} (Kendall's test, "
    "one-sided, of architectures that the scorer has not learned from). How often a random search does as well is "
    "counted exactly, over all of its draws."
)


def explained(outcome: AceNASOutcome) -> Explanation:
    """What was picked beside what else there was: its rank, what the scorer believed and what was measured."""
    sections = [_picked(outcome), _alternatives(outcome), _curve(outcome), _rounds(outcome), _no_networks()]
    report = replace(outcome.report, title="AceNAS: the pick and its alternatives")
    return Explanation(report, tuple(_checks(outcome)), tuple(sections), WORTH)


def _checks(outcome: AceNASOutcome) -> list[Check]:
    checks = []
    if outcome.context["truth"] is not None:
        share = as_good(outcome)
        text = f"as many random trainings find one as good in {share:.1%} of draws"
        checks.append(Check("a random search", share > 0.5, text))
    if outcome.recipe.scorer not in BASELINES:
        checks.append(_order(outcome))
    return checks


def as_good(outcome: AceNASOutcome) -> float:
    """How often as many trainings drawn at random find an architecture as good as the pick, by the table: exact."""
    truth = outcome.context["truth"][outcome.context["pool"]]
    picked = outcome.context["truth"][outcome.context["names"].index(outcome.pick)]
    return float(1 - stats.hypergeom.pmf(0, len(truth), int((truth >= picked).sum()), len(outcome.rows)))


def _order(outcome: AceNASOutcome) -> Check:
    """Whether the scores order what they have not learned from: of a table all of that, else what was trained last."""
    scores, truth = outcome.scores[-1], outcome.context["truth"]
    learned = set(outcome.rows[: outcome.learned[-1]].tolist())
    if truth is not None:
        rest = [row for row in outcome.context["pool"].tolist() if row not in learned]
        measured = truth[rest]
    else:
        rest, measured = outcome.rows[outcome.learned[-1] :].tolist(), outcome.labels[outcome.learned[-1] :]
    if len(rest) < 20:
        return Check(
            "order of the scores", False, f"{len(rest)} architectures that were not learned are too few to tell"
        )
    result = stats.kendalltau(scores[rest].numpy(), measured.numpy(), alternative="greater")
    tau, p = (0.0, 1.0) if result.statistic != result.statistic else (float(result.statistic), float(result.pvalue))
    text = (
        f"on {len(rest)} architectures that were not learned the scores order {'no ' if p > LEVEL else ''}better than "
    )
    return Check("order of the scores", p > LEVEL, f"{text}shuffled ones (Kendall's tau {tau:.2f}, shuffled 0)", p)


def _picked(outcome: AceNASOutcome) -> Section:
    context, unit = outcome.context, outcome.context["unit"]
    row = context["names"].index(outcome.pick)
    believed = int(_ranks(outcome.scores[-1][context["pool"]])[context["pool"].tolist().index(row)])
    label = float(outcome.labels[outcome.rows.tolist().index(row)])
    numbers = {"picked": outcome.pick, "label": label, "predicted rank": believed, "of": len(context["pool"])}
    text = f"{outcome.pick} was measured at {label:.2f} {unit} of {context['metric']}, the best of {len(outcome.rows)} "
    text += "that were trained."
    if outcome.recipe.scorer not in BASELINES:
        text += f" The scorer had it at rank {believed} of {len(context['pool'])}."
    if context["truth"] is not None:
        truth = context["truth"][context["pool"]]
        numbers["true rank"] = 1 + int((truth > context["truth"][row]).sum())
        numbers["chance"] = ranking_metrics.expected_best(truth, len(outcome.rows))
        text += f" By the table it is rank {numbers['true rank']}; as many random trainings find "
        text += f"{numbers['chance']:.2f} {unit} on average, and it has {float(context['truth'][row]):.2f}."
    graphs = context["graphs"]
    return Section(
        "The pick", text, numbers, [graph(graphs[outcome.pick], "the pick")] if outcome.pick in graphs else []
    )


def _alternatives(outcome: AceNASOutcome) -> Section:
    """The ten that the scorer put first, with what was measured of each."""
    context, truth = outcome.context, outcome.context["truth"]
    labels = dict(zip(outcome.rows.tolist(), outcome.labels.tolist(), strict=True))
    rows = []
    for rank, name in enumerate(outcome.ranking[:10], 1):
        row = context["names"].index(name)
        true = None if truth is None else 1 + int((truth[context["pool"]] > truth[row]).sum())
        rows.append({"predicted rank": rank, "name": name, "label": labels.get(row), "true rank": true})
    text = "The ten of the highest scores, what was measured of those that were trained"
    text += ", and their ranks by the table." if truth is not None else "."
    return Section("Its alternatives", text, rows, [_listing(rows, context["unit"], outcome.pick)])


def _listing(rows: Sequence[dict[str, Any]], unit: str, pick: str) -> str:
    """A line an architecture; the pick in bold."""
    parts, width = [], 620
    for k, row in enumerate(rows):
        y, kind = svg.HEAD + k * svg.LINE + svg.BASE, "strong" if row["name"] == pick else ""
        measured = "not trained" if row["label"] is None else f"{row['label']:.2f} {unit}"
        rank = "" if row["true rank"] is None else f"true rank {row['true rank']}"
        parts += [svg.text(0, y, str(row["predicted rank"]), kind), svg.text(380, y, measured, kind)]
        parts += [svg.text(28, y, svg.fit(row["name"], 340), kind, row["name"]), svg.text(500, y, rank, kind)]
    title = "predicted rank, architecture, measured"
    return svg.document(width, svg.HEAD + len(rows) * svg.LINE + 4, title, title, parts)


def _curve(outcome: AceNASOutcome) -> Section:
    """What would have been picked after each training, beside what chance finds."""
    context, truth = outcome.context, outcome.context["truth"]
    best_of = outcome.labels.cummax(0).indices  # of each training the number of the best label until then
    so_far = (outcome.labels if truth is None else truth[outcome.rows])[best_of].tolist()
    series = [svg.Series("this search", [(float(k), value) for k, value in enumerate(so_far, 1)])]
    text = "What had the best label so far, in the order of the trainings."
    if truth is not None:
        pool = truth[context["pool"]]
        some = sorted({1, *range(1, len(so_far) + 1, max(1, len(so_far) // 20)), len(so_far)})
        series.append(
            svg.Series("random, on average", [(float(k), ranking_metrics.expected_best(pool, k)) for k in some])
        )
        text = (
            f"{text[:-1]}, by the table's truth. Chance is the mean over all draws of as many, and takes the best by "
        )
        text += "that truth itself, counted exactly."
    chart = svg.lines(series, "trainings", f"{context['metric']} ({context['unit']})", title="the search", width=460)
    return Section("The search", text, {"best so far": so_far}, [chart])


def _rounds(outcome: AceNASOutcome) -> Section:
    text = "What was believed against what is true, after each round; the best predicted; what the trained ones cost."
    return Section("Believed and measured", text, {"learned": outcome.learned}, [explore(outcome)])


def _no_networks() -> Section:
    text = (
        "A search trains or looks up architectures and keeps none of their networks, so that no two can be laid side "
    )
    return Section("Networks", text + "by side here: give lab.lens.compare the two that you have trained.", {})
