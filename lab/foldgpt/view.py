"""FoldGPT seen: how alike the blocks are, gates over the training, and the stack folding under two sliders."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pandas
import plotly.graph_objects as go
from torch import Tensor

from ..core import store, tasks
from ..core.task import Task
from ..ui import Control, Explorer, Frame, contests, figure, svg, view
from . import equations as eq
from . import measures
from .folding import Fold
from .outcome import FoldGPTOutcome
from .ranking import of_states

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
        parts, facts = [stack(outcome), matrix(outcome.similarity)], dict[str, Any]()
        parts += [map_of(outcome)] if outcome.moves else []
        if gates:
            names = [f"block {block}" for block in range(len(gates))]
            parts.append(svg.heat(outcome.gates.T.tolist(), names, title="gates over the training", at=step))
            facts["mean gate"] = round(sum(gates) / len(gates), 3)
            facts["between 0.1 and 0.9"] = sum(0.1 < g < 0.9 for g in gates)
        return Frame("".join(parts), facts | _facts(outcome))

    gone = len(outcome.ranking) - len(outcome.fold.kept)
    title = f"FoldGPT: {gone} of {len(outcome.ranking)} blocks removed, groups that share: {len(outcome.fold.groups)}"
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


def moves(outcome: FoldGPTOutcome) -> Explorer:
    """What each move costs alone, and the stack that the cheapest of them make, under two sliders: removal, sharing.

    Sliders count blocks. Losses are measured one move at a time; what several cost together is not their sum.
    ValueError for an outcome of no search.
    """
    if not outcome.moves:
        raise ValueError("no move was measured: give the outcome of a search, ranking='bytes'")
    count = len(outcome.ranking)
    lone = {move.blocks: move.loss for move in outcome.moves}
    least = min(lone.values())

    def draw(removal: int, sharing: int) -> Frame:
        taken = cheapest(lone, removal, sharing)
        gone = {run[0] for run in taken if len(run) == 1}
        groups = tuple(run for run in taken if len(run) > 1)
        fold = Fold(tuple(block for block in range(count) if block not in gone), groups)
        facts: dict[str, Any] = {
            "removed": ", ".join(map(str, sorted(gone))) or "none",
            "share": ", ".join("-".join(map(str, run)) for run in groups) or "none",
            "blocks' weights left": count - len(gone) - sum(len(run) - 1 for run in groups),
            "dearest of these moves, nats over the cheapest of all": round(
                max((lone[run] - least for run in taken), default=0.0), 3
            ),
        }
        return Frame(stack(replace(outcome, fold=fold)) + map_of(outcome, taken), facts)

    most = range(count // 2 + 1)
    controls = {name: Control(most, label=name, unit="blocks") for name in ("removal", "sharing")}
    return Explorer(draw, controls, title="FoldGPT: what each move costs alone")


def cheapest(lone: dict[tuple[int, ...], float], removal: int, sharing: int) -> list[tuple[int, ...]]:
    """So many removals and pairs that do not meet, each the cheapest (lone: loss by move) that is left."""
    taken: list[tuple[int, ...]] = []
    for size, wanted in ((1, removal), (2, sharing)):
        left = wanted
        for run in sorted((run for run in lone if len(run) == size), key=lambda run: lone[run]):
            if left and not {*run} & {block for other in taken for block in other}:
                taken.append(run)
                left -= 1
    return taken


def similarity(source: Any, batches: int = 4) -> Explorer:
    """How alike the states behind a model's blocks are on text: cosines of every two, and what each block changes.

    source: a folder of a causal language model of transformers, its id or the model itself, as `lab.tasks.prose` takes
    them, or a task; `batches` of its text are read.
    """
    task = source if isinstance(source, Task) else tasks.prose(source)
    read = [task.inputs_of(batch) for batch in islice(iter(task.batches), batches)]
    alike = of_states(eq.similarity, task.model, read).cpu()
    influence = (1 - alike.diagonal(1)).clamp(min=0).tolist()  # Card (9), from (8) of neighbours; a cosine is at most 1

    def draw(block: int) -> Frame:
        facts: dict[str, Any] = {"its change, 1 - cosine of what goes in and comes out": round(influence[block], 4)}
        if block + 1 < len(influence):
            facts["cosine with the state behind the next block"] = round(float(alike[block + 1, block + 2]), 4)
        return Frame(matrix(alike, block + 1), facts)

    control = Control(range(len(influence)), label="block")
    return Explorer(draw, {"block": control}, title=f"{type(task.model).__name__}: how alike its blocks' states are")


def side_by_side(models: Mapping[str, Any], tokenizer: Any, prompts: Sequence[str], count: int = 24) -> Explorer:
    """What each of some models makes of a prompt that is chosen, word beside word, and where they first part."""
    texts = {
        prompt: {name: measures.text(model, tokenizer, prompt, count) for name, model in models.items()}
        for prompt in prompts
    }

    def draw(prompt: str) -> Frame:
        words = [text.split() for text in texts[prompt].values()]
        alike = next((k for k, many in enumerate(zip(*words, strict=False)) if len({*many}) > 1), min(map(len, words)))
        return Frame(_columns(texts[prompt], alike), {"words alike": alike})

    return Explorer(draw, {"prompt": Control(tuple(prompts), label="prompt")}, title="generation, side by side")


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


def matrix(alike: Tensor, at: int | None = None) -> str:
    """Cosines of the states behind every two blocks (N + 1, N + 1), from 0 (faint) to 1 (full); `at` marks one."""
    values = alike.clamp(0, 1).tolist()
    names = ["input", *(f"block {block}" for block in range(len(values) - 1))]
    return svg.heat(values, names, x="state", title="cosine of states", at=at)


def map_of(outcome: FoldGPTOutcome, taken: Sequence[tuple[int, ...]] = ()) -> str:
    """A cell a move, in the row of its kind and the column of its first block: nats over the cheapest of all."""
    wide, high, left, top = 34, 24, 74, svg.HEAD + svg.LINE
    lone = {move.blocks: move.loss for move in outcome.moves}
    least, rows = min(lone.values()), sorted({len(run) for run in lone})
    parts = [svg.text(left + wide * (b + 0.5), top - 6, str(b), "mid num") for b in range(len(outcome.ranking))]
    for k, size in enumerate(rows):
        name = "remove" if size == 1 else f"share {size}"
        parts.append(svg.text(left - 8, top + high * k + 16, name, "end"))
    for run, value in lone.items():
        x, y, over = left + wide * run[0], top + high * rows.index(len(run)), value - least
        shade = max(0, min(7, round(7 * (1 - over / 0.5))))  # dark is cheap; from half a nat on the faintest
        parts.append(svg.rect(x + 1, y + 1, wide - 2, high - 2, f"lab-shade c0 s{shade}"))
        look = "mid num on" if shade > 4 else "mid num"
        parts.append(svg.text(x + wide / 2, y + 16, f"{over:.2f}" if over < 9.99 else "10+", look))
        if run in taken:
            parts.append(svg.rect(x + 1, y + high - 4, wide - 2, 3, "lab-fill c1"))
    words = "nats that a move costs, over the cheapest; marked are those made"
    parts.append(svg.text(left, top + high * len(rows) + svg.UNDER, words))
    width, height = left + wide * len(outcome.ranking) + 8, top + high * len(rows) + svg.LINE + 6
    return svg.document(width, height, "what each move costs alone", "loss of every move", parts)


def _columns(texts: Mapping[str, str], alike: int, width: int = 320) -> str:
    """Texts in columns, in lines of the width: first the words that are the same in all, under a bar the rest."""
    parts, lowest = [], 0.0
    for k, (name, text) in enumerate(texts.items()):
        words, x, y = text.split(), 4 + k * width, float(svg.HEAD + svg.BASE)
        parts.append(svg.text(x, y, name, "strong"))
        for part in (words[:alike], words[alike:]):
            for line in textwrap.wrap(" ".join(part), 46):
                y += svg.LINE
                parts.append(svg.text(x, y, line))
            if part == words[:alike] != words:
                y += 6
                parts.append(svg.rect(x, y - 1, width - 24, 2, "lab-fill c1"))
        lowest = max(lowest, y)
    return svg.document(width * len(texts), lowest + 8, "", "what each model says", parts)


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


# -- the benchmarks as they were last run ------------------------------------------------------------------------------


def contest() -> go.Figure:
    """How far each rival is behind FoldGPT at 36 % fewer bytes, in units of the whole model's perplexity."""
    kept = contests.contest("foldgpt/budget.json")
    return kept.figure(unit="perplexity, times the whole model's,", title="36 % fewer bytes, cured alike")


def controls() -> go.Figure:
    """Ranking by gates beside its baselines, cured: perplexity over the full model's, mean and range of the seeds."""
    rows = pandas.DataFrame(json.loads(store.artefact("foldgpt/figures.json").read_text())["rows"])
    ratio = rows.groupby("method", sort=False)["ratio"].agg(["mean", "min", "max"])[::-1]
    whiskers = {"type": "data", "array": ratio["max"] - ratio["mean"], "arrayminus": ratio["mean"] - ratio["min"]}
    marks = go.Scatter(x=ratio["mean"], y=list(ratio.index), error_x=whiskers, mode="markers", marker_size=9)
    return figure(marks, x="perplexity, times the full model's (less is better)", title="cured with the same budget")
