"""FoldGPT seen: how alike the blocks are, gates over the training, and the stack folding under two sliders."""

import json
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from ..core import store
from ..ui import Control, Explorer, Frame, figure, svg, view
from .outcome import FoldGPTOutcome

KINDS = ("removed", "shares", "own weights")


def numbers(outcome: FoldGPTOutcome, step: int | None = None) -> dict[str, Any]:
    """Per block: its state in the fold, its rank (1 goes first) and its gate after `step` steps."""
    rank = {block: k + 1 for k, block in enumerate(outcome.ranking)}
    gates = outcome.gates[-1 if step is None else step].tolist() if len(outcome.gates) else []
    return {
        "state": [state(outcome, block) for block in range(len(outcome.ranking))],
        "place": [rank[block] for block in range(len(outcome.ranking))],
        "gate": gates,
        "neighbours": [float(value) for value in outcome.similarity.diagonal(1)],
    }


def state(outcome: FoldGPTOutcome, block: int) -> str:
    """One of KINDS."""
    if block not in outcome.fold.kept:
        return "removed"
    return "shares" if any(block in group for group in outcome.fold.groups) else "own weights"


@view.register
def explore(outcome: FoldGPTOutcome) -> Explorer:
    """The run replayed: the gates at every step, the stack that came of them, and how alike the blocks are."""
    steps = list(range(0, max(1, len(outcome.gates)), max(1, len(outcome.gates) // 24)))
    steps = sorted({*steps, max(0, len(outcome.gates) - 1)})

    def draw(step: int) -> Frame:
        gates: list[float] = numbers(outcome, step)["gate"]
        parts, facts = [stack(outcome), matrix(outcome)], dict[str, Any]()
        if gates:
            names = [f"block {block}" for block in range(len(gates))]
            parts.append(svg.heat(outcome.gates.T.tolist(), names, title="gates over the training", at=step))
            facts["mean gate"] = round(sum(gates) / len(gates), 3)
            facts["between 0.1 and 0.9"] = sum(0.1 < g < 0.9 for g in gates)
        return Frame("".join(parts), facts | _facts(outcome))

    gone = len(outcome.ranking) - len(outcome.fold.kept)
    title = f"FoldGPT: {gone} of {len(outcome.ranking)} blocks removed, pairs that share: {len(outcome.fold.groups)}"
    return Explorer(draw, {"step": Control(steps, label="gate step", start=steps[-1])}, title=title)


def folding(outcomes: Sequence[FoldGPTOutcome], prompt: str = "") -> Explorer:
    """The stack under two sliders, removal and sharing, with perplexity, size and the words that `prompt` leads to.

    `outcomes` are runs at every pair of rates, which differ in nothing else. Raises ValueError where a pair is missing.
    """
    by_rate = {(o.recipe.removal, o.recipe.sharing): o for o in outcomes}
    removals, sharings = (sorted({rate[k] for rate in by_rate}) for k in (0, 1))
    if not by_rate or len(by_rate) != len(removals) * len(sharings):
        raise ValueError(f"outcomes hold {len(by_rate)} pairs of rates: give one for every removal with every sharing")
    texts = {rate: o.text(prompt) for rate, o in by_rate.items()} if prompt else {}
    shown = {"removal": [round(100 * r) for r in removals], "sharing": [round(100 * s) for s in sharings]}

    def draw(removal: int, sharing: int) -> Frame:
        rate = removals[shown["removal"].index(removal)], sharings[shown["sharing"].index(sharing)]
        outcome = by_rate[rate]
        facts = _facts(outcome) | ({"text": texts[rate]} if texts else {})
        return Frame(stack(outcome) + _plane(by_rate, rate), facts)

    controls = {name: Control(values, label=name, unit="% of blocks") for name, values in shown.items()}
    return Explorer(draw, controls, title="FoldGPT: a stack of blocks folds")


# -- pictures ----------------------------------------------------------------------------------------------------------


def stack(outcome: FoldGPTOutcome, width: int = 300) -> str:
    """Blocks from the first at the bottom to the last at the top; a bracket joins those on the same weights."""
    count, high, top, left = len(outcome.ranking), 20, svg.LINE + 8, 70
    parts = []
    for block in range(count):
        y = top + (count - 1 - block) * high
        kind = state(outcome, block)
        look = {"removed": "lab-gone", "shares": "lab-fill c1", "own weights": "lab-fill c0"}[kind]
        parts.append(svg.text(left - 8, y + 14, f"block {block}", "end num"))
        parts.append(svg.rect(left, y + 2, 90, high - 5, look))
        parts.append(svg.text(left + 106, y + 14, kind))
    for group in outcome.fold.groups:
        first, last = (top + (count - 1 - block) * high + high / 2 for block in (group[0], group[-1]))
        parts.append(svg.rect(left + 94, last, 3, first - last, "lab-fill c1"))
    return svg.document(width, top + count * high + 4, "the stack", "which blocks stay and which share", parts)


def matrix(outcome: FoldGPTOutcome) -> str:
    """Cosines of the states behind every two blocks, shown from the least (faint) to 1 (full)."""
    values = outcome.similarity.clamp(0, 1).tolist()
    names = ["input", *(f"block {block}" for block in range(len(values) - 1))]
    return svg.heat(values, names, x="state", title="cosine of states")


def _plane(by_rate: dict[tuple[float, float], FoldGPTOutcome], at: tuple[float, float]) -> str:
    """Perplexity against removal, a curve per sharing."""
    curves: dict[float, list[tuple[float, float]]] = {}
    for (removal, sharing), outcome in sorted(by_rate.items()):
        curves.setdefault(sharing, []).append((100 * removal, outcome.report["perplexity"].after or 0.0))
    series = [svg.Series(f"{100 * sharing:.0f} % share", points) for sharing, points in curves.items()]
    return svg.lines(series, "removed, % of blocks", "perplexity", title="held-out perplexity", at=100 * at[0])


def _facts(outcome: FoldGPTOutcome) -> dict[str, Any]:
    report = outcome.report
    score = next(row for row in report if row.kind == "learned")
    return {
        "parameters": f"{report['parameters'].after:,} of {report['parameters'].before:,}",
        "macs": f"{report['macs'].ratio:.2f}x fewer",
        "bytes": f"{report['bytes'].ratio:.2f}x smaller",
        score.name: f"{score.shown(score.after)} ({score.shown(score.before)} before)",
    }


# -- the benchmark as it was last run ----------------------------------------------------------------------------------


def contest() -> Any:
    """`data/foldgpt/figures.json` as a frame, one row a method and seed."""
    import pandas

    return pandas.DataFrame(json.loads(store.artefact("foldgpt/figures.json").read_text())["rows"])


def controls() -> go.Figure:
    """FoldGPT beside its baselines after the cure: perplexity over the full model's, mean and range of the seeds."""
    ratio = contest().groupby("method", sort=False)["ratio"].agg(["mean", "min", "max"])[::-1]
    whiskers = {"type": "data", "array": ratio["max"] - ratio["mean"], "arrayminus": ratio["mean"] - ratio["min"]}
    bars = go.Bar(x=ratio["mean"], y=list(ratio.index), orientation="h", error_x=whiskers)
    return figure(bars, x="perplexity, times the full model's (less is better)", title="cured with the same budget")
