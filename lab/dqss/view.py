"""DQSS seen: which strategy each layer leans to over the search, what each one costs it, soft against hard."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..ui import Control, Explorer, Frame, svg, view
from . import equations as eq
from .outcome import DQSSOutcome


def numbers(outcome: DQSSOutcome, tensor: str, snapshot: int) -> dict[str, Any]:
    """The shares of all tensors at a snapshot, {tensor: {strategy: share}}; for one tensor each strategy's dB and what
    was kept; and the losses on the calibration in dB below the worst, of the mixture, of the kept and the uniform ones.
    """
    history, names = outcome.history, outcome.history["names"]
    at = history["roles"].index(tensor)
    table = [_present(names, row) for row in history["shares"][snapshot].tolist()]
    losses = {name: outcome.losses[name] for name in ("soft", "kept")} | dict(outcome.uniform)
    return {
        "shares": dict(zip(history["roles"], table, strict=True)),
        "noise": _present(names, history["errors"][at].tolist()),
        "kept": dict(zip(history["roles"], history["kept"], strict=True)),
        "losses": {name: 10 * math.log10(max(loss, 1e-30)) for name, loss in losses.items()},
    }


def _present(names: Sequence[str], row: Sequence[float]) -> dict[str, float]:
    return {name: value for name, value in zip(names, row, strict=True) if not math.isnan(value)}


@view.register
def explore(outcome: DQSSOutcome) -> Explorer:
    """The search replayed: shares of all strategies, a click on a tensor shows its own; losses soft and hard."""
    history = outcome.history
    steps, roles = history["steps"].tolist(), history["roles"]

    def draw(tensor: str, step: int) -> Frame:
        state = numbers(outcome, tensor, steps.index(step))
        over = history["shares"][:, roles.index(tensor)].T.nan_to_num(0).tolist()
        present = [k for k, name in enumerate(history["names"]) if name in state["noise"]]
        panels = [
            _map(state, history["names"], tensor, f"shares after {step} steps"),
            svg.heat(
                [over[k] for k in present],
                [history["names"][k] for k in present],
                title=svg.fit(f"shares over the search, {tensor}", 380),
                at=steps.index(step),
                span=(steps[0], steps[-1]),
                most=max(map(max, over)),
            ),
            _ladder(
                {name: -value for name, value in state["noise"].items()},
                state["kept"][tensor],
                svg.fit(f"signal to noise, {tensor}", 380),
                "dB",
            ),
            _ladder(
                {name: v - state["losses"]["soft"] for name, v in state["losses"].items() if name != "soft"},
                "kept",
                "calibration loss above that of the mixture",
                "dB",
            ),
        ]
        shares = state["shares"][tensor]
        leads = max(shares, key=lambda name: shares[name])
        facts: dict[str, Any] = {
            "leads": leads,
            "share": f"{shares[leads]:.2f}",
            "kept": state["kept"][tensor],
            "entropy": f"{eq.entropy(torch.tensor(list(shares.values()))):.1f} bits",
            "soft-to-hard gap": f"{outcome.gap:.1f} dB",
        }
        return Frame("".join(panels), facts)

    controls = {
        "tensor": Control(roles, label="tensor", start=roles[len(roles) // 2]),
        "step": Control(steps, label="step", start=steps[-1]),
    }
    recipe = outcome.recipe
    title = f"{recipe.algorithm} W{recipe.weight_bits}A{recipe.activation_bits}: a strategy for each tensor"
    return Explorer(draw, controls, title=title)


def costs(outcomes: Sequence[DQSSOutcome], title: str = "what bits cost") -> str:
    """The score against bit operations, one curve an algorithm, one point an outcome; SVG text."""
    score = [next(row for row in reversed(outcome.report.rows) if row.kind == "learned") for outcome in outcomes]
    curves: dict[str, list[tuple[float, float]]] = {}
    for outcome, row in zip(outcomes, score, strict=True):
        spent = math.log2(outcome.report["bitops"].after or 1)
        curves.setdefault(outcome.recipe.algorithm, []).append((spent, row.after or 0.0))
    curves["float"] = [
        (math.log2(o.report["bitops"].before or 1), r.before or 0.0) for o, r in zip(outcomes, score, strict=True)
    ][:1]
    series = [svg.Series(name, sorted(points)) for name, points in curves.items()]
    return svg.lines(series, "bit operations, log2", f"{score[0].name} ({score[0].unit})", title)


def trade(outcomes: Sequence[DQSSOutcome]) -> Explorer:
    """`costs` under a slider of activation bits, with the facts of the last algorithm that has them."""
    bits = sorted({outcome.recipe.activation_bits for outcome in outcomes})

    def draw(bits: int) -> Frame:
        present = [outcome for outcome in outcomes if outcome.recipe.activation_bits == bits]
        rows = {o.recipe.algorithm: o.report.rows[-1] for o in present}
        facts: dict[str, Any] = {name: f"{row.after:.2f} {row.unit}" for name, row in rows.items()}
        return Frame(costs(outcomes), facts | {"bytes": present[-1].report["bytes"].after or 0})

    return Explorer(draw, {"bits": Control(bits, label="activation bits", start=bits[-1])}, title="score against cost")


# -- pictures ----------------------------------------------------------------------------------------------------------


def _map(state: dict[str, Any], names: Sequence[str], tensor: str, title: str, width: int = 640) -> str:
    """Tensors down, strategies across, a share the darker the larger; a dot on what was kept. A click chooses a row."""
    roles = list(state["shares"])
    left = min(max(map(svg.text_width, roles)), 230) + 8
    tall, wide, top = max(9.0, min(15.0, 520 / len(roles))), (width - left) / len(names), 3 * svg.LINE + 10
    lift = (
        svg.LINE if any(svg.text_width(name) > wide for name in names) else 0
    )  # long heads stand high and low in turn
    heads = [(left + (k + 0.5) * wide, top - 6 - (k + 1) % 2 * lift, name) for k, name in enumerate(names)]
    parts = [svg.text(x, y, svg.fit(name, wide * (2 if lift else 1)), "mid", name) for x, y, name in heads]
    every = math.ceil(13 / tall)
    for r, role in enumerate(roles):
        y = top + r * tall
        if r % every == 0 or role == tensor:
            parts.append(svg.text(0, y + tall - 3, svg.fit(role, left - 8), "strong" if role == tensor else "", role))
        for k, name in enumerate(names):
            if name in state["shares"][role]:
                shade = min(7, round(7 * state["shares"][role][name] ** 0.5))
                parts.append(svg.rect(left + k * wide + 1, y + 1, wide - 2, tall - 2, f"lab-shade c0 s{shade}"))
            if name == state["kept"][role]:
                parts.append(svg.rect(left + (k + 0.5) * wide - 3, y + tall / 2 - 2.5, 6, 5, "lab-fill c1"))
        parts.append(svg.target((0, y, width, tall), role, role == tensor, tensor=role))
    floor = top + len(roles) * tall
    parts.append(svg.rect(left, floor + 6, 6, 5, "lab-fill c1"))
    parts.append(svg.text(left + 12, floor + 13, "kept; empty: merged into another, or dropped out"))
    return svg.document(width, floor + 20, title, title, parts, alone=True)


def _ladder(rows: dict[str, float], marked: str, title: str, unit: str, width: int = 420) -> str:
    """A bar a name to the right of 0, or to its left where negative; `marked` in another colour."""
    left, top = min(max(map(svg.text_width, rows)), 130) + 8, svg.LINE + 6
    low, high = min(0.0, *rows.values()), max(0.0, *rows.values())
    room = (width - left - 90) / ((high - low) or 1)
    zero, parts = left - low * room, []
    for k, (name, value) in enumerate(rows.items()):
        y, start = top + k * svg.LINE, zero + min(value, 0) * room
        parts.append(svg.text(0, y + 12, svg.fit(name, left - 8), "strong" if name == marked else "", name))
        parts.append(svg.rect(start, y + 3, abs(value) * room, svg.LINE - 6, f"lab-fill c{int(name == marked)}"))
        parts.append(svg.text(zero + max(value, 0) * room + 6, y + 12, f"{value:.1f} {unit}", "num"))
    return svg.document(width, top + len(rows) * svg.LINE + 4, title, title, parts)
