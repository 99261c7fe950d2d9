"""The claim seen: what `python benchmarks/hybridsd_claim.py` found, mean and range of its seeds."""

import json
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from ...core import store
from ...ui import figure
from . import FOLDER

SPLITS = ("hybrid", "edge first", "fewer steps", "fewer steps, unshifted")


def contest() -> Any:
    """`data/bound/figures.json` as a frame, one row a kind, k and seed."""
    import pandas

    return pandas.DataFrame(_kept()["rows"])


def figures() -> dict[str, Any]:
    """The claim's figures, of the split that was chosen."""
    return _kept()["figures"]


def claim(name: str = "accuracy") -> go.Figure:
    """Semantic accuracy or Frechet distance ('frechet') of every way of drawing, by the cloud's steps."""
    labels = {"accuracy": "semantic accuracy (%)", "frechet": "Frechet distance, own features"}
    if name not in labels:
        raise ValueError(f"name={name!r} is not allowed: give 'accuracy' or 'frechet'")
    title = "the cloud first, and its rivals at equal cloud cost"
    return figure(*_lines(SPLITS, name), x="steps in the cloud", y=labels[name], title=title)


def withdrawn() -> go.Figure:
    """Semantic accuracy of the cloud where the prompt is given for its first k steps only."""
    title = "when meaning is decided"
    return figure(
        *_lines(("prompt first",), "accuracy"), x="steps with the prompt", y="semantic accuracy (%)", title=title
    )


def windows() -> go.Figure:
    """Semantic accuracy of the edge where the cloud takes five steps only, by the first of them."""
    title = "where five steps of the cloud are worth most"
    return figure(
        *_lines(("window",), "accuracy"), x="first step of the cloud's five", y="semantic accuracy (%)", title=title
    )


def _lines(kinds: Sequence[str], name: str) -> list[go.Scatter]:
    table, lines = contest(), []
    for kind in kinds:
        by = table[table.kind == kind].groupby("k")[name].agg(["mean", "min", "max"])
        whiskers = {"type": "data", "array": by["max"] - by["mean"], "arrayminus": by["mean"] - by["min"]}
        lines.append(go.Scatter(x=list(by.index), y=by["mean"], name=kind, mode="lines+markers", error_y=whiskers))
    return lines


def _kept() -> dict[str, Any]:
    return json.loads(store.artefact(f"{FOLDER}/figures.json").read_text(encoding="utf-8"))
